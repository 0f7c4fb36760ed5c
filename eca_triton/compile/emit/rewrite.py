"""Emit a plan into the graph: our op for the gate, native calls for everything that Inductor can fuse."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from ...ops.schema import BATCH_NORM_ECA
from ..match.graph import bind, op_name, places, value
from ..match.mutation import storage
from ..match.neighbours import IN_PLACE_MULTIPLICATIONS, Closing
from ..match.site import Site
from ..plan.reach import end_of, epilogue_of, last_of, packs_mask
from ..plan.readers import readers_of
from ..settings import Plan
from .calls import become, call, call_node, cast, taps
from .fold import block_from_projection, fold, gate_before_projection


def rewrite(site: Site, plan: Plan) -> None:
    """Replace what computes the gate of `site`, or with "block" and "batch_norm" all of it, by the plan's op.

    "convblock" and "convfold" may replace the convolution before the site, too: see `fold`. Elsewhere the op
    stands where the convolution stood, or at the end of the tail that it takes in, so all its inputs exist
    there. The node of the product, or of that end, stays, with its dtype, and so does what follows.
    """
    graph = site.conv.graph
    if plan == "convblock":
        block_from_projection(site)
        return
    steps = epilogue_of(site, value(site.x).device.type) if plan == "convfold" else None
    if steps is not None:
        fold(site, steps)
        return
    with graph.inserting_before(site.conv if end_of(site, plan) is None else last_of(site, plan)):
        weight = taps(site)
        keywords: dict[str, Any] = {"circular": site.circular, "gate": site.gate}
        if plan == "batch_norm":
            _become_batch_norm(site, weight, keywords)
        elif plan == "block":
            _become_block(site, weight, keywords)
        else:
            gate = _gate_of(site, plan, weight, keywords)
            _replace_operand(site, _spread(site, gate, len(site.shape), site.channel_dim))
            _share(site, gate)
    for node in reversed(site.chain):
        if not node.users:
            graph.erase_node(node)
    if plan == "batch_norm" or site.source is not site.x:
        norm = () if site.batch_norm is None else site.batch_norm.calls
        for node in reversed(dict.fromkeys((*norm, site.x))):
            if not node.users:
                graph.erase_node(node)


def _become_batch_norm(site: Site, weight: fx.Node, keywords: dict[str, Any]) -> None:
    """One op from the input of batch norm to the end of the tail, and native code for the running values."""
    norm, end, last = site.batch_norm, end_of(site, "batch_norm"), last_of(site, "batch_norm")
    assert norm is not None
    _ask_the_source(site, norm.input, end)
    result = value(last)
    keywords |= {"bn_eps": norm.eps, "out_dtype": result.dtype}
    if end is not None:
        keywords |= {"gain": end.gain, "activation": "relu", "pack_mask": packs_mask(site, readers_of(last))}
    args = norm.input, weight, site.bias, norm.weight, norm.bias, None if end is None else end.residual
    statistics = torch.promote_types(value(norm.input).dtype, torch.float32)
    vector = value(norm.input).new_empty(site.shape[1], dtype=statistics)
    # Not by `call`: its thirty native calls on fake tensors would tell no more.
    op = call_node(site, BATCH_NORM_ECA, args, keywords, (result, vector, vector))
    for index, running in enumerate((norm.mean, norm.var), 1):
        if running is not None:
            batch = call(site, operator.getitem, op, index)
            before = call(site, torch.Tensor.to, running, statistics)
            after = call(site, torch.lerp, before, batch, norm.momentum)
            call_node(site, torch.Tensor.copy_, (running, after), {}, value(running))
    become(last, operator.getitem, op, 0)
    _erase_taken(site, end)


def _become_block(site: Site, weight: fx.Node, keywords: dict[str, Any]) -> None:
    """One op from what batch norm and activation read, or the map, to the product."""
    source, absorbed = _source(site)
    eca = torch.ops.eca_triton.eca.default
    end, last = end_of(site, "block"), last_of(site, "block")
    args, keywords = (source, weight, site.bias), keywords | absorbed | {"out_dtype": value(last).dtype}
    if end is not None:
        _ask_the_source(site, source, end)
        keywords |= {"residual": end.residual, "gain": end.gain, "activation": end.activation}
    if site.channel_dim == 1:
        become(last, eca, *args, **keywords)
        _erase_taken(site, end)
    else:
        become(site.mul, torch.movedim, call(site, eca, *args, **keywords), 1, site.channel_dim)


def _erase_taken(site: Site, end: Closing | None) -> None:
    """Erase the calls between the convolution and the last one that an op took in."""
    for node in () if end is None else reversed((site.mul, *end.calls[:-1])):
        site.conv.graph.erase_node(node)


def _ask_the_source(site: Site, source: fx.Node, end: Closing | None) -> None:
    """Let who asks for no more than the shape of what is about to go ask the source, which has the same."""
    taken = (site.mul, *(() if end is None else end.calls))
    for node in (site.x, *taken[:-1]):
        for user in set(node.users) - {*site.chain, *taken}:
            # The dtype may be asked for, too: nobody computes the cast.
            with node.graph.inserting_before(user):
                user.replace_input_with(node, cast(site, source, value(node).dtype))


def _gate_of(site: Site, plan: Plan, weight: fx.Node, keywords: dict[str, Any]) -> fx.Node:
    """The gates [N, C] by the plan's op."""
    if plan == "convfold":
        return gate_before_projection(site)
    return {"gate": _gate, "pool": _gate_from_pool}[plan](site, weight, keywords)


def _gate(site: Site, weight: fx.Node, keywords: dict[str, Any]) -> fx.Node:
    """One op from what batch norm and activation read, or the map; the gate stays in float32."""
    source, absorbed = _source(site)
    gate = torch.ops.eca_triton.gate.default
    dtype = torch.promote_types(value(site.x).dtype, torch.float32)
    return call(site, gate, source, weight, site.bias, **keywords, **absorbed, out_dtype=dtype)


def _source(site: Site) -> tuple[fx.Node, dict[str, Any]]:
    """Return the input of batch norm and activation, and the arguments that put these into an op."""
    absorbed: dict[str, Any] = {}
    if site.source is not site.x:
        if site.batch_norm is not None:
            norm = site.batch_norm
            absorbed = {"bn_mean": norm.mean, "bn_var": norm.var, "bn_eps": norm.eps}
            absorbed |= {"bn_weight": norm.weight, "bn_bias": norm.bias}
        absorbed["pre_activation"] = site.activation
    if site.channel_dim == 1:
        return site.source, absorbed
    return call(site, torch.movedim, site.source, site.channel_dim, 1), absorbed


def _gate_from_pool(site: Site, weight: fx.Node, keywords: dict[str, Any]) -> fx.Node:
    """A native mean, and one op on its result.

    Pooled vector and gate have the dtypes that they had, so that no more bytes are moved than before: next to
    a 7x7 map in bfloat16, each [N, C] vector in float32 is 4 % of it.
    """
    spatial = tuple(dim for dim in range(1, len(site.shape)) if dim != site.channel_dim)
    dtype = value(site.x).dtype
    pooled_dtype = torch.promote_types(dtype, value(bind(site.conv)["input"]).dtype)
    out_dtype = torch.promote_types(dtype, value(site.scaled_by).dtype)
    pooled = call(site, torch.mean, site.x, spatial, dtype=pooled_dtype)
    gate = torch.ops.eca_triton.gate_from_pool.default
    return call(site, gate, pooled, weight, site.bias, **keywords, out_dtype=out_dtype)


def _spread(site: Site, gate: fx.Node, dims: int, channel_dim: int) -> fx.Node:
    """[N, C] with as many dims, images along the first."""
    return call(site, operator.getitem, gate, places(dims, channel_dim))


def _share(site: Site, gate: fx.Node) -> None:
    """Give the gate to its readers beside the multiplication, in the dtype and the memory that they know.

    What shared memory still does, and nothing else: somebody may write to it behind the multiplication.
    """
    given: dict[int | None, fx.Node] = {}
    for node, channel_dim in site.shared:
        memory, dtype = storage(node), value(node).dtype
        if memory not in given:
            as_is = value(gate).dtype == dtype and not given
            given[memory] = gate if as_is else call(site, torch.Tensor.to, gate, dtype, copy=True)
        same = _spread(site, given[memory], value(node).dim(), channel_dim)
        for user in set(node.users) - {*site.chain, site.mul}:
            user.replace_input_with(node, same)


def _replace_operand(site: Site, gate: fx.Node) -> None:
    """Let the multiplication take the new gate; its node keeps its dtype, and so its place in other sites."""
    mul, dtype = site.mul, value(site.mul).dtype
    promoted = torch.promote_types(value(site.x).dtype, value(gate).dtype)
    if op_name(mul) in IN_PLACE_MULTIPLICATIONS or promoted == dtype:
        mul.replace_input_with(site.scaled_by, gate)
        return
    with mul.graph.inserting_before(mul):
        product = call(site, operator.mul, site.x, gate)
    become(mul, torch.Tensor.to, product, dtype)
