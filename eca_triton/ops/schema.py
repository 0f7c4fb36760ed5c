"""The operators of the `eca_triton` namespace: schemas, arguments, output allocation and fakes.

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

from . import checks

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
    def bn(self) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None] | None:
        """The four vectors of the batch norm before, or None."""
        if self.bn_mean is None or self.bn_var is None:
            return None
        return self.bn_mean, self.bn_var, self.bn_weight, self.bn_bias

    @property
    def gate_options(self) -> dict[str, Any]:
        """The keyword arguments of a gate, as the reference and the launcher take them."""
        return {
            "bn": self.bn,
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


def check_and_allocate_gate(*args: Any, **kwargs: Any) -> tuple[SiteArguments, Tensor]:
    """Checked arguments of `gate` and its output, uninitialised: the same for the op and for its fake."""
    a = SiteArguments(*args, **kwargs)
    checks.check_site("gate", a)
    return a, a.x.new_empty(a.x.shape[:2], dtype=a.out_dtype)


def check_and_allocate_eca(*args: Any, **kwargs: Any) -> tuple[SiteArguments, Tensor]:
    """As `check_and_allocate_gate`, for `eca`."""
    a = SiteArguments(*args, **kwargs)
    checks.check_site("eca", a)
    return a, torch.empty_like(a.x, dtype=a.out_dtype)


def check_and_allocate_gate_from_pool(*args: Any, **kwargs: Any) -> tuple[PoolArguments, Tensor]:
    """As `check_and_allocate_gate`, for `gate_from_pool`."""
    a = PoolArguments(*args, **kwargs)
    checks.check_pool("gate_from_pool", a)
    return a, a.pooled.new_empty(a.pooled.shape, dtype=a.out_dtype)


def check_and_allocate_gate_from_pool_backward(
    *args: Any, **kwargs: Any
) -> tuple[PoolBackwardArguments, tuple[Tensor, Tensor, Tensor]]:
    """As `check_and_allocate_gate`, for `gate_from_pool_backward`."""
    a = PoolBackwardArguments(*args, **kwargs)
    checks.check_pool_backward("gate_from_pool_backward", a)
    d_pooled = a.pooled.new_empty(a.pooled.shape)
    d_bias = (a.weight if a.bias is None else a.bias).new_empty(1)
    return a, (d_pooled, a.weight.new_empty(a.weight.shape), d_bias)


def _fake_gate(*args: Any, **kwargs: Any) -> Tensor:
    return check_and_allocate_gate(*args, **kwargs)[1]


def _fake_eca(*args: Any, **kwargs: Any) -> Tensor:
    return check_and_allocate_eca(*args, **kwargs)[1]


def _fake_gate_from_pool(*args: Any, **kwargs: Any) -> Tensor:
    return check_and_allocate_gate_from_pool(*args, **kwargs)[1]


def _fake_gate_from_pool_backward(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor, Tensor]:
    return check_and_allocate_gate_from_pool_backward(*args, **kwargs)[1]


torch.library.register_fake("eca_triton::gate", _fake_gate, lib=LIBRARY)
torch.library.register_fake("eca_triton::eca", _fake_eca, lib=LIBRARY)
torch.library.register_fake("eca_triton::gate_from_pool", _fake_gate_from_pool, lib=LIBRARY)
torch.library.register_fake("eca_triton::gate_from_pool_backward", _fake_gate_from_pool_backward, lib=LIBRARY)
