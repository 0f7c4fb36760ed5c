"""Questions about one node of a Dynamo graph: its operation, its value, what it writes to."""

from __future__ import annotations

import functools
import inspect
import operator
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import fx
from torch.fx.node import map_arg

from .reasons import TRANSFORM, NoMatchError

UNKNOWN_SIZE = 64  # of a symbolic size without an example
TRUSTED_PACKAGES = {"torch", "_operator", "einops", "builtins", ""}

IN_PLACE_OPERATORS: set[Callable[..., Any]] = {
    getattr(operator, name)
    for name in ["iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "iand", "ior", "setitem"]
}

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
    "relu": ("input", "inplace"),
    "silu": ("input", "inplace"),
}  # fmt: skip
ALIASES = {"axis": "dim", "keepdims": "keepdim", "self": "input", "tensor": "input", "x": "input"}


def op_name(node: fx.Node) -> str:
    """The operation's name, the same for function, method and operator; "" for anything not torch's."""
    if node.op == "call_method":
        return str(node.target)
    if node.op != "call_function":
        return ""
    target = node.target
    if target is getattr:
        return str(node.args[1])
    if isinstance(target, torch._ops.OpOverload):
        namespace, _, name = target._schema.name.partition("::")
        return name if namespace == "aten" else ""
    package = (getattr(target, "__module__", None) or "").split(".")[0]
    return getattr(target, "__name__", "") if package in TRUSTED_PACKAGES else ""


def bind(node: fx.Node) -> dict[str, Any]:
    """Arguments of a call in SIGNATURES by name. ATen's `batch_norm` has an order of its own."""
    if isinstance(node.target, torch._ops.OpOverload):
        names: tuple[str, ...] = tuple(spec.name for spec in node.target._schema.arguments)
    elif node.target is torch.batch_norm:
        names = ("input", "weight", "bias", "running_mean", "running_var", "training", "momentum", "eps")
    else:
        names = SIGNATURES[op_name(node)]
    bound = dict(zip(names, node.args, strict=False)) | node.kwargs
    return {ALIASES.get(name, name): argument for name, argument in bound.items()}


def value(node: Any) -> Any:
    """What Dynamo saw here (a fake tensor, SymInt, ...); constants are their own value."""
    if not isinstance(node, fx.Node):
        return node
    return node.meta.get("example_value", node.meta.get("val"))


def hints(shape: Iterable[Any]) -> tuple[int, ...]:
    """Sizes as numbers, symbolic ones by the example that was traced."""
    return tuple(size if isinstance(size, int) else size.node.hint or UNKNOWN_SIZE for size in shape)


def execute(node: fx.Node, argument: Callable[[fx.Node], Any]) -> Any:
    """Run one call, each argument node replaced by what `argument` gives for it."""
    args: Any = map_arg(node.args, argument)
    kwargs: Any = map_arg(node.kwargs, argument)
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    target: Any = node.target
    return target(*args, **kwargs)


def is_tensor(node: Any) -> bool:
    """Whether the node stands for a tensor."""
    return isinstance(node, fx.Node) and isinstance(value(node), torch.Tensor)


def tensor_users(node: fx.Node) -> list[fx.Node]:
    """Users that read the node's elements; `expand_as(y, node)` and `node.size()` read its shape only."""
    return [user for user in node.users if not _reads_shape_only(user, node)]


def _reads_shape_only(user: fx.Node, node: fx.Node) -> bool:
    if op_name(user) in ("expand_as", "view_as", "reshape_as", "type_as"):
        return user.args[0] is not node
    return op_name(user) in ("size", "dim", "numel", "shape", "ndim", "dtype", "device") and not is_tensor(
        user
    )


def tensor_inputs(node: fx.Node) -> list[fx.Node]:
    """Tensor arguments, each once."""
    return [arg for arg in node.all_input_nodes if is_tensor(arg)]


def storage(node: Any) -> int | None:
    """Identity of the memory behind a tensor node; views share it.

    Raises:
        NoMatchError: there is none, since a transform of torch.func wraps the tensor.
    """
    tensor = value(node)
    try:
        return tensor.untyped_storage()._cdata if isinstance(tensor, torch.Tensor) else None
    except NotImplementedError as error:
        raise NoMatchError(TRANSFORM, str(error)) from None


def written(node: fx.Node) -> list[fx.Node]:
    """The argument nodes whose memory this call changes, or may change, in place."""
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        arguments = zip(target._schema.arguments, node.args, strict=False)
        mutated = [arg for spec, arg in arguments if spec.alias_info is not None and spec.alias_info.is_write]
    elif isinstance(target, torch._ops.HigherOrderOperator):
        mutated = list(node.all_input_nodes)
    elif (
        target in IN_PLACE_OPERATORS
        or (op_name(node).endswith("_") and not op_name(node).endswith("__"))
        or node.kwargs.get("inplace") is True
        or _positional_inplace(node)
    ):
        mutated = list(node.args[:1]) or [node.kwargs.get("input")]
    else:
        mutated = []
    mutated.append(node.kwargs.get("out"))
    return [arg for arg in mutated if isinstance(arg, fx.Node)]


def _positional_inplace(node: fx.Node) -> bool:
    position = _inplace_position(node.target) if node.op == "call_function" else None
    return position is not None and position < len(node.args) and node.args[position] is True


@functools.cache
def _inplace_position(target: Callable[..., Any]) -> int | None:
    try:
        names = list(inspect.signature(target).parameters)
    except (TypeError, ValueError):
        return None
    return names.index("inplace") if "inplace" in names else None


def changed_between(node: fx.Node, first: fx.Node, last: fx.Node) -> bool:
    """Whether a call from `first` up to, not including, `last` writes into the memory of `node`."""
    memory = storage(node)
    return any(storage(arg) == memory for call in _calls(first, last) for arg in written(call))


def grad_mode_changes_between(first: fx.Node, last: fx.Node) -> bool:
    """Whether `no_grad`, `enable_grad` or `inference_mode` begins or ends from `first` up to `last`."""
    modes = ("set_grad_enabled", "inference_mode")
    return any(mode in op_name(call) for call in _calls(first, last) for mode in modes)


def _calls(first: fx.Node, last: fx.Node) -> Iterator[fx.Node]:
    """Nodes in graph order from `first` up to, not including, `last`."""
    current = first
    while current is not last and current.op != "output":
        yield current
        current = current.next
