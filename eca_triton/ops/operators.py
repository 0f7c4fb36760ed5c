"""The operators but `batch_norm_eca`, a row each: what registers one, and all that others ask of it.

A new one is a class for its arguments, of which `schema.define` makes the schema, a formula, a launch, and
a row here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from . import checks, flops, launched, plain, schema, schema_projection, schema_training
from .schema import (
    ECA,
    GATE,
    GATE_FROM_POOL,
    GATE_FROM_POOL_BACKWARD,
    PoolArguments,
    PoolBackwardArguments,
    SiteArguments,
)  # fmt: skip
from .schema_projection import (
    AFFINE_FROM_PROJECTION,
    GATE_FROM_PROJECTION,
    RESCALED_PROJECTION,
    ProjectionArguments,
    RescaledArguments,
)  # fmt: skip
from .schema_training import ECA_BACKWARD, ECA_FORWARD, BackwardArguments, ForwardArguments


def _always(_: Any) -> bool:
    return True


class Operator(NamedTuple):
    """One operator; `a` are its arguments.

    Attributes:
        arguments: Holds them, with the schema's names, order and defaults.
        check: Raises for what the operator, given by name, does not take.
        allocate: Makes the outputs of a, uninitialised: for the operator and for its fake.
        formula: Computes them in plain torch.
        launch: Fills them on a GPU.
        flops: Counts floating-point operations from the arguments, with shapes in place of tensors.
        batched: The arguments with images along their first dim, into which vmap may fold its own; without
            any it makes one call per sample.
        composed: The formula is made around a `gate_from_pool`, which may be given to it.
        takes: Whether the kernels take a, if they run for its map at all.
    """

    arguments: Any
    check: Callable[[str, Any], None]
    allocate: Callable[[Any], Any]
    formula: Callable[..., Any]
    launch: Callable[[Any, Any], None]
    flops: Callable[..., int]
    batched: tuple[str, ...] = ()
    composed: bool = False
    takes: Callable[[Any], bool] = _always


OPERATORS: dict[Any, Operator] = {
    GATE: Operator(
        SiteArguments, checks.check_site, schema.allocate_gate, plain.gate, launched.gate,
        flops.convolution, batched=("x",), composed=True,
    ),
    ECA: Operator(
        SiteArguments, checks.check_site, schema.allocate_eca, plain.eca, launched.eca,
        flops.convolution, batched=("x", "residual"), composed=True,
    ),
    ECA_FORWARD: Operator(
        ForwardArguments, checks.check_forward, schema_training.allocate_eca_forward,
        plain.eca_forward, launched.eca_forward, flops.convolution,
    ),
    ECA_BACKWARD: Operator(
        BackwardArguments, checks.check_backward, schema_training.allocate_eca_backward,
        plain.eca_backward, launched.eca_backward, flops.site_backward,
    ),
    GATE_FROM_POOL: Operator(
        PoolArguments, checks.check_pool, schema.allocate_gate_from_pool,
        plain.gate_from_pool, launched.gate_from_pool, flops.convolution, batched=("pooled",),
    ),
    # Its weight gradient is a sum over N that the samples do not share.
    GATE_FROM_POOL_BACKWARD: Operator(
        PoolBackwardArguments, checks.check_pool_backward, schema.allocate_gate_from_pool_backward,
        plain.gate_from_pool_backward, launched.gate_from_pool_backward, flops.convolution_backward,
    ),
    GATE_FROM_PROJECTION: Operator(
        ProjectionArguments, checks.check_projection, schema_projection.allocate_gate_from_projection,
        plain.gate_from_projection, launched.gate_from_projection, flops.projection,
        batched=("pooled",), composed=True, takes=launched.has_values,
    ),
    AFFINE_FROM_PROJECTION: Operator(
        ProjectionArguments, checks.check_projection, schema_projection.allocate_affine_from_projection,
        plain.affine_from_projection, launched.affine_from_projection, flops.projection,
        composed=True, takes=launched.has_values,
    ),
    RESCALED_PROJECTION: Operator(
        RescaledArguments, checks.check_rescaled, schema_projection.allocate_rescaled_projection,
        plain.rescaled_projection, launched.rescaled_projection, flops.rescaled,
        batched=("x", "factor", "summand"), takes=launched.has_rows,
    ),
}  # fmt: skip


def checked(op: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
    """Return what `checked_arguments` does, and the call's outputs, uninitialised."""
    a = checked_arguments(op, *args, **kwargs)
    return a, OPERATORS[op].allocate(a)


def checked_arguments(op: Any, *args: Any, **kwargs: Any) -> Any:
    """Return the arguments of a call, checked.

    Raises:
        TypeError: a dtype is wrong.
        ValueError: a shape, a device, or a name is wrong.
    """
    row = OPERATORS[op]
    a = row.arguments(*args, **kwargs)
    row.check(name_of(op), a)
    return a


def name_of(op: Any) -> str:
    """Return an operator's name in the namespace, "gate"."""
    return str(op.name()).partition("::")[2]
