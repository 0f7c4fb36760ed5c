"""Can the pointwise calls behind a node be in its kernel, which walks over a map as it lies in memory?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx
from torch._inductor import ir

from ..compat import needs_storage
from ..match.graph import all_behind, lies_in_order

aten = torch.ops.aten


def fits(root: fx.Node, lowered: Mapping[fx.Node, Any], order: list[int]) -> bool:
    """Return whether the pointwise calls behind `root` can be in its kernel, and lose nothing there.

    They cannot if they also read, or leave to the caller, a map in another order. Where nobody must have a
    map in memory, a reduction, or what else is not pointwise, would have it without a store; a concatenation,
    in its place.

    Args:
        root: the call that the kernel computes.
        lowered: what Inductor has made of the nodes so far.
        order: the dims of the map as they follow each other in memory.
    """
    behind = all_behind([root])
    fused = [root]
    for node in fused:
        stored = any(user.op == "output" or needs_storage(user.target) for user in node.users)
        for user in node.users:
            if user.op == "output":
                value = node.meta["val"]
                if not lies_in_order(value.shape, value.stride(), order):
                    return False
            elif _is_view(user.target) or getattr(user.target, "overloadpacket", None) is aten.cat:
                return False  # what reads a view has dims that are not the map's
            elif torch.Tag.pointwise in getattr(user.target, "tags", ()):
                others = [other for other in user.all_input_nodes if other not in fused]
                if user in fused or any(other in behind for other in others):
                    continue  # the latter is of a later kernel, whatever its order
                if not all(_walks_along(lowered.get(other), order) for other in others):
                    return False
                fused.append(user)
            elif not stored:
                return False
    return True


def _is_view(target: Any) -> bool:
    returns = target._schema.returns if isinstance(target, torch._ops.OpOverload) else ()
    return any(result.alias_info is not None for result in returns)


def _walks_along(box: Any, order: list[int]) -> bool:
    """Return whether an operand has the order or none: it is broadcast, not in memory, or not made."""
    layout = box.maybe_get_layout() if isinstance(box, ir.TensorBox) else None
    if not isinstance(layout, ir.FixedLayout) or len(layout.size) != len(order) or 1 in layout.size[1:]:
        return True
    return lies_in_order(layout.size, layout.stride, order)
