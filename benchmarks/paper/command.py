"""`python -m benchmarks paper`: parameters and FLOPs of the paper's tables, counted on any machine."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from eca_triton.util.tables import write_table

from ..shared.context import DOCS, Context


def add_to(parser: argparse.ArgumentParser) -> None:
    """The arguments."""
    parser.add_argument("--json", action="store_true", help="print one JSON list")
    parser.add_argument(
        "--page",
        type=Path,
        nargs="?",
        const=DOCS / "paper.md",
        help="write the page (default: docs/paper.md)",
    )


def run(options: argparse.Namespace, context: Context) -> int:
    """Count and print; exit code 1 if a row is off, or has a reason that it does not need."""
    # These import timm and torchvision.
    from . import page, rows

    found = rows.lines()
    if options.json:
        context.say(json.dumps([page.record(line) for line in found], indent=1))
    else:
        for table, title in page.TITLES.items():
            columns = page.columns(table)
            context.say(f"{title}\n")
            cells = [page.cells(line) for line in found if line.row.table == table]
            write_table(columns, cells, context.out, set(columns) - set(page.TEXT))
            context.say("")
        for reason, why in rows.REASONS.items():
            context.say(f"{reason}: {why}")
    if options.page is not None:
        options.page.write_text(page.page(found))
    return int(any(line.off() for line in found))
