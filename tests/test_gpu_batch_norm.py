"""On a CUDA device: `batch_norm_eca` in eager mode, by kernels. Skipped where there is none."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from batch_norm_call import NAMES, plain
from torch import Tensor

from eca_triton.ops.schema import BATCH_NORM_ECA

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

SHAPES = [(32, 256, 56, 56), (32, 512, 28, 28), (32, 1024, 14, 14), (32, 2048, 7, 7), (3, 19, 9, 11)]

layouts = pytest.mark.parametrize(
    "layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"]
)


def tensors_of(
    shape: tuple[int, ...], dtype: torch.dtype, layout: torch.memory_format, device: str = "cuda"
) -> dict[str, Tensor | None]:
    torch.manual_seed(0)
    c = shape[1]
    x, residual = (
        torch.randn(shape, device=device, dtype=dtype).contiguous(memory_format=layout) for _ in range(2)
    )
    weight, scale, shift = (torch.randn(size, device=device) for size in ((1, 1, 5), c, c))
    values = (x + 3, weight, None, scale, shift, residual)
    return dict(zip(NAMES, values, strict=True))


def gradient_for(tensors: dict[str, Tensor | None]) -> Tensor:
    """Zero where rounding may decide whether ReLU is open: one element there outweighs all other errors."""
    u = plain(copies(tensors, torch.float64))
    return torch.where(u.abs() > 0.25, torch.cos(u) + 1, 0.0).to(tensors["x"].dtype)


def run(function: Any, tensors: dict[str, Tensor | None], dy: Tensor) -> list[Tensor]:
    """Output and gradients."""
    out = function(tensors)
    inputs = [leaf for leaf in tensors.values() if leaf is not None]
    return [out.detach(), *torch.autograd.grad(out, inputs, dy.to(out.dtype))]


def copies(tensors: dict[str, Tensor | None], dtype: torch.dtype | None = None) -> dict[str, Tensor | None]:
    """Leaves that require gradients, in another dtype if there is one."""
    return {
        name: None if tensor is None else tensor.detach().to(dtype or tensor.dtype).requires_grad_()
        for name, tensor in tensors.items()
    }


def by_op(tensors: dict[str, Tensor | None]) -> Tensor:
    out: Tensor = BATCH_NORM_ECA(*tensors.values(), activation="relu")[0]
    return out


def by_torch(tensors: dict[str, Tensor | None]) -> Tensor:
    return plain(tensors, activation="relu")


@layouts
@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, torch.bfloat16], ids=["fp32", "fp16", "bf16"]
)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def test_it_is_as_exact_as_eager(shape: tuple[int, ...], dtype: torch.dtype, layout: Any) -> None:
    assert_earned(tensors_of(shape, dtype, layout))


def assert_earned(tensors: dict[str, Tensor | None]) -> None:
    """Errors against float64 are at most twice those of eager mode in the dtype of x, plus some ulp."""
    dtype, dy = tensors["x"].dtype, gradient_for(tensors)
    got, native, exact = (
        run(function, copies(tensors, to), dy)
        for function, to in ((by_op, None), (by_torch, dtype), (by_torch, torch.float64))
    )
    for ours, eager, truth in zip(got, native, exact, strict=True):
        error, earned = ((value.double() - truth).abs().max() for value in (ours, eager))
        assert error <= 2 * earned + 16 * torch.finfo(ours.dtype).eps * truth.abs().max()


@layouts
def test_the_same_bits_every_time(layout: Any) -> None:
    tensors = copies(tensors_of((128, 512, 28, 28), torch.bfloat16, layout))
    dy = torch.randn_like(tensors["x"])
    first = run(by_op, tensors, dy)
    for _ in range(20):
        assert all(torch.equal(one, again) for one, again in zip(first, run(by_op, tensors, dy), strict=True))
