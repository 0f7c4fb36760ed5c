"""Ways through the graph from a convolution over channels: forward to the product, and back to its map.

What the calls on the way compute is not asked here, only whether a gate could come through them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import fx

from ..reasons import (
    CONVOLUTION,
    EVEN_TAPS,
    GATE_PATH,
    NOT_MEAN,
    OTHER_OPERAND,
    PADDING,
    POOL_PATH,
    SHARED,
    NoMatchError,
)
from .graph import as_tuple, bind, is_tensor, op_name, tensor_inputs, tensor_users, value
from .neighbours import IN_PLACE_MULTIPLICATIONS, MULTIPLICATIONS
from .probe import SCALAR_FUNCTIONS, VIEWS, keeps_elements


def convolved(arguments: dict[str, Any]) -> tuple[fx.Node, bool]:
    """The vector that the convolution slides over, before padding, and whether the padding wraps around."""
    shape = value(arguments["weight"]).shape
    k = shape.numel()
    if k % 2 == 0:
        raise NoMatchError(EVEN_TAPS, f"k = {k}")
    if any(set(as_tuple(arguments.get(key, 1))) != {1} for key in ("stride", "dilation", "groups")):
        raise NoMatchError(CONVOLUTION)
    padding, same = arguments.get("padding", 0), tuple(size // 2 for size in shape[2:])
    if isinstance(padding, str):
        padding = same if padding == "same" else (0,) * len(same)
    padding = as_tuple(padding) * (len(same) if len(as_tuple(padding)) == 1 else 1)
    vector = arguments["input"]
    if op_name(vector) != "pad":
        if padding != same:
            raise NoMatchError(PADDING, f"padding {padding} for {k} taps")
        return vector, False
    pad = bind(vector)
    mode, fill = pad.get("mode", "constant"), pad.get("value")
    around = tuple(size for axis in reversed(same) for size in (axis, axis))
    widths = tuple(pad["pad"])
    widths += (0,) * (len(around) - len(widths))
    if any(padding) or widths != around or mode not in ("constant", "circular") or fill not in (None, 0):
        raise NoMatchError(PADDING, f"{mode} padding of {tuple(pad['pad'])} for {k} taps")
    if len(tensor_users(vector)) != 1:
        raise NoMatchError(SHARED, "the padded vector")
    return pad["input"], mode == "circular"


def way_to_product(conv: fx.Node, vector: fx.Node) -> tuple[list[fx.Node], fx.Node, list[fx.Node], fx.Node]:
    """Find the ways from convolution to gate and from map to convolution, the product, and the map.

    A gate with several readers may lead to several products, of which one is with the map that was pooled.
    """
    stopped: NoMatchError | None = None
    for forward, mul in _ways([conv]):
        try:
            x = _other_operand(mul, forward[-1])
            return forward, mul, _backward(vector, x), x
        except NoMatchError as no:
            stopped = stopped or no
    raise stopped or _dead_end(conv)


def _ways(chain: list[fx.Node]) -> Iterator[tuple[list[fx.Node], fx.Node]]:
    """All ways from a chain of calls to a product with what it computes."""
    for user in tensor_users(chain[-1]):
        if op_name(user) in MULTIPLICATIONS and len(tensor_inputs(user)) == 2:
            yield chain, user
        elif _leads_on(user, chain[-1]):
            yield from _ways([*chain, user])


def _leads_on(user: fx.Node, node: fx.Node) -> bool:
    known = op_name(user) in VIEWS | SCALAR_FUNCTIONS or (is_tensor(user) and keeps_elements(user))
    return known and tensor_inputs(user)[0] is node


def _dead_end(conv: fx.Node) -> NoMatchError:
    """Say where the only way from a convolution ends, or that there are several."""
    node, users = conv, tensor_users(conv)
    while len(users) == 1 and _leads_on(users[0], node):
        node, users = users[0], tensor_users(users[0])
    if len(users) == 1:
        return NoMatchError(GATE_PATH, op_name(users[0]) or users[0].name, users[0])
    return NoMatchError(SHARED, f"{len(users)} users of {node.name}", node)


def _other_operand(mul: fx.Node, gate: fx.Node) -> fx.Node:
    x = next(arg for arg in tensor_inputs(mul) if arg is not gate)
    if op_name(mul) in IN_PLACE_MULTIPLICATIONS and mul.args[0] is not x:
        raise NoMatchError(OTHER_OPERAND, "the gate is multiplied in place")
    return x


def _backward(vector: fx.Node, x: fx.Node) -> list[fx.Node]:
    """The calls from the map, which is not included, to the vector that is convolved."""
    chain: list[fx.Node] = []
    node = vector
    while node is not x:
        inputs = tensor_inputs(node)
        if not inputs or node.op not in ("call_function", "call_method"):
            raise NoMatchError(OTHER_OPERAND, f"the gate comes from {node.name}")
        if len(tensor_users(node)) != 1:
            raise NoMatchError(SHARED, f"{node.name} has {len(tensor_users(node))} users", node)
        chain.insert(0, node)
        node = inputs[0]
        if len(chain) > 16:
            raise NoMatchError(POOL_PATH, "no map within 16 calls")
    if not chain:
        raise NoMatchError(NOT_MEAN, "the map is not pooled")
    return chain
