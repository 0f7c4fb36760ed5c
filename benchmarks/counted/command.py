"""`python -m benchmarks tax`: bytes and kernels of networks, counted on any machine."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from ..shared.context import COUNTED, DOCS, NOTHING_MEASURED, Context, positive
from ..shared.machine import describe
from ..shared.networks import NETWORKS, PAPER
from ..shared.tensors import LAYOUTS
from . import page, tax

DIRECTIONS = {"inference": False, "training": True}


def add_to(parser: argparse.ArgumentParser) -> None:
    """The arguments."""
    parser.add_argument(
        "--set",
        choices=tax.SETS,
        default="timm",
        help="timm's ECA networks, or those of the paper beside SE and CBAM",
    )
    parser.add_argument("--networks", nargs="+", choices=[*NETWORKS, *PAPER], metavar="NAME")
    parser.add_argument("--contenders", nargs="+", choices=tax.SETS["paper"].contenders)
    parser.add_argument("--modes", nargs="+", choices=tax.MODES)
    parser.add_argument("--directions", nargs="+", choices=DIRECTIONS, default=list(DIRECTIONS))
    parser.add_argument("--layouts", nargs="+", choices=LAYOUTS, default=list(LAYOUTS))
    parser.add_argument("--whole", action="store_true", help="the deepest networks with all their blocks")
    parser.add_argument("--workers", type=positive, default=2, help="processes")
    parser.add_argument("--out", type=Path, help="the JSON (default: in benchmarks/results/counted)")
    parser.add_argument("--page", type=Path, help="the page made of it (default: in docs)")


def run(options: argparse.Namespace, context: Context) -> int:
    """Count what is not counted yet, and write the page."""
    from eca_triton.compile.passes import package_hash

    counted = tax.SETS[options.set]
    asked = {
        "networks": (options.networks, counted.networks),
        "contenders": (options.contenders, counted.contenders),
    }
    for name, (given, known) in asked.items():
        if unknown := [each for each in given or () if each not in known]:
            context.say(f"--{name} must be of the set {options.set}, got {', '.join(unknown)}")
            return NOTHING_MEASURED
    wanted = tax.jobs(
        options.networks or counted.networks,
        options.contenders or counted.contenders,
        [DIRECTIONS[each] for each in options.directions],
        [each == "channels_last" for each in options.layouts],
        options.modes or counted.modes,
    )
    path = options.out or COUNTED / f"{counted.stem}.json"
    target = options.page or DOCS / f"{counted.stem}.md"
    machine = describe(torch.device("cpu"))
    sources = package_hash(*tax.SOURCES)[:16]
    document = tax.run(
        wanted,
        path,
        machine,
        sources,
        options.workers,
        context.say,
        command=counted.command,
        whole=options.whole,
    )
    target.write_text(page.page(document))
    worse, failed = page.rising(document), [row for row in document["rows"] if "error" in row]
    for line in (*(f"more than stock: {each}" for each in worse), f"written to {target}"):
        context.say(line)
    return int(bool(worse or failed))
