"""Emit a plan into the graph: our op for the gate, native calls for everything that Inductor can fuse."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx
from torch.fx.node import map_arg

from .. import ops as _ops  # noqa: F401  registers torch.ops.eca_triton
from .graph import bind, op_name, tensor_inputs, value
from .neighbours import IN_PLACE_MULTIPLICATIONS
from .plan import Plan
from .site import Site

TRACE_META = ("stack_trace", "nn_module_stack", "source_fn_stack", "custom")


def rewrite(site: Site, plan: Plan) -> None:
    """Replace what computes the gate of `site`, or with "block" all of the site, by the plan's op, in place.

    The op stands where the convolution stood, so all its inputs exist there. The product's node stays, with
    its dtype, and so do the neighbours behind it.
    """
    graph = site.conv.graph
    with graph.inserting_before(site.conv):
        weight = site.weight
        if value(weight).dim() != 3:
            weight = _call(site, torch.reshape, weight, (1, 1, site.k))
        keywords: dict[str, Any] = {"circular": site.circular, "gate": site.gate}
        if plan == "block":
            _become_block(site, weight, keywords)
        else:
            gate = (_gate if plan == "gate" else _gate_from_pool)(site, weight, keywords)
            kept = (0, site.channel_dim)
            spread = tuple(slice(None) if dim in kept else None for dim in range(len(site.shape)))
            _replace_operand(site, _call(site, operator.getitem, gate, spread))
    for node in reversed(site.chain):
        if not node.users:
            graph.erase_node(node)
    made = site.x
    while made is not site.source and not made.users:
        before = tensor_inputs(made)[0]
        graph.erase_node(made)
        made = before


def _become_block(site: Site, weight: fx.Node, keywords: dict[str, Any]) -> None:
    """One op from what batch norm and activation read, or the map, to the product."""
    source, absorbed = _source(site)
    eca = torch.ops.eca_triton.eca.default
    args, keywords = (source, weight, site.bias), keywords | absorbed | {"out_dtype": value(site.mul).dtype}
    if site.channel_dim == 1:
        _become(site.mul, eca, *args, **keywords)
    else:
        _become(site.mul, torch.movedim, _call(site, eca, *args, **keywords), 1, site.channel_dim)


def _gate(site: Site, weight: fx.Node, keywords: dict[str, Any]) -> fx.Node:
    """One op from what batch norm and activation read, or the map; the gate stays in float32."""
    source, absorbed = _source(site)
    gate = torch.ops.eca_triton.gate.default
    dtype = torch.promote_types(value(site.x).dtype, torch.float32)
    return _call(site, gate, source, weight, site.bias, **keywords, **absorbed, out_dtype=dtype)


def _source(site: Site) -> tuple[fx.Node, dict[str, Any]]:
    """What batch norm and activation read, channels first, and the arguments that put these into an op."""
    absorbed: dict[str, Any] = {}
    if site.source is not site.x:
        if site.batch_norm is not None:
            norm = site.batch_norm
            absorbed = {"bn_mean": norm.mean, "bn_var": norm.var, "bn_eps": norm.eps}
            absorbed |= {"bn_weight": norm.weight, "bn_bias": norm.bias}
        absorbed["pre_activation"] = site.activation
    if site.channel_dim == 1:
        return site.source, absorbed
    return _call(site, torch.movedim, site.source, site.channel_dim, 1), absorbed


def _gate_from_pool(site: Site, weight: fx.Node, keywords: dict[str, Any]) -> fx.Node:
    """A native mean, and one op on its result.

    Pooled vector and gate have the dtypes that they had, so that no more bytes are moved than before: next to
    a 7x7 map in bfloat16, each [N, C] vector in float32 is 4 % of it.
    """
    spatial = tuple(dim for dim in range(1, len(site.shape)) if dim != site.channel_dim)
    dtype = value(site.x).dtype
    pooled_dtype = torch.promote_types(dtype, value(bind(site.conv)["input"]).dtype)
    out_dtype = torch.promote_types(dtype, value(site.scaled_by).dtype)
    pooled = _call(site, torch.mean, site.x, spatial, dtype=pooled_dtype)
    gate = torch.ops.eca_triton.gate_from_pool.default
    return _call(site, gate, pooled, weight, site.bias, **keywords, out_dtype=out_dtype)


def _replace_operand(site: Site, gate: fx.Node) -> None:
    """Let the multiplication take the new gate; its node keeps its dtype, and so its place in other sites."""
    mul, dtype = site.mul, value(site.mul).dtype
    promoted = torch.promote_types(value(site.x).dtype, value(gate).dtype)
    if op_name(mul) in IN_PLACE_MULTIPLICATIONS or promoted == dtype:
        mul.replace_input_with(site.scaled_by, gate)
        return
    with mul.graph.inserting_before(mul):
        product = _call(site, operator.mul, site.x, gate)
    _become(mul, torch.Tensor.to, product, dtype)


def _become(node: fx.Node, target: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
    """Let a node make another call, in its place in the graph and in other sites."""
    node.op, node.target, node.args, node.kwargs = "call_function", target, args, kwargs


def _call(site: Site, target: Callable[..., Any], *args: Any, **kwargs: Any) -> fx.Node:
    """A call with the trace of the multiplication and the value that it has on Dynamo's fake tensors."""
    node = site.conv.graph.call_function(target, args, kwargs)
    node.meta |= {key: site.mul.meta[key] for key in TRACE_META if key in site.mul.meta}
    # Without gradients: what autograd saved here would land in the hooks of a checkpoint that is running.
    with torch.no_grad():
        node.meta["example_value"] = target(*map_arg(args, value), **map_arg(kwargs, value))
    return node
