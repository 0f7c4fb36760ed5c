"""`python -m benchmarks copy`: bandwidth of a copy on this GPU."""

from __future__ import annotations

import argparse
from pathlib import Path

from eca_triton.util.tables import write_table

from ..shared.context import NOTHING_MEASURED, RESULTS, Context, now, positive
from ..shared.machine import describe, folder_name
from . import bandwidth

REPEATS = 20


def add_to(parser: argparse.ArgumentParser) -> None:
    """The arguments."""
    parser.add_argument("--repeats", type=positive, default=REPEATS, help="samples of each size")
    parser.add_argument("--out", type=Path, help="folder of the JSON (default: in benchmarks/results)")


def run(options: argparse.Namespace, context: Context) -> int:
    """Measure and write."""
    if context.device is None:
        context.say("not measured: no CUDA device")
        return NOTHING_MEASURED
    machine, date = describe(context.device), now()
    path = (options.out or RESULTS / folder_name(machine["gpu"], date)) / "copy.json"
    found = bandwidth.measure(machine, date, context.device, context.timer, options.repeats, path)
    write_table(bandwidth.COLUMNS, bandwidth.table(found), context.out, bandwidth.COLUMNS)
    context.say(f"written to {path}")
    return 0
