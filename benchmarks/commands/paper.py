"""`python -m benchmarks paper`: parameters and FLOPs of the paper's tables, counted on any machine."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from eca_triton.util.tables import write_table

from . import DOCS, Commands, Context


def add_to(commands: Commands) -> None:
    """The arguments."""
    each = commands.add_parser("paper", help="parameters and FLOPs of the ECA-Net paper's tables 2 and 3")
    each.add_argument("--json", action="store_true", help="print one JSON list")
    each.add_argument(
        "--page",
        type=Path,
        nargs="?",
        const=DOCS / "paper.md",
        help="write the page (default: docs/paper.md)",
    )
    each.set_defaults(run=run)


def run(options: argparse.Namespace, context: Context) -> int:
    """Count and print; exit code 1 if a row is off, or has a reason that it does not need."""
    from .. import paper, paper_page  # these import timm and torchvision

    found = paper.lines()
    if options.json:
        context.say(json.dumps([paper_page.record(line) for line in found], indent=1))
    else:
        for table, title in paper_page.TITLES.items():
            columns = paper_page.columns(table)
            context.say(f"{title}\n")
            cells = [paper_page.cells(line) for line in found if line.row.table == table]
            write_table(columns, cells, context.out, set(columns) - set(paper_page.TEXT))
            context.say("")
        for reason, why in paper.REASONS.items():
            context.say(f"{reason}: {why}")
    if options.page is not None:
        options.page.write_text(paper_page.page(found))
    return int(any(line.off() for line in found))
