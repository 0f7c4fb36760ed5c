"""Search for every key of a model, and write each result as soon as it is there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from ..tuning.store import save
from .machine import Machine
from .progress import Progress
from .search import Outcome, Task, name_of, search


def tune(
    tasks: Sequence[Task], machine: Machine, progress: Progress, out: TextIO, path: Path | None = None
) -> tuple[list[Outcome], str]:
    """Search and write, key by key: what is interrupted keeps the keys that are done.

    A table that cannot be written stops nothing: what was found can still be shown.

    Args:
        tasks: As `tasks_of` makes them for this machine.
        machine: Where launches are timed.
        progress: Is told of every step.
        out: Where the lines of TRITON_PRINT_AUTOTUNING=1 go.
        path: Of the table; None: the user's, which later calls of this process go by, too.

    Returns:
        tuple: what was found, and why it could not all be written, or "".
    """
    import triton

    outcomes, problem = [], ""
    for task in tasks:
        progress.begin(task, len(task.choices))
        outcome = search(task, machine, progress.tried)
        try:
            if outcome.entry is not None:
                save({task.key: outcome.entry}, path=path)
        except OSError as error:
            problem = problem or str(error)
        progress.end(outcome)
        if triton.knobs.autotuning.print and outcome.choice is not None:
            out.write(_as_triton_prints(outcome))
        outcomes.append(outcome)
    return outcomes, problem


def _as_triton_prints(outcome: Outcome) -> str:
    assert outcome.choice is not None, "asked before"
    return (
        f"Triton autotuning for function eca_triton {outcome.task.key.kernel},\n"
        f"with key as {outcome.task.key},\n"
        f"finished after {outcome.wall_s:.2f}s,\n"
        f"best config selected: {name_of(outcome.choice)};\n"
    )
