"""Triton's driver replaced by one that writes launches down, for CPU tensors, so that no GPU is needed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from types import SimpleNamespace
from typing import NamedTuple
from unittest import mock

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from eca_triton.launch import (
    batch_norm,
    devices,
    forward,
    gates,
    lagged,
    projection,
    tile,
    tile_channels_last,
    training,
    two_pass,
)
from eca_triton.launch import replay as direct
from eca_triton.ops import implementation
from eca_triton.ops.implementation import CALLS
from eca_triton.tuning.config import Device

KERNELS = {
    value
    for module in (
        batch_norm, forward, gates, lagged, projection, tile, tile_channels_last, training, two_pass
    )
    for value in vars(module).values()
    if isinstance(value, JITFunction)
}  # fmt: skip


class Launch(NamedTuple):
    """What the driver was handed; pointers are numbers, and `function` is one per compiled kernel."""

    function: int
    grid: tuple[int, int, int]
    stream: int
    arguments: tuple[object, ...]


@contextmanager
def recorded_launches(stream: list[int]) -> Iterator[list[Launch]]:
    """Within it the operators take CPU tensors for a GPU's, compile for sm_90, and launch into the list.

    As on a GPU, a function is gone with its module: to launch it then is an error.

    stream: its last entry is the current stream.
    """
    launches: list[Launch] = []
    functions = count()
    loaded: set[int] = set()

    class Launcher:
        def __init__(self, src: object, metadata: object) -> None:
            pass

        def __call__(self, x, y, z, stream, function, metadata, launch_metadata, enter, leave, *arguments):
            if enter is not None:
                enter(launch_metadata)
            if function not in loaded:
                raise RuntimeError(f"function {function} is launched after its module was unloaded")
            plain = tuple(a.data_ptr() if isinstance(a, torch.Tensor) else a for a in arguments)
            launches.append(Launch(function, (x, y, z), stream, plain))
            if leave is not None:
                leave(launch_metadata)

    def load_binary(*binary: object) -> tuple[int, int, int, int, int]:
        function = next(functions)
        loaded.add(function)
        return function, function, 32, 0, 1024  # the module goes by the number of its function

    def have_kernels(x: torch.Tensor) -> bool:
        return True  # and, unlike a mock, keeps no x

    driver = SimpleNamespace(
        get_current_target=lambda: GPUTarget("cuda", 90, 32),
        get_current_device=lambda: 0,
        get_current_stream=lambda device: stream[-1],
        launcher_cls=Launcher,
        utils=SimpleNamespace(
            get_device_properties=lambda device: {"max_shared_mem": 227 << 10},
            load_binary=load_binary,
            unload_module=loaded.remove,
        ),
    )
    with (
        mock.patch.object(triton.runtime.driver, "_active", driver),
        mock.patch.object(devices, "_INTERPRETER", Device(num_sms=132, warp_size=32)),
        mock.patch.object(implementation, "have_kernels", have_kernels),
    ):
        _forget()
        yield launches
        _forget()


def _forget() -> None:
    """Kernels compiled for one driver are not for another."""
    for kernel in KERNELS:
        kernel.device_caches.clear()
    for calls in CALLS.values():
        calls.plans.clear()
    direct._planned.clear()


def weight(*size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(size or (1, 1, 3), dtype=dtype)


def pooled(*size: int, dtype: torch.dtype = torch.float32, offset: int = 0) -> Tensor:
    """[N, C], `offset` elements off the start of an allocation."""
    n, c = size or (2, 8)
    return torch.randn(n * c + offset, dtype=dtype)[offset:].view(n, c)


def plans() -> int:
    """How many calls can be made again."""
    return sum(len(calls.plans) for calls in CALLS.values())
