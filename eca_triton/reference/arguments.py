"""The arguments of the operators, a record each: schemas are made of them, formulas and launchers take them.

Names, order and defaults are those of the schemas. x and what has its shape are [N, C, *spatial], weight is
[1, 1, k] or [k], bias [1]. A batch norm is four vectors [C]: there is one if there are mean and variance.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

Vectors = tuple[Tensor, Tensor, Tensor | None, Tensor | None]
"""Mean, variance, weight and bias of a batch norm, each [C]."""


class SiteArguments(NamedTuple):
    """A channel attention and its neighbours: activation(gain * xhat * gates + residual).

    xhat = pre_activation(batch_norm(x)). Of `eca`, of `eca_forward`, which has no pre_activation, and of
    `gate`, which has nothing behind the gates. `mask_order`: of the bits that `eca_forward` keeps.
    """

    x: Tensor
    weight: Tensor
    bias: Tensor | None = None
    bn_mean: Tensor | None = None
    bn_var: Tensor | None = None
    bn_weight: Tensor | None = None
    bn_bias: Tensor | None = None
    residual: Tensor | None = None
    bn_eps: float = 1e-5
    pre_activation: str = "identity"
    circular: bool = False
    gate: str = "sigmoid"
    gain: float = 1.0
    activation: str = "identity"
    mask_order: str = "none"
    out_dtype: torch.dtype | None = None

    @property
    def bn(self) -> Vectors | None:
        """The batch norm before."""
        return _vectors(self)


class BackwardArguments(NamedTuple):
    """The arguments of `eca_backward`: those of `eca_forward`, the gradient of its result, and what it kept.

    residual: None unless the activation's argument is recomputed; pooled: the means of x [N, C]; mask: bits.
    """

    grad: Tensor
    x: Tensor
    weight: Tensor
    bias: Tensor | None
    bn_mean: Tensor | None
    bn_var: Tensor | None
    bn_weight: Tensor | None
    bn_bias: Tensor | None
    residual: Tensor | None
    pooled: Tensor
    mask: Tensor | None = None
    bn_eps: float = 1e-5
    circular: bool = False
    gate: str = "sigmoid"
    gain: float = 1.0
    activation: str = "identity"
    mask_order: str = "none"
    wants_x: bool = True
    wants_residual: bool = False
    wants_band: bool = True
    wants_bn: bool = False

    @property
    def bn(self) -> Vectors | None:
        """The batch norm before."""
        return _vectors(self)

    @property
    def d_residual_dtype(self) -> torch.dtype:
        """The dtype in which d_residual loses nothing; without a residual at hand it is a part of `grad`."""
        if self.residual is None:
            return self.grad.dtype
        return torch.promote_types(self.grad.dtype, self.residual.dtype)

    def outputs(self, gradients: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
        """Gradients as the operator returns them: in its outputs' dtypes, and empty where there is none."""
        likes = (self.x, self.grad, self.weight, self.bias, self.bn_weight, self.bn_bias)
        dtypes = [(self.x if like is None else like).dtype for like in likes]
        dtypes[1] = self.d_residual_dtype
        return tuple(
            self.x.new_empty(0, dtype=dtype) if gradient is None else gradient.to(dtype)
            for gradient, dtype in zip(gradients, dtypes, strict=True)
        )


class PoolArguments(NamedTuple):
    """The arguments of `gate_from_pool`; pooled: [N, C]."""

    pooled: Tensor
    weight: Tensor
    bias: Tensor | None = None
    circular: bool = False
    gate: str = "sigmoid"
    out_dtype: torch.dtype | None = None


class PoolBackwardArguments(NamedTuple):
    """The arguments of `gate_from_pool_backward`; grad and pooled: [N, C]."""

    grad: Tensor
    pooled: Tensor
    weight: Tensor
    bias: Tensor | None = None
    circular: bool = False
    gate: str = "sigmoid"


class ProjectionArguments(NamedTuple):
    """The arguments of the operators for gates before a 1x1 convolution.

    pooled: the means of its input [N, I]; projection: its weight, [C, I] or [C, I, 1, ...]; the batch norm is
    behind it.
    """

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
    def bn(self) -> Vectors | None:
        """The batch norm behind the convolution."""
        return _vectors(self)


class RescaledArguments(NamedTuple):
    """The arguments of `rescaled_projection`; x: [N, I, *spatial]; factor, summand: [N, C]."""

    x: Tensor
    projection: Tensor
    factor: Tensor
    summand: Tensor | None = None
    out_dtype: torch.dtype | None = None


class BatchNormArguments(NamedTuple):
    """The arguments of `batch_norm_eca`.

    `pack_mask`: backward knows where ReLU was open from one bit per element, eight channels to a byte,
    instead of from `out`. Kernels keep bits of their own wherever they can. `group`: the name of the process
    group whose batches are one batch, as for SyncBatchNorm; "" for this process alone.
    """

    x: Tensor
    weight: Tensor
    bias: Tensor | None = None
    bn_weight: Tensor | None = None
    bn_bias: Tensor | None = None
    residual: Tensor | None = None
    bn_eps: float = 1e-5
    circular: bool = False
    gate: str = "sigmoid"
    gain: float = 1.0
    activation: str = "identity"
    pack_mask: bool = False
    out_dtype: torch.dtype | None = None
    group: str = ""


def _vectors(a: SiteArguments | BackwardArguments | ProjectionArguments) -> Vectors | None:
    return None if a.bn_mean is None or a.bn_var is None else (a.bn_mean, a.bn_var, a.bn_weight, a.bn_bias)
