"""What a search needs of a GPU: tensors, code for it, launches and a clock. Tests bring others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from ..call import BackwardCall, Call, ProductCall
from ..timing import Timer, time_in_turn
from ..tuning.choice import Choice
from ..tuning.config import Device
from .examples import AnyCall

Launch = Callable[[AnyCall, Choice], None]


@dataclass(frozen=True)
class Machine:
    """One GPU, or what stands for it.

    Attributes:
        device: Where tensors are.
        properties: What the heuristics ask of it.
        l2_bytes: L2 cache, which must be cold when a launch is timed.
        launch: Fills a call's outputs as chosen.
        objections: For functions that launch, given meta tensors: why each is not worth trying, or "".
        timer: Takes the time of calls.
    """

    device: torch.device
    properties: Device
    l2_bytes: int
    launch: Launch
    objections: Callable[[Sequence[Callable[[], object]]], list[str]]
    timer: Timer


def this_machine() -> Machine:
    """The current CUDA device."""
    from .ahead import objections

    properties = torch.cuda.get_device_properties()
    device = Device.of(properties)
    return Machine(
        device=torch.device("cuda", torch.cuda.current_device()),
        properties=device,
        l2_bytes=properties.L2_cache_size,
        launch=launch_as,
        objections=partial(objections, shared_limit=device.shared_bytes),
        timer=time_in_turn,
    )


def launch_as(call: AnyCall, choice: Choice) -> None:
    """Fill the outputs of a call, whose maps are in one order, as chosen; no table is asked."""
    _LAUNCHERS[type(call)](call, choice)


def _forward(call: Call, choice: Choice) -> None:
    from .. import launch, launch_two_pass

    if not launch.launched(call, choice):
        if call.pooled is None:
            launch.two_pass(call)
        else:
            launch_two_pass.forward(call)


def _backward(call: BackwardCall, choice: Choice) -> None:
    from .. import launch_training, launch_two_pass

    if not launch_training.launched(call, choice):
        launch_two_pass.backward(call)


def _product(call: ProductCall, choice: Choice) -> None:
    from .. import launch_projection

    launch_projection.launched(call, choice)


_LAUNCHERS: dict[type, Callable[[Any, Choice], None]] = {
    Call: _forward,
    BackwardCall: _backward,
    ProductCall: _product,
}
