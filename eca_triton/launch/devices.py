"""What every launch asks first: whether the kernels take a tensor, the device it is for, and its config."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ..tuning.config import Choice, Device
from ..tuning.families.product import REGISTERS
from ..tuning.problem import Problem
from ..tuning.select import device_of_trial, select
from ..tuning.store import on_change
from .call import KERNEL_DTYPES
from .replay import forget_plans

_MAX_INDEX = 2**31 - 2**16  # programs and indices along one axis are int32; a block past the end must fit too
_INTERPRETER = Device(num_sms=4, warp_size=32)  # few, so that it stays quick and still cuts small maps

Kernels = Mapping[type, Callable[[Any, Any], None]]
"""By the class of a config, what launches a call with one."""

on_change(forget_plans)  # they hold the configs of the calls that they repeat


def supports(x: Tensor) -> bool:
    """Return whether kernels take x, a map [N, C, *spatial] or pooled values [N, C], and its GPU is served.

    They take fp32, fp16 and bf16, 0 to 3 spatial dims and at least one element. N * C and the number of
    spatial elements must stay below 2**31 each; their product has no limit.
    """
    return (
        x.dtype in KERNEL_DTYPES
        and 2 <= x.dim() <= 5
        and x.numel() > 0
        and x.shape[0] * x.shape[1] < _MAX_INDEX
        and x.numel() // (x.shape[0] * x.shape[1]) < _MAX_INDEX
        and (not x.is_cuda or device_of(x.device).served)
    )


def on_device_of(x: Tensor) -> AbstractContextManager[object]:
    """Triton launches on the current device; entering x's costs time, so only where it differs."""
    if x.is_cuda and x.device.index != torch.cuda.current_device():
        return torch.cuda.device(x.device)
    return nullcontext()


def captured(x: Tensor) -> bool:
    """Return whether launches on x's device become part of a graph, and files are to be left alone."""
    return x.is_cuda and torch.cuda.is_current_stream_capturing()


def chosen(x: Tensor, problem: Problem) -> Choice:
    """Kernel and config for a problem of x."""
    return select(problem, may_read=not captured(x))


def launched(call: Any, kernels: Kernels) -> bool:
    """Launches what is chosen for a call, by the class of its config; False where that is two passes."""
    x: Tensor = call.a.x
    config = chosen(x, call.problem(device_of(x.device))).config
    if config is not None:
        kernels[type(config)](call, config)
    return config is not None


def device_of(device: torch.device) -> Device:
    """Return the device that launches are made for."""
    return device_of_trial() or (_INTERPRETER if device.type == "cpu" else _gpu(device))


def at_most(registers: int, num_warps: int, device: Device) -> dict[str, int]:
    """The option by which ptxas gives a thread so many, if a program can have them; only ptxas takes one."""
    if device.vendor != "nvidia":
        return {}
    return {"maxnreg": min(registers, REGISTERS // (device.warp_size * num_warps))}


@cache
def _gpu(device: torch.device) -> Device:
    return Device.of(torch.cuda.get_device_properties(device))
