"""How far each plan's op reaches: what around a site it takes in, and whether it may."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from ..compat import epilogues_of_products, packs_bits, products_keep_precision
from ..match.graph import is_channels_last, op_name, order_of, same_shape, share_order, value
from ..match.mutation import changed_between
from ..match.neighbours import IN_PLACE_MULTIPLICATIONS, Closing, tail_of
from ..match.site import Site, must_be_stored
from ..settings import Plan
from .readers import Readers, readers_of


def end_of(site: Site, plan: Plan) -> Closing | None:
    """Return the part of the tail that the plan's op takes in: ReLU with bits, or what could not fuse."""
    if plan == "batch_norm":
        return site.closing if site.closing is not None and site.closing.activation == "relu" else None
    return site.closing if plan == "block" and value(site.mul).requires_grad else None


def last_of(site: Site, plan: Plan) -> fx.Node:
    """The call whose place the plan's op takes."""
    end = end_of(site, plan)
    return site.mul if end is None else end.calls[-1]


def keeps_order(site: Site) -> bool:
    """Return whether one op's result, in the memory order of its input, has the order of the site's own."""
    plan: Plan = "batch_norm" if site.takes_over else "block"
    source = site.batch_norm.input if site.takes_over and site.batch_norm is not None else site.source
    return share_order(source, last_of(site, plan))


def packs_mask(site: Site, readers: Readers) -> bool:
    """Return whether bits tell backward where ReLU was open: Inductor packs them in the kernel of the result.

    It does so where the channels are innermost and the result is stored, not only pooled.

    readers: Those of the site's end.
    """
    if not packs_bits() or not _channels_last_in_bytes(value(site.x)):
        return False
    last = last_of(site, "batch_norm")
    return not (readers if last is site.end else readers_of(last)).inlined


def stays_whole(site: Site) -> bool:
    """Return whether one opaque op can train the site, and takes no fusion from its neighbours.

    The map, the result and the residual are in memory anyway, for a convolution or the caller, and nothing of
    the tail is left over. All are channels-last, as Inductor will have them: here the bits' order is settled.
    """
    end, last = end_of(site, "block"), last_of(site, "block")
    in_place = op_name(site.mul) in IN_PLACE_MULTIPLICATIONS
    if not site.folds or site.activation != "identity" or site.channel_dim != 1 or in_place:
        return False
    if not site.source_is_stored or (end is None and site.tail):
        return False
    around = [last] + ([] if end is None or end.residual is None else [end.residual])
    return all(_channels_last_in_bytes(value(node)) for node in (site.source, *around)) and all(
        must_be_stored(node) for node in around
    )


def _channels_last_in_bytes(x: torch.Tensor) -> bool:
    """Return whether channels are innermost, and eight of them make a byte of bits."""
    return is_channels_last(x) and isinstance(x.shape[1], int) and x.shape[1] % 8 == 0


def pools_input(site: Site) -> bool:
    """Return whether the gate can be computed from the convolution's input, in inference."""
    return not value(site.mul).requires_grad and _same_at(site, site.conv)


def epilogue_of(site: Site, device: str) -> list[tuple[str, fx.Node]] | None:
    """Return the steps of the tail that `fold` makes the epilogue of a product of matrices.

    None where it does not turn the convolution into one. The tail is that of the graph as it is now: other
    sites may have been rewritten since this one was found.

    device: The type of the one that runs it.
    """
    if site.shared or site.projection is None or not epilogues_of_products():
        return None
    steps = _flat_steps(site)
    last = steps[-1][1] if steps else site.mul
    if not _same_at(site, last) or order_of(last) is None:
        return None
    # A float32 convolution may use tensor cores that a product may not.
    single = value(site.projection.node).dtype == torch.float32
    return None if single and device == "cuda" and not products_keep_precision() else steps


def becomes_block(site: Site, device: str) -> bool:
    """Return whether one op computes and rescales the convolution, where Inductor tunes no such product."""
    if site.shared or site.projection is None or epilogues_of_products() or not _same_at(site, site.mul):
        return False
    made = value(site.projection.node)
    if not share_order(site.projection.input, site.mul):
        return False
    return bool(made.dim() == 4) and (device != "cuda" or made.dtype.itemsize == 2)


def _same_at(site: Site, node: fx.Node) -> bool:
    """Return whether the inputs of gate and product still hold at `node` what the convolution read."""
    if site.projection is None:
        return False
    vectors = [] if site.batch_norm is None else site.batch_norm.vectors
    return site.projection.stays_until(node, site.weight, site.bias, *vectors)


def _flat_steps(site: Site) -> list[tuple[str, fx.Node]]:
    """The calls of the tail, up to the first whose other operands cannot be laid flat."""
    steps: list[tuple[str, fx.Node]] = []
    before = site.mul
    for name, step in tail_of(site.mul):
        others = [arg for arg in step.args if arg is not before]
        if name in ("gain", "residual") and (len(others) != 1 or not _lies_flat(site, name, others[0])):
            break
        steps.append((name, step))
        before = step
    own = {site.mul, *(step for _, step in steps)}
    for index, (_, step) in enumerate(steps):
        read = [node for node in step.all_input_nodes if node not in own]
        # By a later call, or by the step: a sum may be written into the residual.
        if any(changed_between(node, step, steps[-1][1].next) for node in read):
            return steps[:index]
    return steps


def _lies_flat(site: Site, name: str, other: Any) -> bool:
    """Return whether an operand is one number, or for a residual a map like the site's."""
    like = value(other)
    if name == "gain":
        return isinstance(other, (int, float)) or (
            isinstance(like, torch.Tensor)
            and like.dim() <= len(site.shape)
            and all(isinstance(size, int) and size == 1 for size in like.shape)
        )
    return isinstance(other, fx.Node) and same_shape(other, site.x) and like.dtype.is_floating_point
