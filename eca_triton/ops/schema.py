"""The operators of the `eca_triton` namespace, defined by the records of their arguments.

Registered with `torch.library.Library` rather than `custom_op`, which takes two to four times as long to
dispatch. `flexible_layout` lets Inductor pass the map in whatever dense layout it has; the default tag would
make it copy the map to the traced strides and back. No schema has an integer that depends on a shape: a new
shape recompiles nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, get_type_hints

import torch
from torch import Tensor

from ..reference.arguments import (
    BackwardArguments,
    BatchNormArguments,
    PoolArguments,
    PoolBackwardArguments,
    ProjectionArguments,
    RescaledArguments,
    SiteArguments,
)

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


Two = tuple[Tensor, Tensor]
Three = tuple[Tensor, Tensor, Tensor]

GATE: Callable[..., Tensor] = define(
    "gate", SiteArguments, "Tensor", without=("residual", "gain", "activation", "mask_order")
)
ECA: Callable[..., Tensor] = define("eca", SiteArguments, "Tensor", without=("mask_order",))
ECA_FORWARD: Callable[..., Three] = define(
    "eca_forward", SiteArguments, "(Tensor out, Tensor pooled, Tensor mask)", without=("pre_activation",)
)
ECA_BACKWARD: Callable[..., tuple[Tensor, ...]] = define(
    "eca_backward",
    BackwardArguments,
    "(Tensor d_x, Tensor d_residual, Tensor d_weight, Tensor d_bias, Tensor d_bn_weight, Tensor d_bn_bias)",
)
GATE_FROM_POOL: Callable[..., Tensor] = define("gate_from_pool", PoolArguments, "Tensor")
GATE_FROM_POOL_BACKWARD: Callable[..., Three] = define(
    "gate_from_pool_backward", PoolBackwardArguments, "(Tensor, Tensor, Tensor)"
)
# The gates alone; or gates times the factor and the summand that bias and batch norm are behind the product,
# so that one multiplication and one addition follow it; and the convolution with both behind it.
GATE_FROM_PROJECTION: Callable[..., Tensor] = define("gate_from_projection", ProjectionArguments, "Tensor")
AFFINE_FROM_PROJECTION: Callable[..., Two] = define(
    "affine_from_projection", ProjectionArguments, "(Tensor, Tensor)"
)
RESCALED_PROJECTION: Callable[..., Tensor] = define("rescaled_projection", RescaledArguments, "Tensor")
BATCH_NORM_ECA: Callable[..., Three] = define(
    "batch_norm_eca", BatchNormArguments, "(Tensor out, Tensor mean, Tensor var)"
)


def changed(arguments: Any, **options: Any) -> dict[str, Any]:
    """Return the options of an operator that differ from their defaults, in the schema's order."""
    return {name: v for name, v in options.items() if v != arguments._field_defaults[name]}
