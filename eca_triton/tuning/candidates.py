"""What tuning tries for a problem: the heuristic's choice and its neighbourhood, pruned without a GPU.

Every kernel that takes the problem gives the configs within its budget of registers; those that leave
multiprocessors idle or mostly move padding are dropped, and of many the ones nearest to the heuristic's stay.
"""

from __future__ import annotations

from math import log2

from .allowed import allowed
from .choice import choose
from .config import Choice
from .families.blocks import programs
from .kernels import KERNELS
from .problem import Problem

MOST = 32  # of a problem: compiling one takes seconds of a core
RUN_TIME = {"lag"}  # what no kernel is compiled for


def candidates(problem: Problem) -> list[Choice]:
    """Choices to time, the heuristic's first, then the nearest to it; two passes, where possible, come last.

    Args:
        problem: What is to be computed, and where.
    """
    first, two_pass = choose(problem), Choice("two_pass", None)
    last = [two_pass] if allowed(problem, two_pass) else []
    kernels = KERNELS[problem.kind].values()
    found = [choice for kernel in kernels for choice in kernel.candidates(problem, first)]
    found = [choice for choice in dict.fromkeys(found) if choice != first and allowed(problem, choice)]
    busy = _busiest([first, *found], problem)
    found = [choice for choice in found if programs(choice, problem) >= busy]
    found.sort(key=lambda choice: _distance(choice, first))
    return list(dict.fromkeys([first, *found[: MOST - 1 - len(last)], *last]))


def _busiest(choices: list[Choice], problem: Problem) -> int:
    """Programs that a launch must have: half as many as multiprocessors, if any choice has so many."""
    most = max(programs(choice, problem) for choice in choices)
    return min(problem.device.num_sms // 2, most)


def _distance(choice: Choice, other: Choice) -> float:
    """Doublings from one config to the other; other kernels are farther than any config of the same."""
    if choice.kernel != other.kernel:
        return 100.0 + _doublings(choice)
    here, there = _numbers(choice), _numbers(other)
    return sum(abs(log2(here[name] + 1) - log2(there[name] + 1)) for name in here)


def _doublings(choice: Choice) -> float:
    """A measure for configs of a kernel that the heuristic did not choose: the largest blocks come last."""
    return sum(log2(value + 1) for name, value in _numbers(choice).items() if name.startswith("block"))


def _numbers(choice: Choice) -> dict[str, int]:
    return {name: value for name, value in choice.integers().items() if name not in RUN_TIME}
