"""What stands before and after a site: batch norm, activation, gain, residual."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import fx

from ... import activations
from ..compat import is_wrapped
from .batch_norm import BatchNorm, batch_norm_of
from .graph import op_name, same_shape, tensor_inputs, tensor_users, value
from .mutation import changed_between, same_grad_mode, storage

IN_PLACE_MULTIPLICATIONS = {"mul_", "imul", "multiply_"}
MULTIPLICATIONS = {"mul", "multiply"} | IN_PLACE_MULTIPLICATIONS
ADDITIONS = {"add", "add_", "iadd"}
ACTIVATIONS = tuple(name for name in activations.ACTIVATIONS if name != "identity")
STEPS = ("gain", "residual", *ACTIVATIONS)  # of a tail, in the order in which one op takes them
BEFORE_POOLING = activations.PRE_ACTIVATIONS.keys() - {"identity"}


@dataclass(frozen=True)
class Closing:
    """The end of a block as one op computes it: activation(gain * product + residual), in these calls."""

    gain: float
    residual: fx.Node | None
    activation: str
    calls: tuple[fx.Node, ...]


def producer(
    x: fx.Node, readers: set[fx.Node], mul: fx.Node, channel_dim: int
) -> tuple[BatchNorm | None, str]:
    """The batch norm and the activation that make `x`, would make it at `mul`, and are read here alone."""
    source, activation = x, "identity"
    if op_name(x).rstrip("_") in BEFORE_POOLING and set(tensor_users(x)) == readers:
        before = tensor_inputs(x)[0]
        if set(tensor_users(before)) == {x} and not changed_between(before, before, x):
            source, activation, readers = before, op_name(x).rstrip("_"), {x}
    alone = channel_dim == 1 and set(tensor_users(source)) == readers
    batch_norm = batch_norm_of(source) if alone else None
    origin, first = (source, x) if batch_norm is None else (batch_norm.input, batch_norm.calls[0].next)
    read = [origin] if batch_norm is None else [origin, *batch_norm.vectors]
    if origin is not x and any(changed_between(node, first, mul) for node in read):
        return None, "identity"
    return batch_norm, activation


def tail_of(mul: fx.Node) -> tuple[tuple[str, fx.Node], ...]:
    """Return the calls behind the multiplication that Inductor fuses: named gain, residual, activation."""
    tail: list[tuple[str, fx.Node]] = []
    node = mul
    while len(tensor_users(node)) == 1:
        user = tensor_users(node)[0]
        name, inputs = op_name(user), tensor_inputs(user)
        if name in MULTIPLICATIONS and len(inputs) == 1:
            tail.append(("gain", user))
        elif name in ADDITIONS and len(inputs) == 2 and "residual" not in dict(tail):
            if not same_shape(user, mul):
                break
            tail.append(("residual", user))
        elif name.rstrip("_") in ACTIVATIONS:
            tail.append((name.rstrip("_"), user))
            break
        else:
            break
        node = user
    return tuple(tail)


def closing(
    mul: fx.Node, tail: tuple[tuple[str, fx.Node], ...], read: Sequence[fx.Node | None]
) -> Closing | None:
    """The tail as one op computes it at its end, from what it has `read`; None where that would differ."""
    names = [name for name, _ in tail]
    if not names or names != sorted(set(names), key=STEPS.index):
        return None
    gain, residual, activation, node = 1.0, None, "identity", mul
    for name, step in tail:
        if name == "gain":
            factors = [arg for arg in step.args if arg is not node]
            if len(factors) != 1 or not isinstance(factors[0], (int, float)):
                return None
            gain = float(factors[0])
        elif name == "residual":
            others = [arg for arg in step.args if arg is not node]
            # `alpha` of add.
            if step.kwargs or len(others) != 1 or not isinstance(others[0], fx.Node):
                return None
            residual = others[0]
            if not same_shape(residual, mul) or is_wrapped(value(residual)):
                return None
            if not value(residual).dtype.is_floating_point:
                return None
            if value(residual).dtype == torch.float64 != value(mul).dtype:  # our sum is in float32
                return None
            # By a later call, or by the sum, which may be written into it.
            if changed_between(residual, step, tail[-1][1].next):
                return None
        elif "approximate" in step.kwargs:  # of gelu
            return None
        else:
            activation = name
        node = step
    calls = tuple(step for _, step in tail)
    # What a product in place has written to is read by no op that takes it in.
    kept = [node for node in read if node is not None and storage(node) != storage(mul)]
    if any(changed_between(node, mul, calls[-1]) for node in kept) or not same_grad_mode([mul, *calls]):
        return None
    return Closing(gain, residual, activation, calls)
