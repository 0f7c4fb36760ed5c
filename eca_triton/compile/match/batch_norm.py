"""The batch norm before a site: a call of its own, or a frozen one, spelled out in pointwise calls.

Detectors freeze batch norm: scale = weight / sqrt(var + eps), shift = bias - mean * scale, x * scale + shift,
the four vectors being buffers. Which of them is which is found by running the calls on numbers.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from .graph import bind, execute, is_tensor, op_name, tensor_inputs, tensor_users, value
from .probe import VIEWS

ARITHMETIC = {
    "add", "sub", "mul", "multiply", "div", "divide", "truediv", "neg", "pow", "reciprocal", "rsqrt", "sqrt",
}  # fmt: skip


@dataclass(frozen=True)
class BatchNorm:
    """The batch norm before a site; `eps`, `momentum` are None where Dynamo does not know them as numbers.

    `node` is its result, and `calls` all that compute it and nothing else, in graph order.
    """

    node: fx.Node
    input: fx.Node
    mean: fx.Node | None
    var: fx.Node | None
    weight: fx.Node | None
    bias: fx.Node | None
    eps: float | None
    momentum: float | None
    training: bool
    calls: tuple[fx.Node, ...]

    @property
    def vectors(self) -> list[fx.Node]:
        """Return those of its four vectors that there are."""
        return [v for v in (self.mean, self.var, self.weight, self.bias) if v is not None]

    @property
    def reader(self) -> fx.Node:
        """The call that reads `input`."""
        return next(call for call in self.calls if self.input in call.all_input_nodes)

    @property
    def is_fixed(self) -> bool:
        """Return whether it is an affine map that is known: not in training, and eps is a number."""
        return not self.training and self.eps is not None

    @property
    def takes_over(self) -> bool:
        """Return whether an op may take over the step: nobody else reads or updates the running values."""
        running = [node for node in (self.mean, self.var) if node is not None]
        known = self.eps is not None and self.momentum is not None
        return self.training and known and all(set(node.users) == {self.node} for node in running)


def batch_norm_of(node: fx.Node) -> BatchNorm | None:
    """The batch norm, along dim 1, that this call is or ends; None if it is another one."""
    if op_name(node) != "batch_norm":
        return _spelled_out(node)
    arguments = bind(node)
    eps, training = arguments.get("eps", 1e-5), arguments.get("training", False)
    momentum = arguments.get("momentum", 0.1)
    return BatchNorm(
        node=node,
        input=arguments["input"],
        mean=arguments.get("running_mean"),
        var=arguments.get("running_var"),
        weight=arguments.get("weight"),
        bias=arguments.get("bias"),
        eps=eps if isinstance(eps, float) else None,
        momentum=momentum if isinstance(momentum, float) else None,
        training=training is not False or arguments.get("running_mean") is None,
        calls=(node,),
    )


def _spelled_out(node: fx.Node) -> BatchNorm | None:
    """`node` = input * scale + shift, both made from the four vectors as batch norm makes them."""
    for product, shift in _operands(node, "add"):
        for x, scale in _operands(product, "mul"):
            if not _is_per_channel(scale, x, node) or not _is_per_channel(shift, x, node):
                continue
            if tensor_users(product) != [node] or value(x).dtype != value(node).dtype:
                return None
            calls = _calls_from_vectors([scale, shift], int(value(x).shape[1]))
            if calls is None:
                return None
            ordered = _in_graph_order({*calls, product, node}, node)
            found = _roles(scale, shift, [call for call in ordered if call in calls])
            if found is None:
                return None
            (weight, bias, mean, var), eps = found
            return BatchNorm(node, x, mean, var, weight, bias, eps, None, False, ordered)
    return None


def _operands(node: fx.Node, name: str) -> Iterator[tuple[fx.Node, fx.Node]]:
    """Both orders of the operands of a sum or product of two tensors."""
    if op_name(node) in (name, {"mul": "multiply"}.get(name)) and not node.kwargs:
        inputs = tensor_inputs(node)
        if len(inputs) == len(node.args) == 2:
            yield from itertools.permutations(inputs)


def _is_per_channel(term: fx.Node, x: fx.Node, result: fx.Node) -> bool:
    """Return whether a term is [1, C, 1, ...] or [C, 1, ...], which leaves a map [N, C, ...] its shape."""
    shape, like = value(term).shape, value(x).shape
    if len(like) < 3 or len(value(result).shape) != len(like) or not isinstance(like[1], int):
        return False
    aligned = (*(1,) * (len(like) - len(shape)), *shape)
    return aligned == (1, like[1], *(1,) * (len(like) - 2)) and like[1] > 1


def _calls_from_vectors(ends: list[fx.Node], channels: int) -> list[fx.Node] | None:
    """The views and arithmetic that lead from graph inputs [C], without gradients, to the ends."""
    calls: list[fx.Node] = []
    todo = list(ends)
    while todo:
        node = todo.pop()
        if _is_vector(node, channels) or node in calls:
            continue
        if op_name(node) not in VIEWS | ARITHMETIC or not all(map(is_tensor, node.all_input_nodes)):
            return None
        calls.append(node)
        todo += node.all_input_nodes
    return calls


def _is_vector(node: fx.Node, channels: int) -> bool:
    if node.op not in ("placeholder", "get_attr") or not is_tensor(node):
        return False
    seen = value(node)
    return tuple(seen.shape) == (channels,) and seen.is_floating_point() and not seen.requires_grad


def _roles(scale: fx.Node, shift: fx.Node, calls: list[fx.Node]) -> tuple[tuple[fx.Node, ...], float] | None:
    """Weight, bias, mean and variance among the vectors, and eps; None if the calls make no batch norm."""
    vectors = list(dict.fromkeys(n for call in calls for n in call.all_input_nodes if n not in calls))
    if len(vectors) != 4:
        return None
    channels = value(vectors[0]).numel()
    # So small that eps counts, and all different.
    numbers = torch.linspace(1e-3, 2e-3, 4 * channels, dtype=torch.float64, device="cpu").view(channels, 4)
    known: dict[fx.Node, Tensor] = dict(zip(vectors, numbers.unbind(1), strict=True))
    try:
        for call in calls:
            known[call] = execute(call, known.__getitem__)
    except (RuntimeError, TypeError, IndexError):
        return None
    made_scale, made_shift = known[scale].flatten(), known[shift].flatten()
    constants = [a for call in calls if op_name(call) == "add" for a in call.args if isinstance(a, float)]
    for eps, (weight, var) in itertools.product((*constants, 0.0), itertools.permutations(vectors, 2)):
        factor = known[weight] * (known[var] + eps).rsqrt()
        if not torch.allclose(made_scale, factor, rtol=1e-12, atol=0):
            continue
        for mean, bias in itertools.permutations([v for v in vectors if v not in (weight, var)]):
            if torch.allclose(made_shift, known[bias] - known[mean] * factor, rtol=1e-12, atol=1e-15):
                return (weight, bias, mean, var), eps
    return None


def _in_graph_order(calls: set[fx.Node], last: fx.Node) -> tuple[fx.Node, ...]:
    ordered, current = [last], last
    while len(ordered) < len(calls):
        current = current.prev
        ordered += [current] if current in calls else []
    return tuple(reversed(ordered))
