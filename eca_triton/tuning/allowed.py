"""Which configs may run: those that compute the right result, and that a compiler can take."""

from __future__ import annotations

from .choice import Choice
from .problem import Problem


def allowed(problem: Problem, choice: Choice) -> bool:
    """Whether a choice is one that the problem's kernels are made for."""
    return choice.kernel == problem.heuristic().kernel
