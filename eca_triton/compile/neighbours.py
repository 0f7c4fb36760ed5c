"""What stands before and after a site: batch norm, activation, gain, residual."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from .graph import bind, changed_between, op_name, tensor_inputs, tensor_users, value
from .probe import Sizes

IN_PLACE_MULTIPLICATIONS = {"mul_", "imul", "multiply_"}
MULTIPLICATIONS = {"mul", "multiply"} | IN_PLACE_MULTIPLICATIONS
ADDITIONS = {"add", "add_", "iadd"}
ACTIVATIONS = {"relu", "relu6", "silu", "gelu", "hardswish"}


@dataclass(frozen=True)
class BatchNorm:
    """The batch norm before a site; `eps` is None where Dynamo does not know it as a number."""

    input: fx.Node
    mean: fx.Node | None
    var: fx.Node | None
    weight: fx.Node | None
    bias: fx.Node | None
    eps: float | None
    training: bool


def producer(
    x: fx.Node, readers: set[fx.Node], conv: fx.Node, channel_dim: int
) -> tuple[BatchNorm | None, str]:
    """The batch norm and the activation that make `x` and are read by this site alone."""
    source, activation = x, "identity"
    if op_name(x).rstrip("_") in ("relu", "silu") and set(tensor_users(x)) == readers:
        before = tensor_inputs(x)[0]
        if set(tensor_users(before)) == {x} and not changed_between(before, before, x):
            source, activation, readers = before, op_name(x).rstrip("_"), {x}
    batch_norm, origin, first = None, source, x
    if op_name(source) == "batch_norm" and channel_dim == 1 and set(tensor_users(source)) == readers:
        arguments = bind(source)
        eps, training = arguments.get("eps", 1e-5), arguments.get("training", False)
        batch_norm = BatchNorm(
            input=arguments["input"],
            mean=arguments.get("running_mean"),
            var=arguments.get("running_var"),
            weight=arguments.get("weight"),
            bias=arguments.get("bias"),
            eps=eps if isinstance(eps, float) else None,
            training=training is not False or arguments.get("running_mean") is None,
        )
        origin, first = batch_norm.input, source
    if origin is not x and changed_between(origin, first, conv):
        return None, "identity"
    return batch_norm, activation


def tail_of(mul: fx.Node, sizes: Sizes) -> tuple[str, ...]:
    """What follows the multiplication, as Inductor fuses it: gain, residual, an activation."""
    tail: list[str] = []
    node = mul
    while len(tensor_users(node)) == 1:
        user = tensor_users(node)[0]
        name, inputs = op_name(user), tensor_inputs(user)
        if name in MULTIPLICATIONS and len(inputs) == 1:
            tail += [] if "gain" in tail else ["gain"]
        elif name in ADDITIONS and len(inputs) == 2 and "residual" not in tail:
            if sizes(tuple(value(user).shape)) != sizes(tuple(value(mul).shape)):
                break
            tail.append("residual")
        elif name.rstrip("_") in ACTIVATIONS:
            return (*tail, name.rstrip("_"))
        else:
            break
        node = user
    return tuple(tail)
