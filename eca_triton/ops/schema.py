"""The operators of the `eca_triton` namespace: arguments, which schemas are made of, and outputs.

Registered with `torch.library.Library` rather than `custom_op`, which takes two to four times as long to
dispatch. `flexible_layout` lets Inductor pass the map in whatever dense layout it has; the default tag would
make it copy the map to the traced strides and back. No schema has an integer that depends on a shape: a new
shape recompiles nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, NamedTuple, get_type_hints

import torch
from torch import Tensor

from ..reference import BatchNorm

LIBRARY: Any = torch.library.Library("eca_triton", "FRAGMENT")  # type: ignore[no-untyped-call]
TAGS = (torch.Tag.pt2_compliant_tag, torch.Tag.flexible_layout)

_TYPES: dict[Any, str] = {
    Tensor: "Tensor", Tensor | None: "Tensor?", torch.dtype | None: "ScalarType?",
    float: "float", bool: "bool", str: "str",
}  # fmt: skip
"""What schemas call the types that arguments have."""


def define(name: str, arguments: Any, returns: str, without: Collection[str] = ()) -> Any:
    """Define an operator by the record of its arguments and return it.

    Tensors come before the star because vmap rules cannot take keyword-only tensors.

    Args:
        name: In the namespace.
        arguments: A named tuple, tensors first.
        returns: As in a schema.
        without: Fields of the record that the operator does not have.
    """
    declared: list[str] = []
    for field, kind in get_type_hints(arguments).items():
        if field in without:
            continue
        if "Tensor" not in _TYPES[kind] and "*" not in declared:
            declared.append("*")
        default = arguments._field_defaults.get(field, ...)
        text = f'"{default}"' if isinstance(default, str) else str(default)
        declared.append(f"{_TYPES[kind]} {field}" + ("" if default is ... else f"={text}"))
    LIBRARY.define(f"{name}({', '.join(declared)}) -> {returns}", tags=TAGS)
    return getattr(torch.ops.eca_triton, name).default


class SiteArguments(NamedTuple):
    """The arguments of `gate`, which has no tail, and `eca`."""

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
    """The arguments of `gate_from_pool`."""

    pooled: Tensor
    weight: Tensor
    bias: Tensor | None = None
    circular: bool = False
    gate: str = "sigmoid"
    out_dtype: torch.dtype | None = None


class PoolBackwardArguments(NamedTuple):
    """The arguments of `gate_from_pool_backward`."""

    grad: Tensor
    pooled: Tensor
    weight: Tensor
    bias: Tensor | None = None
    circular: bool = False
    gate: str = "sigmoid"


GATE: Callable[..., Tensor] = define(
    "gate", SiteArguments, "Tensor", without=("residual", "gain", "activation")
)
ECA: Callable[..., Tensor] = define("eca", SiteArguments, "Tensor")
GATE_FROM_POOL: Callable[..., Tensor] = define("gate_from_pool", PoolArguments, "Tensor")
GATE_FROM_POOL_BACKWARD: Callable[..., tuple[Tensor, Tensor, Tensor]] = define(
    "gate_from_pool_backward", PoolBackwardArguments, "(Tensor, Tensor, Tensor)"
)


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
