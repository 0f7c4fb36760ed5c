"""What a search needs of a GPU: tensors, code for it, launches and a clock. Tests bring others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from ..launch.call import BackwardCall, Call, EcaCall, GateCall, ProductCall
from ..tuning.choice import choose
from ..tuning.config import Choice, Device
from ..tuning.problem import EcaProblem, Problem
from ..tuning.select import Trial, trying
from ..util.timing import Timer, time_in_turn

Launch = Callable[[Call, Problem, Choice], None]


@dataclass(frozen=True)
class Machine:
    """One GPU, or what stands for it.

    Attributes:
        device: Where tensors are.
        properties: What the heuristics ask of it; its L2 must be cold when a launch is timed.
        launch: Fills a call's outputs, with a choice for one of its problems.
        objections: For functions that launch, given meta tensors: why each is not worth trying, or "".
        timer: Takes the time of calls.
    """

    device: torch.device
    properties: Device
    launch: Launch
    objections: Callable[[Sequence[Callable[[], object]]], list[str]]
    timer: Timer


def this_machine() -> Machine:
    """The current CUDA device."""
    from .ahead import objections

    device = Device.of(torch.cuda.get_device_properties())
    return Machine(
        device=torch.device("cuda", torch.cuda.current_device()),
        properties=device,
        launch=launch_as,
        objections=partial(objections, shared_limit=device.shared_bytes),
        timer=time_in_turn,
    )


def launch_as(call: Call, problem: Problem, choice: Choice) -> None:
    """Fill the outputs of a call, whose maps are in one order, with this choice for one of its problems.

    Raises:
        RuntimeError: none of the launches asks about it.
    """

    def decide(asked: Problem) -> Choice | None:
        if asked == problem:
            return choice
        # A pass is there to be tried, whatever kernel takes the map whole by now.
        return Choice("two_pass", None) if isinstance(asked, EcaProblem) else None

    trial = Trial(problem.device, decide)
    with trying(trial):
        _LAUNCHERS[type(call)](call)
    if problem not in trial.asked:
        raise RuntimeError(f"no launch of this call asks about {problem}")


def problems_of(call: Call, device: Device) -> list[Problem]:
    """Return what the launches of a call on the meta device ask about on a GPU, by the heuristics."""
    from .ahead import launches_of

    trial = Trial(device, choose)
    with trying(trial):
        launches_of(partial(_LAUNCHERS[type(call)], call))
    return list(dict.fromkeys(trial.asked))


def _gate(call: GateCall) -> None:
    from ..launch import gates

    gates.gate(call)


def _forward(call: EcaCall) -> None:
    from ..launch import forward, two_pass

    if not forward.one_launch(call):
        if call.pooled is None:
            forward.pool_and_rescale(call)
        else:
            two_pass.forward(call)


def _backward(call: BackwardCall) -> None:
    from ..launch import training, two_pass

    if not training.one_launch(call):
        two_pass.backward(call)


def _product(call: ProductCall) -> None:
    from ..launch import projection

    projection.rescaled(call)


_LAUNCHERS: dict[type, Callable[[Any], None]] = {
    GateCall: _gate,
    EcaCall: _forward,
    BackwardCall: _backward,
    ProductCall: _product,
}
