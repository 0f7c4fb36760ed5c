"""`python -m benchmarks detectors`: parameters of the detectors beside the official table, on any machine."""

from __future__ import annotations

import argparse

from eca_triton.util.tables import write_table

from ..shared.context import Context


def add_to(parser: argparse.ArgumentParser) -> None:
    """No arguments."""


def run(options: argparse.Namespace, context: Context) -> int:
    """Count and print; exit code 1 if a figure is not the official one."""
    from . import detectors  # which imports timm and torchvision

    found = list(detectors.rows())
    write_table(detectors.COLUMNS, map(detectors.cells, found), context.out, {*detectors.COLUMNS[1:4]})
    for row in found:
        for each in row.differences:
            context.say(f"{row.name}, {each.parameters:,} more: {each.reason}")
    return int(not all(row.agrees for row in found))
