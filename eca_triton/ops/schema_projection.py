"""The operators for gates before a 1x1 convolution: schemas, arguments, output allocation and fakes.

`gate_from_projection` gives the gates alone; `affine_from_projection` gates times the factor and the summand
that bias and batch norm are behind the product, so that one multiplication and one addition follow it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import checks
from .schema import LIBRARY, TAGS

_ARGUMENTS = (
    "Tensor pooled, Tensor projection, Tensor weight, Tensor? bias=None, Tensor? projection_bias=None, "
    "Tensor? bn_mean=None, Tensor? bn_var=None, Tensor? bn_weight=None, Tensor? bn_bias=None, *, "
    'float bn_eps=1e-5, bool circular=False, str gate="sigmoid", ScalarType? out_dtype=None'
)
LIBRARY.define(f"gate_from_projection({_ARGUMENTS}) -> Tensor", tags=TAGS)
LIBRARY.define(f"affine_from_projection({_ARGUMENTS}) -> (Tensor, Tensor)", tags=TAGS)

GATE_FROM_PROJECTION: Callable[..., Tensor] = torch.ops.eca_triton.gate_from_projection.default
AFFINE_FROM_PROJECTION: Callable[..., tuple[Tensor, Tensor]] = (
    torch.ops.eca_triton.affine_from_projection.default
)


class ProjectionArguments(NamedTuple):
    """The arguments of both, with the schemas' names, order and defaults."""

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
        has_bn = self.bn_mean is not None and self.bn_var is not None
        return {
            "projection_bias": self.projection_bias,
            "bn": (self.bn_mean, self.bn_var, self.bn_weight, self.bn_bias) if has_bn else None,
            "bn_eps": self.bn_eps,
            "circular": self.circular,
            "gate": self.gate,
        }


def check_and_allocate_gate_from_projection(*args: Any, **kwargs: Any) -> tuple[ProjectionArguments, Tensor]:
    """Checked arguments and the output, uninitialised: the same for the op and for its fake."""
    a = ProjectionArguments(*args, **kwargs)
    checks.check_projection("gate_from_projection", a)
    return a, _empty(a)


def check_and_allocate_affine_from_projection(
    *args: Any, **kwargs: Any
) -> tuple[ProjectionArguments, tuple[Tensor, Tensor]]:
    """As `check_and_allocate_gate_from_projection`, for `affine_from_projection`."""
    a = ProjectionArguments(*args, **kwargs)
    checks.check_projection("affine_from_projection", a)
    return a, (_empty(a), _empty(a))


def _empty(a: ProjectionArguments) -> Tensor:
    return a.pooled.new_empty((a.pooled.shape[0], a.projection.shape[0]), dtype=a.out_dtype)


def _fake_gate_from_projection(*args: Any, **kwargs: Any) -> Tensor:
    return check_and_allocate_gate_from_projection(*args, **kwargs)[1]


def _fake_affine_from_projection(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
    return check_and_allocate_affine_from_projection(*args, **kwargs)[1]


torch.library.register_fake("eca_triton::gate_from_projection", _fake_gate_from_projection, lib=LIBRARY)
torch.library.register_fake("eca_triton::affine_from_projection", _fake_affine_from_projection, lib=LIBRARY)
