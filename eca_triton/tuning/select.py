"""The one place where a launch, or generated code, gets its kernel and config from."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace

from .allowed import allowed
from .choice import choose
from .config import Choice, Device
from .families.lagged import LaggedConfig
from .key import Key
from .problem import Problem
from .store import in_force
from .table import Table

log = logging.getLogger("eca_triton")

MAX_CHOSEN = 4096  # problems; networks have dozens


@dataclass
class Trial:
    """Launches that tuning makes, or only looks at: how `select` answers them.

    Attributes:
        device: That they are for, wherever their tensors are.
        decide: The choice for a problem; None: as outside of a trial.
        asked: The problems so far.
    """

    device: Device
    decide: Callable[[Problem], Choice | None]
    asked: list[Problem] = field(default_factory=list)


_trial: ContextVar[Trial | None] = ContextVar("eca_triton_trial", default=None)


@contextmanager
def trying(trial: Trial) -> Iterator[None]:
    """Within it `select` answers by the trial."""
    token = _trial.set(trial)
    try:
        yield
    finally:
        _trial.reset(token)


def device_of_trial() -> Device | None:
    """Return the device of the trial around this call, if there is one."""
    trial = _trial.get()
    return None if trial is None else trial.device


def select(problem: Problem, may_read: bool = True) -> Choice:
    """Return what was tuned for the problem, else the heuristic's choice.

    Args:
        problem: What is to be computed, and where.
        may_read: False in a graph capture, where no file is read.
    """
    trial = _trial.get()
    if trial is not None:
        trial.asked.append(problem)
        decided = trial.decide(problem)
        if decided is not None:
            return decided
    table, _, chosen = in_force(may_read)
    choice = chosen.get(problem)
    if choice is None:
        choice = _select(problem, table)
        if len(chosen) >= MAX_CHOSEN:
            chosen.clear()
        chosen[problem] = choice
    return choice


def _select(problem: Problem, table: Table) -> Choice:
    key = Key.of(problem) if table else None
    if key is None or key not in table:
        return choose(problem)
    tuned = table[key].choice
    if isinstance(tuned.config, LaggedConfig):
        # Tuned for a batch of this class, but perhaps a larger one: no tile can lag behind the last.
        lag = min(tuned.config.lag, problem.layout.n * tuned.config.tiles(problem.layout))
        tuned = replace(tuned, config=replace(tuned.config, lag=lag))
    if allowed(problem, tuned):
        return tuned
    log.debug("tuned %s does not fit %s", tuned, problem)
    return choose(problem)
