"""`python -m benchmarks compile`: seconds added to torch.compile, on any machine."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from eca_triton.util.tables import write_table

from ..shared.context import RESULTS, Context, now, positive
from ..shared.machine import describe, folder_name
from . import compiling
from .options import add_settings, settings_of

BUDGET_S = 900.0
REPEATS = 3


def add_to(parser: argparse.ArgumentParser) -> None:
    """The arguments."""
    add_settings(parser, ["ecaresnet50d"], ["channels_last"])
    parser.add_argument("--budget-s", type=float, default=BUDGET_S, help="begin nothing that would end later")
    parser.add_argument("--repeats", type=positive, default=REPEATS, help="compilations of each")
    parser.add_argument("--out", type=Path, help="folder of the JSON (default: in benchmarks/results)")


def run(options: argparse.Namespace, context: Context) -> int:
    """Measure and write."""
    once, how = compiling.compiler(context.device)
    machine, date = describe(context.device or torch.device("cpu")), now()
    path = (options.out or RESULTS / folder_name(machine["gpu"], date)) / "compile.json"
    document = compiling.measure(
        settings_of(options), options.repeats, options.budget_s, once, how, machine, date, path, print
    )
    context.say(f"{machine['cpu']}, torch {machine['torch']}, Triton {machine['triton']}, {date}: {how}")
    columns = compiling.COLUMNS
    write_table(columns, compiling.table(document), context.out, set(columns) - set(compiling.TEXT))
    if context.device is None:
        context.say("left out, for there is no CUDA device: Triton's own compilation")
    for line in (*compiling.notes(document), f"written to {path}"):
        context.say(line)
    return int(any(row["status"] != "ok" for row in document["rows"]))
