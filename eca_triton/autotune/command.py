"""`python -m eca_triton autotune`: what it prints, and its exit codes."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import nn

from ..tuning.config import Device
from ..tuning.store import mode, user_table
from ..tuning.table import serialize
from ..tuning.targets import TARGETS
from ..util.tables import write_table
from .machine import Machine, this_machine
from .progress import shown, summary
from .search import Outcome, name_of, tasks_of
from .sites import Sites, sites_of
from .tune import tune

log = logging.getLogger("eca_triton")

NOTHING_TO_TUNE = "no site of this model runs a kernel whose config can be tuned"


def plan(model: nn.Module, inputs: tuple[Any, ...], training: bool, target: str | None, out: TextIO) -> int:
    """List sites, keys and candidates; runs on any machine that has Triton.

    target: the GPU to plan for, a key of `TARGETS`; None: this machine's, else an H200.
    """
    sites = sites_of(model, inputs, training=training, target=target)
    tasks = tasks_of(sites.examples, _device(target))
    _write_sites(sites, out)
    out.write("\n")
    for task in tasks:
        out.write(f"{task.key}  ({task.key.gpu}; {task.sites} calls, {len(task.choices)} candidates)\n")
        for index, choice in enumerate(task.choices):
            out.write(f"    {name_of(choice)}{'  <- heuristic' if index == 0 else ''}\n")
    if not tasks:
        out.write(f"{NOTHING_TO_TUNE}\n")
    return 0


def measure(
    model: nn.Module,
    inputs: tuple[Any, ...],
    training: bool,
    path: Path | None,
    out: TextIO,
    err: TextIO,
    machine: Machine | None = None,
) -> int:
    """Tune every key of the model on this machine's GPU, and write a table of the results.

    Args:
        model: On any device: it is traced, and not run.
        inputs: Its example inputs.
        training: Of a training step.
        path: Of the table; None for the user's.
        out: Gets the result.
        err: Gets the progress.
        machine: Where to measure; None: on the current CUDA device.
    """
    machine = machine or this_machine()
    tasks = tasks_of(sites_of(model, inputs, training=training).examples, machine.properties)
    if not tasks:
        out.write(f"{NOTHING_TO_TUNE}\n")
        return 0
    with shown(len(tasks), err) as progress:
        outcomes, unsaved, problem = tune(tasks, machine, progress, err, path)
    _write_outcomes(outcomes, out)
    saved = sum(outcome.entry is not None for outcome in outcomes) - len(unsaved)
    if saved or not unsaved:
        out.write(f"\n{saved} of {len(outcomes)} keys written to {path or user_table()}\n")
    if unsaved:
        log.error("%s could not be written: %s", path or user_table(), problem)
        out.write(f"\nnot saved; in a file, this can be merged by tune-cache:\n{serialize(unsaved)}")
    if path is None and mode() != "user":
        out.write(f"note: ECA_TRITON_TUNED={mode()}: the user's table is not read\n")
    problems = [outcome for outcome in outcomes if outcome.problem]
    for outcome in problems:
        log.error("%s: the heuristic's choice fails: %s", outcome.task.key, outcome.problem)
    return 1 if problems or unsaved else 0


def _write_sites(sites: Sites, out: TextIO) -> None:
    rows = [
        (
            record.owner or record.name,
            "x".join(map(str, record.shape)),
            str(record.k),
            record.decision.plan,
            record.decision.reason or "",
        )
        for record in sites.records
    ]
    write_table(("site", "shape", "k", "plan", "reason"), rows, out, numeric={"k"})


def _write_outcomes(outcomes: list[Outcome], out: TextIO) -> None:
    rows = []
    for outcome in outcomes:
        before, after = ("-", "-") if outcome.choice is None or outcome.heuristic_us is None else (
            f"{outcome.heuristic_us:.1f}", f"{outcome.time_us:.1f}"
        )  # fmt: skip
        rows.append((str(outcome.task.key), str(outcome.task.sites), before, after, summary(outcome)))
    columns = ("key", "calls", "heuristic us", "best us", "result")
    write_table(columns, rows, out, numeric=set(columns[1:4]))


def _device(target: str | None) -> Device:
    if target is None and torch.cuda.is_available():
        return Device.of(torch.cuda.get_device_properties())
    return TARGETS[target or "h200"].device
