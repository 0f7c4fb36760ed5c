"""`python -m benchmarks tax`: bytes and kernels of timm's networks, counted on any machine."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from .. import tax
from ..machine import describe
from ..networks import NETWORKS
from . import DOCS, RESULTS, Commands, Context, positive

DIRECTIONS = {"inference": False, "training": True}


def add_to(commands: Commands) -> None:
    """The arguments."""
    counts = commands.add_parser(
        "tax", help="bytes and kernels of timm's networks: stock, ours, and without ECA"
    )
    counts.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS), metavar="NAME")
    counts.add_argument("--contenders", nargs="+", choices=tax.CONTENDERS, default=list(tax.CONTENDERS))
    counts.add_argument("--modes", nargs="+", choices=tax.MODES, default=list(tax.MODES))
    counts.add_argument("--directions", nargs="+", choices=DIRECTIONS, default=list(DIRECTIONS))
    counts.add_argument("--whole", action="store_true", help="the deepest networks with all their blocks")
    counts.add_argument("--workers", type=positive, default=2, help="processes")
    counts.add_argument("--out", type=Path, default=RESULTS / "counted" / "tax.json", help="the JSON")
    counts.add_argument("--page", type=Path, default=DOCS / "tax.md", help="the page made of it")
    counts.set_defaults(run=run)


def run(options: argparse.Namespace, context: Context) -> int:
    """Count what is not counted yet, and write the page."""
    from eca_triton.compile.passes import package_hash

    wanted = tax.jobs(
        options.networks, options.contenders, [DIRECTIONS[each] for each in options.directions], options.modes
    )
    machine = describe(torch.device("cpu"))
    sources = package_hash(*tax.SOURCES)[:16]
    document = tax.run(
        wanted, options.out, machine, sources, options.workers, context.say, whole=options.whole
    )
    options.page.write_text(tax.page(document))
    worse, failed = tax.rising(document), [row for row in document["rows"] if "error" in row]
    for line in (*(f"more than stock: {each}" for each in worse), f"written to {options.page}"):
        context.say(line)
    return int(bool(worse or failed))
