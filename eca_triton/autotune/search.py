"""The fastest choice for one key: candidates are compiled and pruned, timed, and the winner is verified."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

import torch

from ..launch.call import Call
from ..ops.schema import ECA
from ..tuning.allowed import allowed
from ..tuning.candidates import candidates
from ..tuning.choice import choose
from ..tuning.config import Choice, Device
from ..tuning.key import Key
from ..tuning.problem import EcaProblem, Problem
from ..tuning.table import Entry
from ..util.timing import Call as Timed
from ..util.timing import input_sets
from .examples import Example
from .machine import Machine, problems_of
from .verify import disagreement

SCREENING = 5  # samples of every candidate by itself: enough to tell the fast from the slow
FINALISTS = 4  # of which the order is found by more samples, taken in turn
SAMPLES = 30
LEAST_GAIN = 0.02  # below, the order is one of noise, and the heuristic, which knows every batch size, stays


@dataclass(frozen=True)
class Task:
    """A key and how to find out about it.

    Attributes:
        key: What the result is filed under.
        problem: Of the launch, as the key has it.
        asked: As the example's launch asks about it: with the residual that a template does not know of.
        choices: What to try, the heuristic's first.
        example: A call of this key.
        sites: How often the model makes such calls.
    """

    key: Key
    problem: Problem
    asked: Problem
    choices: tuple[Choice, ...]
    example: Example
    sites: int


@dataclass(frozen=True)
class Outcome:
    """Result of a search.

    Attributes:
        task: What was searched for.
        choice: The fastest that computes the right result; None where none does.
        time_us: Median of a call as chosen; 0 if there is none.
        heuristic_us: Median of one as the heuristic chooses; None where it cannot be launched.
        timed: How many candidates were.
        dropped: Why candidates were not timed, or do not count.
        wall_s: How long it took.
    """

    task: Task
    choice: Choice | None
    time_us: float
    heuristic_us: float | None
    timed: int
    dropped: Mapping[Choice, str] = field(default_factory=dict)
    wall_s: float = 0.0

    @property
    def gain(self) -> float:
        """The share of the heuristic's time that is saved."""
        if self.choice is None or self.heuristic_us is None:
            return 0.0
        return 1.0 - self.time_us / self.heuristic_us

    @property
    def entry(self) -> Entry | None:
        """For the table; None where the heuristic may as well choose."""
        if self.choice is None or self.heuristic_us is None or self.gain < LEAST_GAIN:
            return None
        return Entry(self.choice, round(self.time_us, 3), round(self.heuristic_us, 3))

    @property
    def problem(self) -> str:
        """Return what is wrong with the heuristic's own choice, or ""."""
        return self.dropped.get(choose(self.task.problem), "")


Watch = Callable[[Choice, float, float], None]
"""Called with every candidate that was timed: its microseconds, and the least so far."""


def tasks_of(examples: Mapping[Example, int], device: Device) -> list[Task]:
    """One task per distinct key where there is something to choose, in the order of the sites.

    Of a call, those of passes come first: what they are against the other kernels depends on their configs.
    """
    tasks: dict[Key, Task] = {}
    for example, sites in examples.items():
        for task in _tasks(example, sites, device):
            known = tasks.get(task.key, task)
            # A kernel that has room for a residual runs without one, too.
            most = max(known, task, key=lambda each: each.asked.maps)
            tasks[task.key] = replace(most, sites=sites if known is task else known.sites + sites)
    return list(tasks.values())


def _tasks(example: Example, sites: int, device: Device) -> Iterator[Task]:
    call = example.call(torch.device("meta"))
    problems = [] if call is None else problems_of(call, device)
    for asked in sorted(problems, key=lambda each: isinstance(each, EcaProblem)):
        problem, of = asked, example
        if asked.kind == "pool" and example.operator is ECA:
            of = example.gates()  # all that is left of a template, and the more exact comparison
        elif example.templated and isinstance(asked, EcaProblem):
            problem = asked.without_residual()
        elif example.templated:
            continue  # behind the gates stands Inductor's own code
        key = Key.of(problem)
        if key is None:
            continue
        heuristic, *others = candidates(problem)
        choices = (heuristic, *(choice for choice in others if allowed(asked, choice)))
        if len(choices) > 1:
            yield Task(key, problem, asked, choices, of, sites)


def search(task: Task, machine: Machine, watch: Watch = lambda choice, time_us, best_us: None) -> Outcome:
    """Find the fastest choice for a task; nothing is written."""
    begin = time.monotonic()
    heuristic = task.choices[0]
    dropped = _not_worth_trying(task, machine)
    calls = _calls(task.example, machine)
    timed: dict[Choice, float] = {}
    for choice in task.choices:
        if choice in dropped:
            continue
        try:
            timed |= _medians([choice], task, calls, machine, SCREENING)
        except Exception as error:  # Triton's own have no common class: too many registers for a launch, ...
            dropped[choice] = _short(error)
            _stop_if_broken(machine.device)
            continue
        watch(choice, timed[choice], min(timed.values()))
    fastest = sorted(timed, key=timed.__getitem__)[:FINALISTS]
    finalists = [*fastest, *([heuristic] if heuristic in timed and heuristic not in fastest else [])]
    medians = _medians(finalists, task, calls, machine, SAMPLES)
    winner = None
    for choice in sorted(finalists, key=medians.__getitem__):
        wrong = disagreement(calls[0], partial(machine.launch, calls[0], task.asked, choice))
        if not wrong:
            winner = choice
            break
        dropped[choice] = f"wrong result: {wrong}"
    return Outcome(
        task=task,
        choice=winner,
        time_us=0.0 if winner is None else medians[winner],
        heuristic_us=medians.get(heuristic),
        timed=len(timed),
        dropped=dropped,
        wall_s=time.monotonic() - begin,
    )


def name_of(choice: Choice) -> str:
    """A choice in one line, as triton.autotune prints its configs."""
    numbers = (f"{name}: {value}" for name, value in choice.integers().items())
    return ", ".join([choice.kernel, *numbers])


def _not_worth_trying(task: Task, machine: Machine) -> dict[Choice, str]:
    """Return what their code says against all candidates but the first, the heuristic's, which sets the mark.

    All are compiled here, in parallel.
    """
    meta = task.example.call(torch.device("meta"))
    assert meta is not None, "it has a key"
    usual, *reasons = machine.objections(
        [partial(machine.launch, meta, task.asked, each) for each in task.choices]
    )
    # What is said against the heuristic's choice as well may be about another launch of the call.
    return {
        choice: reason
        for choice, reason in zip(task.choices[1:], reasons, strict=True)
        if reason and reason != usual
    }


def _calls(example: Example, machine: Machine) -> list[Call]:
    """The call on so many sets of tensors that none finds its own in L2."""
    first = example.call(machine.device)
    assert first is not None, "it has a key"
    map_bytes = sum(tensor.numel() * tensor.element_size() for tensor in first.maps)
    seeds = range(1, input_sets(map_bytes, machine.properties.l2_bytes))
    return [first, *(call for call in (example.call(machine.device, seed) for seed in seeds) if call)]


def _medians(
    choices: list[Choice], task: Task, calls: list[Call], machine: Machine, samples: int
) -> dict[Choice, float]:
    def launching(choice: Choice) -> Timed:
        return lambda index: machine.launch(calls[index], task.asked, choice)

    named = {name_of(choice): choice for choice in choices}
    times = machine.timer({name: launching(choice) for name, choice in named.items()}, len(calls), samples)
    return {named[name]: statistics.median(each) for name, each in times.items()}


def _stop_if_broken(device: torch.device) -> None:
    """A fault in a kernel makes every later call fail: then its error ends the search."""
    torch.zeros(1, device=device).item()


def _short(error: Exception) -> str:
    lines = str(error).strip().splitlines() or ["no message"]
    return f"{type(error).__name__}: {lines[0][:200]}"
