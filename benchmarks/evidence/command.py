"""`python -m benchmarks evidence`, which `make evidence` runs: all that counts, in one folder."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from ..shared.context import NOTHING_MEASURED, RESULTS, ROOT, Context, now
from ..shared.machine import describe, folder_name
from .steps import as_it_comes, collect, empty, fresh, run_limited, tasks, tasks_without_a_gpu
from .summary import summary

BUDGET_S = 560.0  # ten minutes, less the start of Python and the end of the last step


def add_to(parser: argparse.ArgumentParser) -> None:
    """The arguments."""
    parser.add_argument("--budget-s", type=float, default=BUDGET_S, help="seconds for all steps together")
    parser.add_argument("--out", type=Path, help="an empty folder (default: benchmarks/results/<gpu>-<date>)")


def run(options: argparse.Namespace, context: Context) -> int:
    """Run the steps and print the summary."""
    if options.out is not None and not empty(options.out):
        context.say(f"nothing was measured: {options.out} is not empty, and a folder is of one run")
        return NOTHING_MEASURED
    with as_it_comes():
        return _run(options, context)


def _run(options: argparse.Namespace, context: Context) -> int:
    gpu = context.device is not None
    machine, date = describe(context.device or torch.device("cpu")), now()
    folder = (options.out or fresh(RESULTS / folder_name(machine["gpu"], date))).resolve()
    # The steps run in the checkout, so that no path of this machine is in the log.
    named = folder.relative_to(ROOT) if folder.is_relative_to(ROOT) else folder
    wanted = tasks(named) if gpu else tasks_without_a_gpu(named)
    document = collect(wanted, machine, date, folder, options.budget_s, run_limited, context.say, gpu=gpu)
    lines = [*summary(folder), f"written to {named}"]
    (folder / "summary.txt").write_text("\n".join(lines) + "\n")
    for line in ("", *lines):
        context.say(line)
    if not gpu:
        return NOTHING_MEASURED
    return int(any(row["status"] != "ok" for row in document["rows"]))
