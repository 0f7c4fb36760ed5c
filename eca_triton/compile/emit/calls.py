"""Calls that a rewrite adds to a Dynamo graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx
from torch.fx.node import map_arg

from ..match.graph import trace_of, value
from ..match.site import Site


def call(site: Site, target: Callable[..., Any], *args: Any, **kwargs: Any) -> fx.Node:
    """A call with the value that it has on Dynamo's fake tensors."""
    # Without gradients: what autograd saved here would land in the hooks of a checkpoint that is running.
    with torch.no_grad():
        example = target(*map_arg(args, value), **map_arg(kwargs, value))
    return call_node(site, target, args, kwargs, example)


def call_node(
    site: Site, target: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], example: Any
) -> fx.Node:
    """A call with the trace of the multiplication and a value."""
    node = site.conv.graph.call_function(target, args, kwargs)
    node.meta |= trace_of(site.mul)
    node.meta["example_value"] = example
    return node


def cast(site: Site, x: fx.Node, dtype: torch.dtype) -> fx.Node:
    """A node in a dtype: itself where it has that one."""
    return x if value(x).dtype == dtype else call(site, torch.Tensor.to, x, dtype)


def become(node: fx.Node, target: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
    """Let a node make another call, in its place in the graph and in other sites."""
    node.op, node.target, node.args, node.kwargs = "call_function", target, args, kwargs


def taps(site: Site) -> fx.Node:
    """The weight of the convolution over channels as [1, 1, k]."""
    if value(site.weight).dim() == 3:
        return site.weight
    return call(site, torch.reshape, site.weight, (1, 1, site.k))
