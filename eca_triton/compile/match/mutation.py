"""What a call of a Dynamo graph writes to, and whether something is the same at two places of a graph.

An operator's schema says what it writes to, and so does the signature of a function of torch's that is
written in Python. A call that neither vouches for counts as writing to everything that it is given. Tensors
that share memory are one thing here: views, aliases, `detach`.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import fx
from torch.fx.node import map_arg

from ..reasons import WRAPPED, NoMatchError
from .graph import NO_TENSOR, bind_by, name_of, op_name, package, value

IN_PLACE_OPERATORS = {
    "iadd", "iand", "iconcat", "ifloordiv", "ilshift", "imatmul", "imod", "imul", "ior", "ipow", "irshift",
    "isub", "itruediv", "ixor", "setitem", "delitem",
}  # fmt: skip
# Reading calls that ATen has no operator for.
READING = {
    *NO_TENSOR, "len", "int", "float", "bool", "abs", "max", "min", "sum", "pow", "round", "divmod",
    "half", "double", "bfloat16", "long", "short", "char", "byte", "cpu", "cuda", "type",
}  # fmt: skip
# Written in Python; what they write to, they have a parameter for.
WITH_SIGNATURES = {"torch.nn.functional", "torch.functional", "einops.einops"}
# Parameters of batch and instance norms that operators write to without a word in their schemas.
RUNNING = {"running_mean", "running_var"}
TRAINING = ("training", "use_input_stats", "train")
GRAD_MODES = {"_set_grad_enabled", "_enter_inference_mode", "_exit_inference_mode"}


def written(node: fx.Node) -> list[fx.Node]:
    """Nodes among the arguments whose memory this call changes, or may change, in place."""
    target, name = node.target, name_of(node)
    if node.op not in ("call_function", "call_method", "call_module") or target is getattr:
        return []
    if isinstance(target, torch._ops.OpOverload):
        named = _by_schemas(node, (target,))
    elif isinstance(target, torch._ops.OpOverloadPacket):
        named = _by_schemas(node, _overloads(target))
    elif package(target) == "_operator":
        return _nodes(node.args[:1]) if name in IN_PLACE_OPERATORS else []
    elif getattr(target, "__module__", None) in WITH_SIGNATURES and inspect.isfunction(target):
        named = _by_signature(node, target)
    elif name in READING:
        named = []
    else:
        named = _by_schemas(node, _operators(name))
    if named is None:
        return list(node.all_input_nodes)
    return _nodes([*named, node.kwargs.get("out")])


def _by_schemas(node: fx.Node, overloads: tuple[Any, ...]) -> list[Any] | None:
    """Arguments that one of the overloads writes to; None where there is none to ask."""
    if not overloads:
        return None
    found: list[Any] = []
    for overload in overloads:
        specs = overload._schema.arguments
        bound = bind_by(node, [spec.name for spec in specs])
        found += [
            bound[spec.name]
            for spec in specs
            if spec.name in bound and spec.alias_info is not None and spec.alias_info.is_write
        ]
        found += _statistics(bound)
    return found


def _by_signature(node: fx.Node, function: Callable[..., Any]) -> list[Any] | None:
    """Arguments that a function says to write to by a parameter; None where it does not tell."""
    names = _parameters(function)
    if names is None:
        return None
    bound = bind_by(node, names)
    if bound.get("max_norm") is not None:  # an embedding rescales its weight
        return None
    in_place = [bound.get(names[0])] if bound.get("inplace", False) is not False else []
    return [*in_place, bound.get("out"), *_statistics(bound)]


def _statistics(bound: dict[str, Any]) -> list[Any]:
    """Running statistics that a norm updates."""
    trains = next((bound[name] for name in TRAINING if name in bound), None)
    # Not given: batch norm does not train, instance norm does, and only that has another name for it.
    return [] if trains is False else [bound[name] for name in RUNNING & bound.keys()]


@functools.cache
def _parameters(function: Callable[..., Any]) -> tuple[str, ...] | None:
    try:
        return tuple(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return None


@functools.cache
def _operators(name: str) -> tuple[Any, ...]:
    """ATen's operators of that name."""
    packet = getattr(torch.ops.aten, name, None) if name.isidentifier() and name[:2] != "__" else None
    return _overloads(packet) if isinstance(packet, torch._ops.OpOverloadPacket) else ()


@functools.cache
def _overloads(packet: Any) -> tuple[Any, ...]:
    return tuple(getattr(packet, name) for name in packet.overloads())


def _nodes(arguments: Iterable[Any]) -> list[fx.Node]:
    """All nodes in a nest of arguments."""
    found: list[fx.Node] = []
    map_arg(tuple(arguments), found.append)
    return found


def storage(node: Any) -> int | None:
    """Return the identity of the memory behind a tensor node; views share it.

    Raises:
        NoMatchError: there is none, since a transform of torch.func wraps the tensor.
    """
    tensor = value(node)
    try:
        return tensor.untyped_storage()._cdata if isinstance(tensor, torch.Tensor) else None
    except NotImplementedError as error:
        raise NoMatchError(WRAPPED, str(error)) from None


def changed_between(node: fx.Node, first: fx.Node, last: fx.Node) -> bool:
    """Return whether a call from `first` up to, not including, `last` writes into the memory of `node`."""
    return _meets(node, first, last, written)


def touched_between(node: fx.Node, first: fx.Node, last: fx.Node) -> bool:
    """Return whether a call from `first` up to, not including, `last` reads or writes `node`'s memory."""
    return _meets(node, first, last, lambda call: call.all_input_nodes)


def _meets(node: fx.Node, first: fx.Node, last: fx.Node, of: Callable[[fx.Node], list[fx.Node]]) -> bool:
    """Return whether the memory of `node` is that of an argument that `of` names of one of these calls."""
    memory = storage(node)
    return any(storage(arg) == memory for call in _calls(first, last) for arg in of(call))


def _calls(first: fx.Node, last: fx.Node) -> Iterator[fx.Node]:
    """Nodes in graph order from `first` up to, not including, `last`."""
    current = first
    while current is not last and current.op != "output":
        yield current
        current = current.next


def same_grad_mode(calls: Sequence[fx.Node]) -> bool:
    """Return whether gradients are recorded at all of these calls, given in graph order, or at none.

    What begins and ends between two of them, as where a parametrised weight is computed, does not count.
    """
    if not any(op_name(call) in GRAD_MODES for call in _calls(calls[0], calls[-1])):
        return True
    modes = _grad_modes(calls[0].graph)
    return len({modes[call] for call in calls}) == 1


def _grad_modes(graph: fx.Graph) -> dict[fx.Node, tuple[object, ...]]:
    """The mode at each node: what the last switch before it says, and the inference modes around it."""
    # Before the first switch it is the graph's own, in which Dynamo hands the graph on.
    grad: object = torch.is_grad_enabled()
    inference: tuple[fx.Node, ...] = ()
    modes: dict[fx.Node, tuple[object, ...]] = {}
    for node in graph.nodes:
        name = op_name(node)
        if name == "_set_grad_enabled":
            grad = node.args[0]
        elif name == "_enter_inference_mode":
            inference += (node,)
        elif name == "_exit_inference_mode":
            inference = tuple(entered for entered in inference if entered is not node.args[0])
        modes[node] = grad, *inference
    return modes
