"""Kernels with tickets on counters that nobody zeroed: no access is out of bounds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import inductor_code
import pytest
import torch
import torch.nn.functional as F
from backward_cases import Step
from kernel_cases import FEW_SMS, LAYOUTS, Site, batch_norm
from one_launch import config_of, launcher_of
from torch import Tensor, nn

from eca_triton.compile.inductor import lowering
from eca_triton.launch import replay as direct
from eca_triton.tuning.config import Choice
from eca_triton.tuning.families.lagged import LaggedConfig, lagged_config
from eca_triton.tuning.problem import Problem

SHAPE = (2, 16, 16, 24)
# Elements around a tensor, in its own size: more than a launch can reach whose tickets follow another's.
ROOM = 4


class LaunchedAgain:
    """Launches a kernel on tensors with room around them, and once more on counters as they are then.

    Attributes:
        counts: What the counters hold before the second launch; None: what the first one left.
        kernels: Launched so far.
    """

    def __init__(self, counts: int | None) -> None:
        self.counts, self.kernels = counts, 0

    def __call__(self, kernel: Any, grid: tuple[int, ...], args: Any, options: Any) -> None:
        args = [roomy(arg) if isinstance(arg, Tensor) else arg for arg in args]
        tensors = [arg for arg in args if isinstance(arg, Tensor)]
        (counters,) = (tensor for tensor in tensors if tensor.dtype == torch.int32)
        kernel[grid](*args, **options)
        assert counters[-1] == grid[0], "every program draws a ticket"
        if self.counts is not None:
            counters.fill_(self.counts)
        before = [memory(tensor).clone() for tensor in tensors]
        kernel[grid](*args, **options)
        assert counters[-1].item() % 2**32 == ((self.counts or grid[0]) + grid[0]) % 2**32
        for tensor, old in zip(tensors, before, strict=True):
            new = memory(tensor)
            changed = (new != old) & ~(new.isnan() & old.isnan())
            inside = changed.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())
            if tensor is not counters and self.counts is None:
                assert not inside.any(), "tickets past the last task have none"
            inside.fill_(False)
            assert not changed.any(), "memory around a tensor"
        self.kernels += 1


def roomy(tensor: Tensor) -> Tensor:
    """A copy in the middle of more memory."""
    size = ROOM * max(tensor.numel(), 64)
    storage = torch.full((2 * size + tensor.numel(),), 77, dtype=tensor.dtype)
    return storage.as_strided(tensor.shape, tensor.stride(), size).copy_(tensor)


def memory(tensor: Tensor) -> Tensor:
    """All of it, flat."""
    return tensor.new_empty(0).set_(tensor.untyped_storage())


@pytest.fixture(params=[None, -3, 2**31 - 2], ids=["left by a launch", "negative", "largest"])
def again(request: pytest.FixtureRequest) -> LaunchedAgain:
    return LaunchedAgain(request.param)


in_both_layouts = pytest.mark.parametrize("layout", ["contiguous", "channels_last"])


def impatient(config: LaggedConfig) -> LaggedConfig:
    """The same, for programs that would wait for sums that nobody makes."""
    return replace(config, patience=1)


@in_both_layouts
@pytest.mark.parametrize("direction", ["forward", "backward", "backward that recomputes"])
def test_a_launch_on_counters_of_another_one(layout: str, direction: str, again: LaunchedAgain) -> None:
    x, dy = (LAYOUTS[layout](SHAPE, torch.float16) for _ in range(2))
    site = Site(x, torch.randn(3), bn=batch_norm(16, torch.float32), residual=x, activation="relu")
    bits = direction != "backward that recomputes"
    if direction == "forward":
        mask = torch.empty(2, x[0].numel() // 8, dtype=torch.uint8)
        call = site.call(torch.empty_like(x), mask=mask)
    else:
        call = Step(site, dy, bits=bits, moments=True, store_p=bits).call()
    with direct.launching(again):
        launcher_of("lagged", call)(call, impatient(config_of("lagged", call, FEW_SMS)))
    assert again.kernels == 1


class Block(nn.Module):
    """Our op, and what Inductor puts into its kernel."""

    def forward(self, x: Tensor, weight: Tensor, residual: Tensor) -> Tensor:
        return F.relu(torch.ops.eca_triton.eca(x, weight) + residual)


@in_both_layouts
def test_generated_code_on_counters_of_another_launch(
    layout: str, again: LaunchedAgain, monkeypatch: pytest.MonkeyPatch
) -> None:
    def chosen(problem: Problem) -> Choice:
        config = lagged_config(replace(problem, device=FEW_SMS))
        assert config is not None
        return Choice("lagged", impatient(config))

    launched: Callable[..., None] = inductor_code.Kernel.run

    def run(kernel: inductor_code.Kernel, *args: Any, **options: Any) -> None:
        if kernel.is_template:
            *tensors, x, y, z = args
            again(kernel.function, (x, y, z), tensors, {})
        launched(kernel, *args, **options)

    lowering.install()
    monkeypatch.setattr(lowering, "select", chosen)
    monkeypatch.setattr(inductor_code.Kernel, "run", run)
    x, residual = (LAYOUTS[layout](SHAPE, torch.float32) for _ in range(2))
    if layout == "channels_last":
        x, residual = (tensor.contiguous(memory_format=torch.channels_last) for tensor in (x, residual))
    inputs = x, torch.randn(1, 1, 3), residual
    code = inductor_code.generated(Block(), inputs, channels_last=layout == "channels_last")
    inductor_code.run(code, list(inputs))
    assert again.kernels == 1
