"""Questions about one node of a Dynamo graph: its operation, its arguments, its value."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import sympy  # type: ignore[import-untyped]
import torch
from torch import fx
from torch.fx.node import map_arg

TRACE_META = ("stack_trace", "nn_module_stack", "source_fn_stack", "custom")
UNKNOWN_SIZE = 64  # of a symbolic size without an example
TRUSTED_PACKAGES = {"torch", "_operator", "einops", "builtins", ""}

DROPOUTS = ("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout")
# Positional names of the calls that the recognizer reads by argument.
SIGNATURES: dict[str, tuple[str, ...]] = {
    "conv1d": ("input", "weight", "bias", "stride", "padding", "dilation", "groups"),
    "conv2d": ("input", "weight", "bias", "stride", "padding", "dilation", "groups"),
    "conv3d": ("input", "weight", "bias", "stride", "padding", "dilation", "groups"),
    "conv_transpose1d": ("input", "weight", "bias"),
    "conv_transpose2d": ("input", "weight", "bias"),
    "conv_transpose3d": ("input", "weight", "bias"),
    "batch_norm": ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps"),
    "pad": ("input", "pad", "mode", "value"),
    "adaptive_avg_pool1d": ("input", "output_size"),
    "adaptive_avg_pool2d": ("input", "output_size"),
    "adaptive_avg_pool3d": ("input", "output_size"),
    "avg_pool1d": ("input", "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad"),
    "avg_pool2d": (
        "input", "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override",
    ),
    "avg_pool3d": (
        "input", "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override",
    ),
    "mean": ("input", "dim", "keepdim", "dtype"),
    "sum": ("input", "dim", "keepdim", "dtype"),
    **dict.fromkeys(DROPOUTS, ("input", "p", "training", "inplace")),
    "relu": ("input", "inplace"),
    "silu": ("input", "inplace"),
}  # fmt: skip
# What a tensor is asked beside its elements.
NO_TENSOR = {"size", "dim", "numel", "shape", "ndim", "dtype", "device"}
ALIASES = {
    "axis": "dim",
    "keepdims": "keepdim",
    "self": "input",
    "tensor": "input",
    "x": "input",
    "train": "training",
}


def op_name(node: fx.Node) -> str:
    """The operation's name, the same for function, method and operator; "" for anything not torch's.

    And for a call with `out=`: it is no function of its arguments, and nothing may take its place.
    """
    return "" if node.kwargs.get("out") is not None else name_of(node)


def name_of(node: fx.Node) -> str:
    """The same, wherever the result is written to."""
    if node.op == "call_method":
        return str(node.target)
    if node.op != "call_function":
        return ""
    target = node.target
    if target is getattr:
        return str(node.args[1])
    packet = getattr(target, "overloadpacket", target)
    if isinstance(packet, torch._ops.OpOverloadPacket):
        namespace, _, name = str(packet._qualified_op_name).partition("::")
        return name if namespace == "aten" else ""
    return getattr(target, "__name__", "") if package(target) in TRUSTED_PACKAGES else ""


def package(target: Any) -> str:
    """Return the name of the package that a function comes from; "" for much of what is written in C."""
    return (getattr(target, "__module__", None) or "").split(".")[0]


def bind(node: fx.Node) -> dict[str, Any]:
    """Arguments of a call in SIGNATURES by name. ATen's `batch_norm` has an order of its own."""
    if isinstance(node.target, torch._ops.OpOverload):
        names: tuple[str, ...] = tuple(spec.name for spec in node.target._schema.arguments)
    elif node.target in (torch.batch_norm, torch.ops.aten.batch_norm):
        names = ("input", "weight", "bias", "running_mean", "running_var", "training", "momentum", "eps")
    else:
        names = SIGNATURES[op_name(node)]
    return {ALIASES.get(name, name): argument for name, argument in bind_by(node, names).items()}


def bind_by(node: fx.Node, names: Sequence[str]) -> dict[str, Any]:
    """Arguments of a call by the names of its parameters."""
    return dict(zip(names, node.args, strict=False)) | node.kwargs


def value(node: Any) -> Any:
    """Return what Dynamo saw here (a fake tensor, SymInt, ...); constants are their own value."""
    if not isinstance(node, fx.Node):
        return node
    return node.meta.get("example_value", node.meta.get("val"))


def hints(shape: Iterable[Any]) -> tuple[int, ...]:
    """Sizes as numbers, symbolic ones by the example that was traced."""
    return tuple(
        size if isinstance(size, int) else size.node.hint if size.node.has_hint() else UNKNOWN_SIZE
        for size in shape
    )


def lies_in_order(sizes: Sequence[Any], strides: Sequence[Any], order: Sequence[int]) -> bool:
    """Return whether a tensor has no gaps and its dims lie in memory in this order, the last one innermost.

    Asked of the expressions of sizes and strides: torch would compare them, and guard the answer.
    """
    step: Any = 1
    for dim in reversed(order):
        size = expression_of(sizes[dim])
        if size != 1 and not same_size(strides[dim], step):
            return False
        step = step * size
    return True


def memory_order(sizes: Sequence[Any], strides: Sequence[Any]) -> list[int] | None:
    """The dims [N, C, *spatial] as they lie in memory: contiguous or channels-last, no gaps; else None."""
    dims = list(range(len(sizes)))
    return next((order for order in (dims, [0, *dims[2:], 1]) if lies_in_order(sizes, strides, order)), None)


def order_of(node: fx.Node) -> list[int] | None:
    """The same of what a node stands for."""
    return memory_order(value(node).shape, value(node).stride())


def share_order(one: fx.Node, other: fx.Node) -> bool:
    """Return whether two maps lie in memory in the same of these orders."""
    order = order_of(one)
    return order is not None and order == order_of(other)


def lie_alike(x: torch.Tensor, y: torch.Tensor) -> bool:
    """Return whether two tensors of one shape have the same strides, where these count."""
    return all(
        expression_of(size) == 1 or same_size(one, other)
        for size, one, other in zip(x.shape, x.stride(), y.stride(), strict=True)
    )


def same_shape(one: fx.Node, other: fx.Node) -> bool:
    """Return whether two nodes have the same sizes, symbolic ones for all values of their symbols."""
    sizes, others = value(one).shape, value(other).shape
    return len(sizes) == len(others) and all(map(same_size, sizes, others))


def is_contiguous(x: torch.Tensor) -> bool:
    """Return whether a map's last dim is innermost in memory."""
    return lies_in_order(x.shape, x.stride(), range(x.dim()))


def is_channels_last(x: torch.Tensor) -> bool:
    """Return whether the channels of a map [N, C, H, W] are innermost in memory."""
    return x.dim() == 4 and lies_in_order(x.shape, x.stride(), (0, 2, 3, 1))


def same_size(size: Any, other: Any) -> bool:
    """Return whether two sizes are equal, for all values of their symbols; torch would guard its answer."""
    return bool(sympy.expand(expression_of(size) - expression_of(other)) == 0)


def expression_of(size: Any) -> Any:
    """A size, symbolic or not, as sympy has it."""
    return size.node.expr if isinstance(size, (torch.SymInt, torch.SymFloat)) else sympy.sympify(size)


def symbols_of(*sizes: Any) -> frozenset[Any]:
    """Return the symbols that sizes, and other numbers, are made of."""
    numbers = [size for size in sizes if isinstance(size, (torch.SymInt, torch.SymFloat))]
    return frozenset(symbol for number in numbers for symbol in expression_of(number).free_symbols)


def places(dims: int, channel_dim: int) -> tuple[slice | None, ...]:
    """Return the index that spreads values [N, C] over the dims of a map."""
    return tuple(slice(None) if dim in (0, channel_dim) else None for dim in range(dims))


def copy_of(graph: fx.Graph) -> fx.Graph:
    """Copy a graph; nodes keep their names, and what Dynamo notes on them beside `meta`."""
    copied = copy.deepcopy(graph)
    keep_names(copied, graph)
    for node, original in zip(copied.nodes, graph.nodes, strict=True):
        for name, noted in vars(original).items():
            vars(node).setdefault(name, noted)
    return copied


def keep_names(copied: fx.Graph, original: fx.Graph) -> None:
    """Give a copy's nodes their names back: one of Python's, such as "input", has become another one."""
    for node, theirs in zip(copied.nodes, original.nodes, strict=True):
        node.name = theirs.name


def execute(node: fx.Node, argument: Callable[[fx.Node], Any]) -> Any:
    """Run one call, each argument node replaced by what `argument` gives for it."""
    args: Any = map_arg(node.args, argument)
    kwargs: Any = map_arg(node.kwargs, argument)
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    target: Any = node.target
    return target(*args, **kwargs)


def all_behind(nodes: Iterable[fx.Node]) -> set[fx.Node]:
    """Return all calls that depend on some nodes."""
    found: set[fx.Node] = set()
    todo = list(nodes)
    while todo:
        new = [user for user in todo.pop().users if user not in found]
        found.update(new)
        todo += new
    return found


def trace_of(node: fx.Node) -> dict[str, Any]:
    """Return what the trace noted of where a call comes from, as a part of `meta`."""
    return {key: node.meta[key] for key in TRACE_META if key in node.meta}


def as_tuple(item: Any) -> tuple[Any, ...]:
    """Return an argument that may be one for all dims as a tuple."""
    return tuple(item) if isinstance(item, (tuple, list)) else (item,)


def is_tensor(node: Any) -> bool:
    """Return whether the node stands for a tensor."""
    return isinstance(node, fx.Node) and isinstance(value(node), torch.Tensor)


def tensor_users(node: fx.Node) -> list[fx.Node]:
    """Users that read the node's elements; `expand_as(y, node)` and `node.size()` read its shape only."""
    return [user for user in node.users if not _reads_shape_only(user, node)]


def _reads_shape_only(user: fx.Node, node: fx.Node) -> bool:
    if op_name(user) in ("expand_as", "view_as", "reshape_as", "type_as"):  # the last one: its dtype
        return user.args[0] is not node
    return op_name(user) in NO_TENSOR and not is_tensor(user)


def tensor_inputs(node: fx.Node) -> list[fx.Node]:
    """Tensor arguments, each once."""
    return [arg for arg in node.all_input_nodes if is_tensor(arg)]
