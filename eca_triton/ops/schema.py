"""The operators of the `eca_triton` namespace: schemas, arguments and the allocation of outputs.

Registered with `torch.library.Library` rather than `custom_op`, which takes two to four times as long to
dispatch. `flexible_layout` lets Inductor pass the map in whatever dense layout it has; the default tag would
make it copy the map to the traced strides and back. No schema has an integer that depends on a shape: a new
shape recompiles nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..reference import BatchNorm

LIBRARY: Any = torch.library.Library("eca_triton", "FRAGMENT")  # type: ignore[no-untyped-call]
TAGS = (torch.Tag.pt2_compliant_tag, torch.Tag.flexible_layout)

# Tensors come before the star because vmap rules cannot take keyword-only tensors.
SITE = (
    "Tensor x, Tensor weight, Tensor? bias=None, Tensor? bn_mean=None, Tensor? bn_var=None, "
    "Tensor? bn_weight=None, Tensor? bn_bias=None"
)
_SITE_OPTIONS = 'float bn_eps=1e-5, str pre_activation="identity", bool circular=False, str gate="sigmoid"'
_POOL_OPTIONS = 'bool circular=False, str gate="sigmoid"'

LIBRARY.define(f"gate({SITE}, *, {_SITE_OPTIONS}, ScalarType? out_dtype=None) -> Tensor", tags=TAGS)
LIBRARY.define(
    f"eca({SITE}, Tensor? residual=None, *, {_SITE_OPTIONS}, float gain=1.0, "
    'str activation="identity", ScalarType? out_dtype=None) -> Tensor',
    tags=TAGS,
)
LIBRARY.define(
    f"gate_from_pool(Tensor pooled, Tensor weight, Tensor? bias=None, *, {_POOL_OPTIONS}, "
    "ScalarType? out_dtype=None) -> Tensor",
    tags=TAGS,
)
LIBRARY.define(
    f"gate_from_pool_backward(Tensor grad, Tensor pooled, Tensor weight, Tensor? bias=None, *, "
    f"{_POOL_OPTIONS}) -> (Tensor, Tensor, Tensor)",
    tags=TAGS,
)

GATE: Callable[..., Tensor] = torch.ops.eca_triton.gate.default
ECA: Callable[..., Tensor] = torch.ops.eca_triton.eca.default
GATE_FROM_POOL: Callable[..., Tensor] = torch.ops.eca_triton.gate_from_pool.default
GATE_FROM_POOL_BACKWARD: Callable[..., tuple[Tensor, Tensor, Tensor]] = (
    torch.ops.eca_triton.gate_from_pool_backward.default
)


class SiteArguments(NamedTuple):
    """The arguments of `gate` and `eca`, with the schemas' names, order and defaults (`gate` has no tail)."""

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
    out_dtype: torch.dtype | None = None

    @property
    def gate_options(self) -> dict[str, Any]:
        """The keyword arguments of a gate, as the reference and the launcher take them."""
        return {
            "bn": batch_norm_of(self),
            "bn_eps": self.bn_eps,
            "pre_activation": self.pre_activation,
            "circular": self.circular,
            "gate": self.gate,
        }

    @property
    def eca_options(self) -> dict[str, Any]:
        """The keyword arguments of the whole block, as the reference and the launcher take them."""
        return {
            **self.gate_options,
            "gain": self.gain,
            "residual": self.residual,
            "activation": self.activation,
        }


class PoolArguments(NamedTuple):
    """The arguments of `gate_from_pool`, with the schema's names, order and defaults."""

    pooled: Tensor
    weight: Tensor
    bias: Tensor | None = None
    circular: bool = False
    gate: str = "sigmoid"
    out_dtype: torch.dtype | None = None


class PoolBackwardArguments(NamedTuple):
    """The arguments of `gate_from_pool_backward`, with the schema's names, order and defaults."""

    grad: Tensor
    pooled: Tensor
    weight: Tensor
    bias: Tensor | None = None
    circular: bool = False
    gate: str = "sigmoid"


def batch_norm_of(a: Any) -> BatchNorm | None:
    """The four vectors of the batch norm among an operator's arguments, if there is one."""
    return None if a.bn_mean is None or a.bn_var is None else (a.bn_mean, a.bn_var, a.bn_weight, a.bn_bias)


def allocate_gate(a: SiteArguments) -> Tensor:
    """The output of `gate`, uninitialised, as all of these: the same for the operator and for its fake."""
    return a.x.new_empty(a.x.shape[:2], dtype=a.out_dtype)


def allocate_eca(a: SiteArguments) -> Tensor:
    """The output of `eca`."""
    return torch.empty_like(a.x, dtype=a.out_dtype)


def allocate_gate_from_pool(a: PoolArguments) -> Tensor:
    """The output of `gate_from_pool`."""
    return a.pooled.new_empty(a.pooled.shape, dtype=a.out_dtype)


def allocate_gate_from_pool_backward(a: PoolBackwardArguments) -> tuple[Tensor, Tensor, Tensor]:
    """The outputs of `gate_from_pool_backward`."""
    d_pooled = a.pooled.new_empty(a.pooled.shape)
    d_bias = (a.weight if a.bias is None else a.bias).new_empty(1)
    return d_pooled, a.weight.new_empty(a.weight.shape), d_bias
