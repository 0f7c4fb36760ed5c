"""Put the operators that a function calls in the place of one call in a graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, fx
from torch._dispatch.python import enable_python_dispatcher
from torch._guards import detect_fake_mode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.node import map_arg

from ..compat import without_modes
from ..match.graph import trace_of, value


def inline(node: fx.Node, function: Callable[..., Any], table: Mapping[Any, Callable[..., Any]]) -> None:
    """Replace a call by what `function` does with its arguments, in ATen; `table` decomposes some of that.

    The graph's sizes stay as symbolic as they are.
    """
    body = traced(function, node, table)
    here = dict(zip(body.graph.find_nodes(op="placeholder"), node.all_input_nodes, strict=True))
    with node.graph.inserting_before(node):
        for call in body.graph.nodes:
            if call.op == "call_function":
                copied = here[call] = node.graph.node_copy(call, here.__getitem__)
                copied.meta = trace_of(node) | {"val": call.meta["val"]}
    results: Any = body.graph.output_node().args[0]
    if isinstance(results, fx.Node):
        _replace(node, here[results])
        return
    for user in list(node.users):  # each takes one of several results
        index: Any = user.args[1]
        _replace(user, here[results[index]])
    node.graph.erase_node(node)


def _replace(node: fx.Node, by: fx.Node) -> None:
    """Let a node take another's place and its name, which a program's signature may hold."""
    node.replace_all_uses_with(by)
    node.graph.erase_node(node)
    by.name = node.name


@without_modes
def traced(
    function: Callable[..., Any], node: fx.Node, table: Mapping[Any, Callable[..., Any]]
) -> fx.GraphModule:
    """The graph of `function` with the arguments of a call; its inputs: `node.all_input_nodes`, in order."""
    inputs = node.all_input_nodes
    values = [value(item) for item in inputs]

    def call(*tensors: Tensor) -> Any:
        given = dict(zip(inputs, tensors, strict=True))
        args: Any = map_arg(node.args, given.__getitem__)
        kwargs: Any = map_arg(node.kwargs, given.__getitem__)
        return function(*args, **kwargs)

    with enable_python_dispatcher(), torch.no_grad(), detect_fake_mode(values) or nullcontext():
        return make_fx(call, decomposition_table=dict(table), tracing_mode="real")(*values)
