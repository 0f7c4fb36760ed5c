"""The operators of a training step, `eca_forward` and `eca_backward`: as `schema` for the others.

What backward needs besides the inputs: `pooled`, the means of x, fp32 [N, C] (fp64 for fp64 x), and `mask`,
one bit per element. The order of the bits is an option of both operators, no property of the tensors: x may
have other strides when backward runs, after Inductor, checkpointing or a hook that moved what was saved.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..activations import SELECTING
from ..reference import compute_dtype
from .schema import batch_norm_of, define


class ForwardArguments(NamedTuple):
    """The arguments of `eca_forward`."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None = None
    bn_mean: Tensor | None = None
    bn_var: Tensor | None = None
    bn_weight: Tensor | None = None
    bn_bias: Tensor | None = None
    residual: Tensor | None = None
    bn_eps: float = 1e-5
    circular: bool = False
    gate: str = "sigmoid"
    gain: float = 1.0
    activation: str = "identity"
    mask_order: str = "none"
    out_dtype: torch.dtype | None = None

    @property
    def pre_activation(self) -> str:
        """None: where there is one, autograd takes the operator apart."""
        return "identity"

    @property
    def options(self) -> dict[str, Any]:
        """The keyword arguments that the launcher and, with `mask_order`, the reference take."""
        return _options(self)


class BackwardArguments(NamedTuple):
    """The arguments of `eca_backward`."""

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
    def pre_activation(self) -> str:
        """None: where there is one, autograd takes the operator apart."""
        return "identity"

    @property
    def out_dtype(self) -> None:
        """None: the dtype of `grad`."""

    @property
    def options(self) -> dict[str, Any]:
        """The keyword arguments that the launcher and, with `mask_order` and `wanted`, the reference take."""
        return _options(self)

    @property
    def wanted(self) -> dict[str, Any]:
        """The flags of the gradients that are wanted."""
        return {name: getattr(self, name) for name in self._fields if name.startswith("wants_")}

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


ECA_FORWARD: Callable[..., tuple[Tensor, Tensor, Tensor]] = define(
    "eca_forward", ForwardArguments, "(Tensor out, Tensor pooled, Tensor mask)"
)
ECA_BACKWARD: Callable[..., tuple[Tensor, ...]] = define(
    "eca_backward",
    BackwardArguments,
    "(Tensor d_x, Tensor d_residual, Tensor d_weight, Tensor d_bias, Tensor d_bn_weight, Tensor d_bn_bias)",
)


def changed(arguments: type[ForwardArguments] | type[BackwardArguments], **options: Any) -> dict[str, Any]:
    """Return the options of an operator that differ from their defaults, in the schema's order."""
    return {name: v for name, v in options.items() if v != arguments._field_defaults[name]}


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


def allocate_eca_forward(a: ForwardArguments) -> tuple[Tensor, Tensor, Tensor]:
    """The outputs of `eca_forward`, uninitialised."""
    x = a.x
    mask = (0,) if a.mask_order == "none" else (x.shape[0], math.prod(x.shape[1:]) // 8)
    return (
        torch.empty_like(x, dtype=a.out_dtype),
        x.new_empty(x.shape[:2], dtype=compute_dtype(x)),
        x.new_empty(mask, dtype=torch.uint8),
    )


def allocate_eca_backward(a: BackwardArguments) -> tuple[Tensor, ...]:
    """The outputs of `eca_backward`, uninitialised; a gradient that is not wanted has the shape [0].

    d_residual is of `d_residual_dtype`, every other gradient of its input's dtype.
    """

    def parameter(like: Tensor | None, wanted: bool) -> Tensor:
        if like is None:
            return a.x.new_empty(0)
        return like.new_empty(like.shape if wanted else 0)

    return (
        torch.empty_like(a.x) if a.wants_x else a.x.new_empty(0),
        torch.empty_like(a.x, dtype=a.d_residual_dtype)
        if a.wants_residual
        else a.x.new_empty(0, dtype=a.d_residual_dtype),
        parameter(a.weight, a.wants_band),
        parameter(a.bias, a.wants_band),
        parameter(a.bn_weight, a.wants_bn),
        parameter(a.bn_bias, a.wants_bn),
    )


def _options(a: ForwardArguments | BackwardArguments) -> dict[str, Any]:
    return {
        "bn": batch_norm_of(a),
        "bn_eps": a.bn_eps,
        "circular": a.circular,
        "gate": a.gate,
        "gain": a.gain,
        "residual": a.residual,
        "activation": a.activation,
    }
