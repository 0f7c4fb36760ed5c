"""`rescaled_projection`: a 1x1 convolution and its rescaling, in the layout of its input."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from eca_triton.ops.schema import RESCALED_PROJECTION

LAYOUTS = {
    "contiguous": lambda x: x,
    "channels-last": lambda x: x.to(memory_format=torch.channels_last),
    "permuted": lambda x: x.permute(2, 3, 0, 1).contiguous().permute(2, 3, 0, 1),
}


def arguments(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    return (
        torch.randn(2, 6, 5, 3, dtype=dtype),
        torch.randn(4, 6, 1, 1, dtype=dtype),
        torch.rand(2, 4, dtype=dtype),
        torch.randn(2, 4, dtype=dtype),
    )


def by_torch(x: Tensor, matrix: Tensor, factor: Tensor, summand: Tensor) -> Tensor:
    return torch.conv2d(x, matrix) * factor[..., None, None] + summand[..., None, None]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_values_and_layout_are_those_of_a_convolution(layout: str) -> None:
    x, *others = arguments()
    x = LAYOUTS[layout](x)
    out = RESCALED_PROJECTION(x, *others)
    torch.testing.assert_close(out, by_torch(x, *others))
    assert out.is_contiguous(
        memory_format=torch.channels_last if layout == "channels-last" else torch.contiguous_format
    )


def test_there_is_one_rounding() -> None:
    x, *others = arguments(torch.bfloat16)
    want = by_torch(x.float(), *(other.float() for other in others))
    assert torch.equal(RESCALED_PROJECTION(x, *others), want.bfloat16())
    assert torch.equal(RESCALED_PROJECTION(x, *others, out_dtype=torch.float32), want)


def test_derivatives_and_vmap() -> None:
    inputs = [argument.requires_grad_() for argument in arguments()]
    assert torch.autograd.gradcheck(RESCALED_PROJECTION, inputs)
    x, matrix, *terms = arguments()
    batched = torch.vmap(RESCALED_PROJECTION, (0, None, 0, 0))(
        x[:, None], matrix, *(term[:, None] for term in terms)
    )
    torch.testing.assert_close(batched[:, 0], by_torch(x, matrix, *terms))
