"""The operator for gates before a 1x1 convolution: schema, arguments, output allocation and fake."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import checks
from .schema import LIBRARY, TAGS

LIBRARY.define(
    "gate_from_projection(Tensor pooled, Tensor projection, Tensor weight, Tensor? bias=None, "
    "Tensor? projection_bias=None, Tensor? bn_mean=None, Tensor? bn_var=None, Tensor? bn_weight=None, "
    'Tensor? bn_bias=None, *, float bn_eps=1e-5, bool circular=False, str gate="sigmoid", '
    "ScalarType? out_dtype=None) -> Tensor",
    tags=TAGS,
)
GATE_FROM_PROJECTION: Callable[..., Tensor] = torch.ops.eca_triton.gate_from_projection.default


class ProjectionArguments(NamedTuple):
    """The arguments of `gate_from_projection`, with the schema's names, order and defaults."""

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
    shape = a.pooled.shape[0], a.projection.shape[0]
    return a, a.pooled.new_empty(shape, dtype=a.out_dtype)


def _fake_gate_from_projection(*args: Any, **kwargs: Any) -> Tensor:
    return check_and_allocate_gate_from_projection(*args, **kwargs)[1]


torch.library.register_fake("eca_triton::gate_from_projection", _fake_gate_from_projection, lib=LIBRARY)
