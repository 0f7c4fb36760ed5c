"""The operators for gates before a 1x1 convolution: arguments and the allocation of outputs.

`gate_from_projection` gives the gates alone; `affine_from_projection` gates times the factor and the summand
that bias and batch norm are behind the product, so that one multiplication and one addition follow it.
`rescaled_projection` is the convolution with both behind it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .schema import batch_norm_of, define


class ProjectionArguments(NamedTuple):
    """The arguments of the ops on pooled values."""

    pooled: Tensor
    projection: Tensor
    weight: Tensor
    bias: Tensor | None = None
    projection_bias: Tensor | None = None
    bn_mean: Tensor | None = None
    bn_var: Tensor | None = None
    bn_weight: Tensor | None = None
    bn_bias: Tensor | None = None
    bn_eps: float = 1e-5
    circular: bool = False
    gate: str = "sigmoid"
    out_dtype: torch.dtype | None = None

    @property
    def options(self) -> dict[str, Any]:
        """The arguments after the bias, as the reference and the launcher take them."""
        return {
            "projection_bias": self.projection_bias,
            "bn": batch_norm_of(self),
            "bn_eps": self.bn_eps,
            "circular": self.circular,
            "gate": self.gate,
        }


class RescaledArguments(NamedTuple):
    """The arguments of `rescaled_projection`."""

    x: Tensor
    projection: Tensor
    factor: Tensor
    summand: Tensor | None = None
    out_dtype: torch.dtype | None = None


GATE_FROM_PROJECTION: Callable[..., Tensor] = define("gate_from_projection", ProjectionArguments, "Tensor")
AFFINE_FROM_PROJECTION: Callable[..., tuple[Tensor, Tensor]] = define(
    "affine_from_projection", ProjectionArguments, "(Tensor, Tensor)"
)
RESCALED_PROJECTION: Callable[..., Tensor] = define("rescaled_projection", RescaledArguments, "Tensor")


def allocate_gate_from_projection(a: ProjectionArguments) -> Tensor:
    """The output of `gate_from_projection`, uninitialised."""
    return a.pooled.new_empty((a.pooled.shape[0], a.projection.shape[0]), dtype=a.out_dtype)


def allocate_affine_from_projection(a: ProjectionArguments) -> tuple[Tensor, Tensor]:
    """The outputs of `affine_from_projection`, uninitialised."""
    return allocate_gate_from_projection(a), allocate_gate_from_projection(a)


def allocate_rescaled_projection(a: RescaledArguments) -> Tensor:
    """The output of `rescaled_projection`, uninitialised: channels-last where x is, else contiguous."""
    size = (a.x.shape[0], a.projection.shape[0], *a.x.shape[2:])
    dtype = a.x.dtype if a.out_dtype is None else a.out_dtype
    if channels_last(a.x):
        return a.x.new_empty((size[0], *size[2:], size[1]), dtype=dtype).movedim(-1, 1)
    return a.x.new_empty(size, dtype=dtype)


def channels_last(x: Tensor) -> bool:
    """Return whether the channels of x [N, I, *spatial] are innermost, without gaps."""
    return not x.is_contiguous() and x.movedim(1, -1).is_contiguous()
