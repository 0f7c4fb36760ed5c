"""The outputs of the operators, uninitialised: the same for an operator and for its fake.

What backward needs besides the inputs: `pooled`, the means of x, fp32 [N, C] (fp64 for fp64 x), and `mask`,
one bit per element. The order of the bits is an option of both operators, no property of the tensors: x may
have other strides when backward runs, after Inductor, checkpointing or a hook that moved what was saved.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..activations import SELECTING
from ..reference import compute_dtype
from ..reference.arguments import (
    BackwardArguments,
    PoolArguments,
    PoolBackwardArguments,
    ProjectionArguments,
    RescaledArguments,
    SiteArguments,
)


def gate(a: SiteArguments) -> Tensor:
    """[N, C]."""
    return a.x.new_empty(a.x.shape[:2], dtype=a.out_dtype)


def eca(a: SiteArguments) -> Tensor:
    """The attended map, in x's memory format if that is dense."""
    return torch.empty_like(a.x, dtype=a.out_dtype)


def eca_forward(a: SiteArguments) -> tuple[Tensor, Tensor, Tensor]:
    """The attended map, the means of x and the bits: [0] where there are none."""
    x = a.x
    mask = (0,) if a.mask_order == "none" else (x.shape[0], math.prod(x.shape[1:]) // 8)
    return eca(a), x.new_empty(x.shape[:2], dtype=compute_dtype(x)), x.new_empty(mask, dtype=torch.uint8)


def eca_backward(a: BackwardArguments) -> tuple[Tensor, ...]:
    """The gradients, each of its input's dtype, d_residual of its own; [0] where one is not wanted."""

    def parameter(like: Tensor | None, wanted: bool) -> Tensor:
        if like is None:
            return a.x.new_empty(0)
        return like.new_empty(like.shape if wanted else 0)

    d_residual_dtype = a.d_residual_dtype
    return (
        torch.empty_like(a.x) if a.wants_x else a.x.new_empty(0),
        torch.empty_like(a.x, dtype=d_residual_dtype)
        if a.wants_residual
        else a.x.new_empty(0, dtype=d_residual_dtype),
        parameter(a.weight, a.wants_band),
        parameter(a.bias, a.wants_band),
        parameter(a.bn_weight, a.wants_bn),
        parameter(a.bn_bias, a.wants_bn),
    )


def gate_from_pool(a: PoolArguments) -> Tensor:
    """[N, C]."""
    return a.pooled.new_empty(a.pooled.shape, dtype=a.out_dtype)


def gate_from_pool_backward(a: PoolBackwardArguments) -> tuple[Tensor, Tensor, Tensor]:
    """Like the means, the weight and the bias; the latter is there without a bias, too."""
    d_bias = (a.weight if a.bias is None else a.bias).new_empty(1)
    return a.pooled.new_empty(a.pooled.shape), a.weight.new_empty(a.weight.shape), d_bias


def gate_from_projection(a: ProjectionArguments) -> Tensor:
    """[N, C]."""
    return a.pooled.new_empty((a.pooled.shape[0], a.projection.shape[0]), dtype=a.out_dtype)


def affine_from_projection(a: ProjectionArguments) -> tuple[Tensor, Tensor]:
    """[N, C] both."""
    return gate_from_projection(a), gate_from_projection(a)


def rescaled_projection(a: RescaledArguments) -> Tensor:
    """[N, C, *spatial], channels-last where x is, else contiguous."""
    size = (a.x.shape[0], a.projection.shape[0], *a.x.shape[2:])
    dtype = a.x.dtype if a.out_dtype is None else a.out_dtype
    if channels_last(a.x):
        return a.x.new_empty((size[0], *size[2:], size[1]), dtype=dtype).movedim(-1, 1)
    return a.x.new_empty(size, dtype=dtype)


def channels_last(x: Tensor) -> bool:
    """Return whether the channels of x [N, I, *spatial] are innermost, without gaps."""
    return not x.is_contiguous() and x.movedim(1, -1).is_contiguous()


def mask_order_for(x: Tensor, residual: Tensor | None, activation: str) -> str:
    """The order in which `eca_forward` may keep bits of a map for backward; "none": it keeps no bits.

    Kernels walk maps that are dense in one common order, and bits come in whole bytes.
    """
    if activation not in SELECTING:
        return "none"
    maps = [x] if residual is None else [x, residual]
    if all(tensor.is_contiguous() for tensor in maps):
        return "contiguous" if math.prod(x.shape[1:]) % 8 == 0 else "none"
    if all(tensor.movedim(1, -1).is_contiguous() for tensor in maps):
        return "channels_last" if x.shape[1] % 8 == 0 else "none"
    return "none"
