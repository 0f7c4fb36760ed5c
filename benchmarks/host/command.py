"""`python -m benchmarks host`: microseconds of dispatch per call, on any machine."""

from __future__ import annotations

import argparse
import sys
from importlib.util import find_spec
from pathlib import Path

import torch

from eca_triton.util.tables import write_table

from ..shared.context import NOTHING_MEASURED, RESULTS, Context, now
from ..shared.document import save
from ..shared.machine import describe, folder_name
from . import measure


def add_to(parser: argparse.ArgumentParser) -> None:
    """The arguments."""
    parser.add_argument("--out", type=Path, help="folder of the JSON (default: in benchmarks/results)")


def run(options: argparse.Namespace, context: Context) -> int:
    """Measure and write."""
    if find_spec("pytest_benchmark") is None:
        context.say("not measured: pytest-benchmark is not installed")
        return NOTHING_MEASURED
    machine, date = describe(context.device or torch.device("cpu")), now()
    document, problem = measure.measure(machine, date)
    path = (options.out or RESULTS / folder_name(machine["gpu"], date)) / "host.json"
    save(document, path)
    context.say(f"{machine['cpu']}, torch {machine['torch']}, Triton {machine['triton']}, {date}")
    write_table(
        measure.COLUMNS, measure.table(document), context.out, set(measure.COLUMNS) - set(measure.TEXT)
    )
    if context.device is None:
        context.say("left out, for there is no CUDA device: calls whose kernels run")
    else:
        context.say("left out, for there is a CUDA driver: calls up to a stub of it")
    if problem:
        print(problem, file=sys.stderr)
        context.say("a check or a bound failed: stderr has what pytest says of it")
    context.say(f"written to {path}")
    return int(bool(problem))
