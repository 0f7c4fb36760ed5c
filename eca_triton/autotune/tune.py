"""Search for every key of a model, and write each result as soon as it is there."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from ..tuning.store import save
from ..tuning.table import Table
from .machine import Machine
from .progress import Progress
from .search import Outcome, Task, name_of, search

log = logging.getLogger("eca_triton")


def tune(
    tasks: Sequence[Task], machine: Machine, progress: Progress, out: TextIO, path: Path | None = None
) -> tuple[list[Outcome], Table, str]:
    """Search and write, key by key: what is interrupted keeps the keys that are done.

    Nothing that goes wrong in writing stops the search: the entry is told, and tried again with the next key.

    Args:
        tasks: As `tasks_of` makes them for this machine.
        machine: Where launches are timed.
        progress: Is told of every step.
        out: Where the lines of TRITON_PRINT_AUTOTUNING=1 go.
        path: Of the table; None: the user's, which later calls of this process go by, too.

    Returns:
        tuple: what was found, what of it could not be written in the end, and why, or "".
    """
    import triton

    outcomes: list[Outcome] = []
    unsaved: Table = {}
    problem = ""
    for task in tasks:
        progress.begin(task, len(task.choices))
        outcome = search(task, machine, progress.tried)
        if outcome.entry is not None:
            unsaved[task.key] = outcome.entry
        if unsaved:
            try:
                save(unsaved, path=path)
                unsaved, problem = {}, ""
            except Exception as error:  # whatever a disk, a lock or what was in the table may raise
                problem = str(error) or type(error).__name__
                log.warning("not saved yet: %s (%s)", ", ".join(map(str, unsaved)), problem)
        progress.end(outcome)
        if triton.knobs.autotuning.print and outcome.choice is not None:
            out.write(_as_triton_prints(outcome))
        outcomes.append(outcome)
    return outcomes, unsaved, problem


def _as_triton_prints(outcome: Outcome) -> str:
    assert outcome.choice is not None, "asked before"
    return (
        f"Triton autotuning for function eca_triton {outcome.task.key.kernel},\n"
        f"with key as {outcome.task.key},\n"
        f"finished after {outcome.wall_s:.2f}s,\n"
        f"best config selected: {name_of(outcome.choice)};\n"
    )
