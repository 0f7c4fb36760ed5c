"""The one place where a launch, or generated code, gets its kernel and config from."""

from __future__ import annotations

from .allowed import allowed
from .choice import Choice
from .key import Key
from .problem import Problem
from .store import lookup


def select(problem: Problem, may_read: bool = True) -> Choice:
    """What was tuned for the problem, else the heuristic's choice; tables never change what is computed.

    Args:
        problem: What is to be computed, and where.
        may_read: False in a graph capture, where no file is read.
    """
    tuned = lookup(Key.of(problem), may_read)
    return tuned if tuned is not None and allowed(problem, tuned) else problem.heuristic()
