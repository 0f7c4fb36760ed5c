"""Each kernel's machine code, run: as exact as in the interpreter, in bounds, and ordered."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from aot import COMPILER, TARGETS
from backward_cases import Step
from batch_norm_call import NAMES, plain
from kernel_cases import LAYOUTS, NAN, Site, assert_earned, batch_norm
from torch import Tensor

from eca_triton.launch import gates as launch_gates
from eca_triton.launch import projection as launch_projection
from eca_triton.launch.call import ProductCall
from eca_triton.ops.schema import BATCH_NORM_ECA
from eca_triton.reference.arguments import (
    PoolArguments,
    PoolBackwardArguments,
    ProjectionArguments,
    RescaledArguments,
)

from .launches import on_ptx

pytestmark = COMPILER
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
NVIDIA = [target for target in TARGETS if target.startswith("sm_")]
CHANNELS_LAST = "channels_last"


def site(shape: tuple[int, ...], dtype: torch.dtype, layout: str = "contiguous", **changes: Any) -> Site:
    """With all that a tail has."""
    x, residual = (LAYOUTS[layout](shape, dtype) for _ in range(2))
    everything = {
        "bias": torch.randn(1).to(dtype), "bn": batch_norm(shape[1], FP32), "gain": 0.7, "residual": residual,
        "activation": "relu",
    }  # fmt: skip
    return Site(x, torch.randn(1, 1, 3).to(dtype), **everything | changes)


def forward(kernel: str, *args: Any, **changes: Any) -> None:
    some = site(*args, **changes)
    out = some.map_by_kernel(kernel)
    assert_earned(out, some.by_torch()[1], some.to(torch.float64).by_torch()[1])


def step(kernel: str, *args: Any, bits: bool = True, **changes: Any) -> None:
    """Forward and backward."""
    some = site(*args, **changes)
    dy = torch.empty_like(some.x).copy_(torch.rand(some.x.shape))
    training = Step(some, dy, bits=bits, moments=True, store_p=True)
    training.assert_earned(training.by_kernels(kernel), ulps=8)


def gates() -> None:
    some = site((2, 19, 5, 7), FP16)
    assert_earned(some.gates_by_kernel(), some.by_torch()[0], some.to(torch.float64).by_torch()[0])


def pooled() -> None:
    """The gates of pooled values, and their backward."""
    values, weight, grad = torch.randn(3, 40), torch.randn(1, 1, 7), torch.randn(3, 40)
    leaves = [values.double().requires_grad_(), weight.double().requires_grad_()]
    padded = torch.nn.functional.conv1d(leaves[0][:, None], leaves[1], padding=3)[:, 0].sigmoid()
    exact = torch.autograd.grad(padded, leaves, grad.double())
    out, d_pooled, d_weight, d_bias = (torch.full(size, NAN) for size in ((3, 40), (3, 40), (1, 1, 7), (1,)))
    launch_gates.gate_from_pool(PoolArguments(values, weight), out)
    a = PoolBackwardArguments(grad, values, weight)
    launch_gates.gate_from_pool_backward(a, d_pooled, d_weight, d_bias)
    for found, wanted in zip((out, d_pooled, d_weight), (padded.detach(), *exact), strict=True):
        torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5)


def projection() -> None:
    values, matrix, weight = torch.randn(3, 33), torch.randn(40, 33), torch.randn(5)
    out = torch.full((3, 40), NAN)
    launch_projection.gates(ProjectionArguments(values, matrix, weight), out, shift=None)
    sums = (values.double() @ matrix.double().T)[:, None]
    exact = torch.nn.functional.conv1d(sums, weight.double()[None, None], padding=2)[:, 0].sigmoid()
    assert (out - exact).abs().max() < 1e-5


def product() -> None:
    x = torch.randn(2, 33, 5, 4).to(FP16, memory_format=torch.channels_last)
    matrix, factor, summand = torch.randn(24, 33, 1, 1).half(), torch.rand(2, 24), torch.randn(2, 24)
    out = torch.full((2, 5, 4, 24), NAN, dtype=FP32).movedim(-1, 1)
    launch_projection.rescaled(ProductCall(RescaledArguments(x, matrix, factor, summand), out))
    exact = torch.conv2d(x.double(), matrix.double()) * factor[:, :, None, None] + summand[:, :, None, None]
    assert (out - exact).abs().max() < 1e-4


def batch_norm_step(layout: str) -> None:
    """`batch_norm_eca` and its gradients, with batch statistics."""
    shape = (3, 16, 6, 5)
    x, residual = (LAYOUTS[layout](shape, FP32) for _ in range(2))
    tensors: dict[str, Tensor | None] = {
        "x": x, "weight": torch.randn(1, 1, 3), "bias": None, "bn_weight": torch.rand(16) + 0.5,
        "bn_bias": torch.randn(16), "residual": residual,
    }  # fmt: skip

    def by_op(given: dict[str, Any], **options: Any) -> Tensor:
        result: Tensor = BATCH_NORM_ECA(*map(given.get, NAMES), **options)[0]
        return result

    found = []
    for function, dtype in ((by_op, FP32), (plain, torch.float64)):
        leaves = {n: t.to(dtype).detach().requires_grad_() for n, t in tensors.items() if t is not None}
        out = function(tensors | leaves, activation="relu")
        found.append([out.detach(), *torch.autograd.grad(out.sum(), list(leaves.values()))])
    for got, exact in zip(*found, strict=True):
        torch.testing.assert_close(got.double(), exact, rtol=1e-4, atol=1e-4)


CASES: dict[str, Callable[[], None]] = {
    "tile": lambda: forward("tile", (2, 16, 8, 8), BF16),
    "tile of odd rows": lambda: forward("tile", (2, 13, 7, 7), FP32, pre_activation="silu"),
    "tile by windows": lambda: forward("tile", (2, 24, 7, 7), FP16, activation="hardswish"),
    "tile of one channel": lambda: forward("tile", (2, 1, 8, 8), BF16),
    "channels-last tile": lambda: forward("tile_channels_last", (2, 24, 7, 7), BF16, CHANNELS_LAST),
    "channels-last tile of one position": lambda: forward(
        "tile_channels_last", (2, 24, 1, 1), BF16, CHANNELS_LAST
    ),
    "lagged": lambda: forward("lagged", (2, 16, 16, 24), BF16),
    "channels-last lagged": lambda: forward("lagged", (3, 16, 9, 9), FP16, CHANNELS_LAST, activation="gelu"),
    "two passes": lambda: forward("two_pass", (2, 13, 9, 9), BF16),
    "two passes with gaps": lambda: forward("two_pass", (2, 6, 5, 4), FP32, "every_second"),
    "gates": gates,
    "gates of pooled values": pooled,
    "gates of a projection": projection,
    "product": product,
    "step by tiles": lambda: step("tile", (2, 16, 8, 8), FP16),
    "step by channels-last tiles": lambda: step("tile_channels_last", (2, 16, 7, 7), FP16, CHANNELS_LAST),
    "lagged step": lambda: step("lagged", (2, 16, 8, 8), FP32, CHANNELS_LAST, activation="silu", bits=False),
    "step in two passes": lambda: step("two_pass", (2, 13, 5, 5), FP32, bits=False),
    "batch norm's step": lambda: batch_norm_step("contiguous"),
    "channels-last batch norm's step": lambda: batch_norm_step(CHANNELS_LAST),
}


@pytest.mark.parametrize("target", NVIDIA)
@pytest.mark.parametrize("name", CASES)
def test_a_kernel_computes_what_eager_does_and_breaks_no_rule(name: str, target: str) -> None:
    if name == "product" and target != "sm_80":
        pytest.skip("products run at sm_80: later matrix units have instructions of their own")
    with on_ptx(target=target) as run:
        CASES[name]()
    assert run.launched
    assert not run.faults
