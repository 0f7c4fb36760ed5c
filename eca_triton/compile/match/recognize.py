"""Find Efficient Channel Attention in a Dynamo graph, by what it computes.

The anchor is a convolution with weight [1, 1, k]. Forward from it, views and one sigmoid must lead to a
multiplication; the other operand is the map x. Back from it, views and a mean over all spatial positions
must lead to the same x. `walk` finds these ways; `probe` decides, by running their calls on indices.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from ..compat import is_wrapped, without_modes
from ..reasons import (
    CHANNEL_ORDER,
    DTYPE,
    GATE_PATH,
    GRAD_MODE,
    MUTATED,
    OTHER_OPERAND,
    SHARED,
    UNEXPECTED,
    WRAPPED,
    NoMatchError,
)
from .batch_norm import BatchNorm
from .gate_function import gate_function
from .graph import bind, is_tensor, lie_alike, op_name, places, same_shape, tensor_inputs, tensor_users, value
from .mutation import changed_between, same_grad_mode, touched_between
from .neighbours import IN_PLACE_MULTIPLICATIONS, closing, producer, tail_of
from .probe import Probe, in_order
from .projection import projection_of
from .site import Rejection, Site
from .sizes import LEAST, Sizes, is_dynamic
from .walk import convolved, way_to_product
from .where import module_paths, source_line

log = logging.getLogger("eca_triton")
ASKS_AUTOGRAD = {"grad", "backward", "register_hook", "requires_grad_", "retain_grad"}


@without_modes
def recognize(gm: fx.GraphModule, root: str) -> tuple[list[Site], list[Rejection]]:
    """Find the sites and the near misses of one graph, sub-graphs not included; the graph is not changed.

    root: The graph's `root_path`, for their names.
    """
    sites: list[Site] = []
    rejected: list[Rejection] = []
    anchors = [node for node in gm.graph.nodes if _is_anchor(node)]
    stand_ins = [Sizes(gm.graph, least) for least in LEAST[: 1 + bool(anchors and is_dynamic(gm.graph))]]
    for conv in anchors:
        try:
            sites.append(_match(conv, stand_ins, root))
            continue
        except NoMatchError as no:
            code, detail, stopped_by = no.code, no.detail, no.node
        except Exception as error:  # a user's program compiles even where we are wrong
            log.debug("%s is left alone", conv.name, exc_info=True)
            code, detail, stopped_by = UNEXPECTED, repr(error), None
        k = int(value(bind(conv)["weight"]).numel())
        shape, source = tuple(value(conv).shape), source_line(stopped_by or conv)
        rejected.append(Rejection(_name(conv, root), shape, k, code, detail, source))
    return sites, rejected


def _is_anchor(node: fx.Node) -> bool:
    """A convolution of one channel along one axis: weight [1, 1, k], [1, 1, 1, k] or [1, 1, k, 1]."""
    if op_name(node) not in ("conv1d", "conv2d") or not is_tensor(node):
        return False
    weight = value(bind(node).get("weight"))
    if not isinstance(weight, torch.Tensor) or not all(isinstance(size, int) for size in weight.shape):
        return False
    return tuple(weight.shape[:2]) == (1, 1) and weight.numel() == max(weight.shape)


def _match(conv: fx.Node, stand_ins: list[Sizes], root: str) -> Site:
    """The site of a convolution: what a probe tells has to hold with all stand-ins for symbolic sizes."""
    arguments = bind(conv)
    vector, circular = convolved(arguments)
    forward, mul, backward, x = way_to_product(conv, vector)
    shape = tuple(value(x).shape)
    if not value(x).dtype.is_floating_point:
        raise NoMatchError(DTYPE, str(value(x).dtype))
    if not same_shape(x, mul) or len(shape) < 3:
        raise NoMatchError(OTHER_OPERAND, "the gate is broadcast against a map of another shape")
    if any(is_wrapped(value(node)) for node in (x, conv, mul)):
        raise NoMatchError(WRAPPED, type(value(mul)).__name__)
    weight, bias = arguments["weight"], arguments.get("bias")
    padding = [arguments["input"]] if vector is not arguments["input"] else []
    _check_unchanged(x, [weight, bias], backward[0], conv, mul)
    if not same_grad_mode([*backward, *padding, *forward, mul]):
        raise NoMatchError(GRAD_MODE)
    for sizes in stand_ins:
        channel_dim = _channel_dim(x, conv, backward, sizes)
        gate, shared = _gate_function(shape, channel_dim, forward, mul, sizes)
        _check_layout(x, mul, forward[-1], channel_dim)
    batch_norm, activation = producer(x, {backward[0], mul}, mul, channel_dim)
    projects = (batch_norm is None or batch_norm.is_fixed) and activation == "identity" and channel_dim == 1
    tail = tail_of(mul)
    vectors = [] if batch_norm is None else [batch_norm.input, *batch_norm.vectors]
    end = closing(mul, tail, [x, weight, bias, *vectors])
    return Site(
        name=_name(conv, root),
        shape=shape,
        k=int(value(weight).numel()),
        gate=gate,
        circular=circular,
        channel_dim=channel_dim,
        x=x,
        conv=conv,
        mul=mul,
        scaled_by=forward[-1],
        weight=weight,
        bias=bias,
        chain=(*backward, *padding, *forward),
        shared=shared,
        batch_norm=batch_norm,
        activation=activation,
        tail=tuple(dict.fromkeys(name for name, _ in tail)),
        end=([mul] + [step for _, step in tail])[-1],
        closing=end,
        takes_over=activation == "identity"
        and _takes_over(batch_norm, [weight, bias], [*backward, mul, *(() if end is None else end.calls)]),
        projection=projection_of(x, {backward[0], mul}, batch_norm) if projects else None,
    )


def _check_unchanged(
    x: fx.Node, parameters: list[fx.Node | None], pool: fx.Node, conv: fx.Node, mul: fx.Node
) -> None:
    """Raise if the map, or what the convolution reads, is another one where the product is made."""
    changed = changed_between(x, pool, mul) or any(
        changed_between(node, conv, mul) for node in parameters if node is not None
    )
    if changed:
        raise NoMatchError(MUTATED)


def _check_layout(x: fx.Node, mul: fx.Node, gate: fx.Node, channel_dim: int) -> None:
    """Raise unless the product lies in memory as one with a gate [N, C]: not if that was copied to a map."""
    if op_name(mul) in IN_PLACE_MULTIPLICATIONS:
        return
    seen = value(x)
    with torch.no_grad():
        gates = seen.new_empty((seen.shape[0], seen.shape[channel_dim]))
        spread = gates[places(seen.dim(), channel_dim)]
        one, other = (spread if operand is gate else seen for operand in tensor_inputs(mul))
        if not lie_alike(one * other, value(mul)):
            raise NoMatchError(GATE_PATH, "the product lies in memory as the gate does", gate)


def _takes_over(batch_norm: BatchNorm | None, parameters: list[fx.Node | None], calls: list[fx.Node]) -> bool:
    """Return whether one op in the place of the last call may compute all from the batch norm up to there."""
    if batch_norm is None or not batch_norm.takes_over:
        return False
    read = (batch_norm.input, batch_norm.weight, batch_norm.bias, *parameters)
    changed = any(changed_between(node, batch_norm.node, calls[-1]) for node in read if node is not None)
    # They will be updated in that place: until then nobody may look, or write to them in turn.
    running = [node for node in (batch_norm.mean, batch_norm.var) if node is not None]
    changed |= any(touched_between(node, batch_norm.node.next, calls[-1]) for node in running)
    return not changed and same_grad_mode([batch_norm.node, *calls])


def _channel_dim(x: fx.Node, conv: fx.Node, backward: list[fx.Node], sizes: Sizes) -> int:
    """Channels lie along dim 1, or along the last one ([N, L, C]); else raise the reason for dim 1."""
    last = int(value(x).dim()) - 1
    try:
        _check_pool(x, conv, 1, backward, sizes)
        return 1
    except NoMatchError as no:
        try:
            _check_pool(x, conv, last, backward, sizes)
        except NoMatchError:
            raise no from None
        return last


def _check_pool(x: fx.Node, conv: fx.Node, channel_dim: int, backward: list[fx.Node], sizes: Sizes) -> None:
    probe = Probe.of_map(tuple(value(x).shape), channel_dim, sizes)
    plain = list(probe.index.shape)
    images, channels = plain[0], plain[channel_dim]
    for source, node in itertools.pairwise([x, *backward]):
        probe.pool(node, source)
    expected = sizes(tuple(value(backward[-1]).shape))
    taps = value(bind(conv)["weight"]).shape[2:]
    along = [size for size, reach in zip(expected[2:], taps, strict=True) if reach > 1] or [
        math.prod(expected[2:])
    ]
    if tuple(expected[:2]) != (images, 1) or along != [channels]:
        raise NoMatchError(CHANNEL_ORDER, f"the convolution runs over {expected}")
    probe.pooled_like(expected)


def _gate_function(
    shape: Sequence[Any], channel_dim: int, forward: list[fx.Node], mul: fx.Node, sizes: Sizes
) -> tuple[str, tuple[tuple[fx.Node, int], ...]]:
    """The gate function, and the calls whose result, the gate, has other readers, with its channels' dim."""
    plain = sizes(tuple(shape))
    numbers = in_order(plain[0] * plain[channel_dim])
    probe = Probe(numbers.view(sizes(tuple(value(forward[0]).shape))), sizes)
    shared: list[tuple[fx.Node, int]] = []
    for source, node in itertools.pairwise([*forward, mul]):
        if len(tensor_users(source)) > 1:
            _check_readers(source)
            shared.append((source, probe.channels_lie_along(plain[0], plain[channel_dim], source)))
            if changed_between(source, source.next, mul):
                raise NoMatchError(MUTATED, "the gate", source)
        if node is mul:
            break
        functions = len(probe.functions)
        probe.gate(node, source)
        if shared and len(probe.functions) > functions:
            raise NoMatchError(SHARED, f"what {node.name} reads", source)
    probe.covers(plain, channel_dim)
    return gate_function(probe.functions), tuple(shared)


def _check_readers(gate: fx.Node) -> None:
    """Raise for a reader that asks for this tensor of autograd's, and not for its elements."""
    asking = next((user for user in gate.users if op_name(user) in ASKS_AUTOGRAD), None)
    if asking is not None:
        raise NoMatchError(SHARED, f"{op_name(asking)} of {gate.name}", asking)


def _name(conv: fx.Node, root: str) -> str:
    """Path of the module around the convolution, as in `named_modules()`; outside modules the node's name."""
    paths = module_paths(conv, root)
    if not paths:
        return conv.name
    stack = list((conv.meta.get("nn_module_stack") or {}).values())
    path, kind = paths[-1], stack[-1][1] if stack else None
    # An exported program has the name of the class, Dynamo the class.
    is_convolution = (isinstance(kind, type) and issubclass(kind, torch.nn.modules.conv._ConvNd)) or str(
        kind
    ).startswith("torch.nn.modules.conv.")
    return path.rpartition(".")[0] if is_convolution and "." in path else path
