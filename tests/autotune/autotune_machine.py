"""A machine for tests of tuning: the reference is what launches, and its times are made up."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from tuned import H200

from eca_triton.autotune.examples import Example
from eca_triton.autotune.machine import Machine
from eca_triton.autotune.search import Task, name_of, tasks_of
from eca_triton.autotune.verify import _reference
from eca_triton.launch.call import Call
from eca_triton.ops.schema import ECA
from eca_triton.reference.training import pack
from eca_triton.tuning.config import Choice, Device
from eca_triton.util import timing

SHAPE = (2, 64, 8, 8)


def by_reference(call: Call, choice: Choice | None = None) -> None:
    """A launch that is right, whatever was chosen."""
    if call.a.x.is_meta:
        return
    made = _reference(call, call.a)
    for name, out in call.outputs.items():
        if name == "mask":
            order = "contiguous" if call.layout.contiguous else "channels_last"
            out.copy_(pack(made["before"] > 0, order))
        else:
            out.copy_(made[name])


@dataclass
class Bench:
    """What is needed for a `Machine`, and what was asked of it.

    Attributes:
        time_us: Of a choice; by default 100 for the heuristic's and more for the others.
        launch: Fills a call's outputs.
        objection: What the compiled code says against a choice.
        l2_bytes: So small that two sets of inputs suffice.
        timed: Names of choices that were timed together, with the number of samples.
        cold: In how many sets of inputs.
    """

    time_us: Callable[[str], float] = lambda name: 100.0
    launch: Callable[[Call, Choice], None] = by_reference
    objection: Callable[[Choice], str] = lambda choice: ""
    properties: Device = H200
    l2_bytes: int = 1
    timed: list[tuple[tuple[str, ...], int]] = field(default_factory=list)
    cold: set[int] = field(default_factory=set)

    def machine(self) -> Machine:
        return Machine(
            torch.device("cpu"),
            replace(self.properties, l2_bytes=self.l2_bytes),
            lambda call, problem, choice: self.launch(call, choice),
            self._objections,
            self._timer,
        )

    def _objections(self, functions: Sequence[Callable[[], object]]) -> list[str]:
        return [self.objection(function.args[2]) for function in functions]

    def _timer(self, calls: timing.Calls, sets: int, samples: int) -> Mapping[str, list[float]]:
        self.timed.append((tuple(calls), samples))
        self.cold.add(sets)
        for call in calls.values():
            call(0)
            call(sets - 1)
        return {name: [self.time_us(name)] * samples for name in calls}


def meta(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def plain(shape: tuple[int, ...] = SHAPE) -> Example:
    return Example.of(ECA, (meta(*shape), meta(1, 1, 3)), {})


def task(example: Example | None = None) -> Task:
    (found,) = tasks_of({example or plain(): 3}, H200)
    return found


def faster(choice: Choice, time_us: float = 50.0):
    return lambda name: time_us if name == name_of(choice) else 100.0
