"""Who reads the result of a site, and whether Inductor stores it: only where somebody must have it stored."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from ...activations import RECOMPUTED
from ..match.graph import all_behind, bind, op_name, tensor_users
from ..match.neighbours import ACTIVATIONS, ADDITIONS, MULTIPLICATIONS
from ..match.probe import SAME_ELEMENTS, VIEWS
from ..match.site import reads_stored

POOLS = {"mean", "sum", "amax", "amin", "std", "var", "adaptive_avg_pool2d"}
# Inductor puts what these read into them.
INLINING = {*POOLS, "pad", "interpolate"}
REPEATING = {"group_norm", "layer_norm", "instance_norm", "interpolate", "chunk", "split", "tensor_split"}
REINDEXING = {"cat", "concat", "concatenate", "unbind", *INLINING, *REPEATING, *VIEWS}
PLACED = {"pad", "cat", "concat", "concatenate"}
# Elementwise calls, and those of them that use their argument twice.
USES_TWICE = {*RECOMPUTED, "elu", "leaky_relu", "mish", "prelu", "softplus"}
ELEMENTWISE = {
    *USES_TWICE, *ACTIVATIONS, *ADDITIONS, *MULTIPLICATIONS, *SAME_ELEMENTS, "batch_norm", "clamp", "div",
    "dropout", "hardtanh", "sigmoid", "sub", "tanh", "truediv",
}  # fmt: skip


@dataclass(frozen=True)
class Readers:
    """Readers of a map, through elementwise calls: see `Facts` for what is asked."""

    inlined: bool
    reindexed: bool
    repeated: bool
    normalized: bool


def readers_of(end: fx.Node) -> Readers:
    """Return what the readers of a site's result do with it."""
    passed, found = _readers(end)
    names = {op_name(user) for user in found}
    # Batch norm inside makes the value dear enough to be stored, in float32, where its reader is no loop of
    # the same kind and an activation uses it twice.
    twice = any(op_name(node).rstrip("_") in USES_TWICE for node in passed)
    pools = [user for user in found if op_name(user) in INLINING]
    behind = all_behind(pools) if len(pools) < len(found) else set()
    # Rescaled by something made of its own mean: squeeze and excitation, spatial attention, another site.
    rescaled = any(user in behind for user in found if user not in pools)
    inlined = bool(found) and len(pools) == len(found)
    return Readers(
        inlined=inlined,
        reindexed=inlined or rescaled or bool(names & (REINDEXING - INLINING)),
        repeated=rescaled or bool(names & REPEATING) or (twice and bool(names & PLACED)),
        normalized=any(map(_normalizes, found)) and not any(map(reads_stored, found)),
    )


def _readers(end: fx.Node) -> tuple[list[fx.Node], list[fx.Node]]:
    """The elementwise calls that follow a map, one behind the other, and the calls that read the last one."""
    found: list[fx.Node] = []
    todo = [end]
    for node in todo:
        for user in tensor_users(node):
            simple = op_name(user).rstrip("_") in ELEMENTWISE and not _normalizes(user)
            if simple and len(tensor_users(node)) == 1 and user not in todo:
                todo.append(user)
            else:
                found.append(user)
    return todo, found


def _normalizes(node: fx.Node) -> bool:
    """Return whether a call is a batch norm that trains."""
    if op_name(node) != "batch_norm":
        return False
    arguments = bind(node)
    return arguments.get("training", False) is not False or arguments.get("running_mean") is None
