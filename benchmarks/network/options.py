"""Options that choose networks and how they are run, for the commands that take whole ones."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ..shared.context import positive
from ..shared.tensors import DTYPES, LAYOUTS
from ..shared.twins import FAMILIES
from .measure import DIRECTIONS, Setting, settings

BATCH = 128


def add_settings(parser: argparse.ArgumentParser, networks: Sequence[str], layouts: Sequence[str]) -> None:
    """Add the options; networks and layouts are those by default."""
    default = "all" if len(networks) == len(FAMILIES) else ", ".join(networks)
    parser.add_argument(
        "--networks", nargs="+", choices=FAMILIES, default=list(networks), metavar="NAME",
        help=f"{', '.join(FAMILIES)} (default: {default})",
    )  # fmt: skip
    parser.add_argument("--directions", nargs="+", choices=DIRECTIONS, default=list(DIRECTIONS))
    parser.add_argument("--layouts", nargs="+", choices=LAYOUTS, default=list(layouts))
    parser.add_argument("--batch", type=positive, default=BATCH)
    parser.add_argument("--size", type=positive, help="side of an image (default: the network's own)")
    parser.add_argument("--dtype", choices=DTYPES, default="bf16")


def settings_of(options: argparse.Namespace) -> list[Setting]:
    """Return every combination of what was chosen."""
    return settings(
        options.networks, options.directions, options.layouts, options.batch, options.size, options.dtype
    )
