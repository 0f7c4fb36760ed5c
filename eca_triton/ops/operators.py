"""The operators but `batch_norm_eca`, a row each: what registers one, and all that others ask of it.

A new one is a class for its arguments, of which `schema.define` makes the schema, a formula, a launch, and
a row here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from .. import reference
from ..reference import training as reference_training
from ..reference.arguments import (
    BackwardArguments,
    PoolArguments,
    PoolBackwardArguments,
    ProjectionArguments,
    RescaledArguments,
    SiteArguments,
)
from . import checks, flops, launched, outputs
from .schema import (
    AFFINE_FROM_PROJECTION,
    ECA,
    ECA_BACKWARD,
    ECA_FORWARD,
    GATE,
    GATE_FROM_POOL,
    GATE_FROM_POOL_BACKWARD,
    GATE_FROM_PROJECTION,
    RESCALED_PROJECTION,
)


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
        SiteArguments, checks.check_site, outputs.gate, reference.gate, launched.gate,
        flops.convolution, batched=("x",), composed=True,
    ),
    ECA: Operator(
        SiteArguments, checks.check_site, outputs.eca, reference.eca, launched.eca,
        flops.convolution, batched=("x", "residual"), composed=True,
    ),
    ECA_FORWARD: Operator(
        SiteArguments, checks.check_forward, outputs.eca_forward, reference_training.eca_forward,
        launched.eca_forward, flops.convolution,
    ),
    ECA_BACKWARD: Operator(
        BackwardArguments, checks.check_backward, outputs.eca_backward, reference_training.eca_backward,
        launched.eca_backward, flops.site_backward,
    ),
    GATE_FROM_POOL: Operator(
        PoolArguments, checks.check_pool, outputs.gate_from_pool, lambda a: reference.gate_from_pool(*a),
        launched.gate_from_pool, flops.convolution, batched=("pooled",),
    ),
    # Its weight gradient is a sum over N that the samples do not share.
    GATE_FROM_POOL_BACKWARD: Operator(
        PoolBackwardArguments, checks.check_pool_backward, outputs.gate_from_pool_backward,
        lambda a: reference.gate_from_pool_backward(*a), launched.gate_from_pool_backward,
        flops.convolution_backward,
    ),
    GATE_FROM_PROJECTION: Operator(
        ProjectionArguments, checks.check_projection, outputs.gate_from_projection,
        reference.gate_from_projection, launched.gate_from_projection, flops.projection,
        batched=("pooled",), composed=True, takes=launched.has_values,
    ),
    AFFINE_FROM_PROJECTION: Operator(
        ProjectionArguments, checks.check_projection, outputs.affine_from_projection,
        reference.affine_from_projection, launched.affine_from_projection, flops.projection,
        composed=True, takes=launched.has_values,
    ),
    RESCALED_PROJECTION: Operator(
        RescaledArguments, checks.check_rescaled, outputs.rescaled_projection,
        reference.rescaled_projection, launched.rescaled_projection, flops.rescaled,
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
