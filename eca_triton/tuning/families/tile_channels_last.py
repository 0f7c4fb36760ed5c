"""The channels-last register tile, forward and backward: how it is cut, what may run, what is tried."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ..config import Choice
from ..layout import Layout
from ..problem import EcaProblem
from .blocks import PADDING, VECTOR_BYTES, padding, power_of_2, powers, share_fits

HALO = 8  # channels beside the tile, per side: one vector of 16-bit elements
THREADS = (128, 256, 512)  # more leave a thread too few registers for its share of the tile
PIECES = 7  # vectors per thread: 49, 196 and 784 elements are 7 of them exactly, or 6.125
PIECES_BESIDE_TERMS = 4  # batch norm's terms and an activation's temporaries take registers too
ROW_BYTES = (128, 64)  # channels of one element: whole lines, else two sectors; below, the halo outweighs it
MAX_INDEX = 2**31  # offsets inside an image are int32
MAX_BACKWARD_THREADS = 256


@dataclass(frozen=True)
class TileChannelsLastConfig:
    """Cut of a map by the kernel; blocks are powers of two.

    Attributes:
        block_c: channels of one program.
        block_hw: spatial elements of one piece of its tile: one vector per thread.
        steps: pieces of the tile.
        block_halo: spatial elements of one step over the halo: one vector per thread.
        halo_steps: steps over the halo.
        num_warps: warps of one program.
    """

    block_c: int
    block_hw: int
    steps: int
    block_halo: int
    halo_steps: int
    num_warps: int

    def tiles(self, layout: Layout) -> int:
        """Programs of one image."""
        return -(-layout.c // self.block_c)


def tile_channels_last_config(problem: EcaProblem) -> TileChannelsLastConfig | None:
    """Config of the kernel that keeps columns of x, or of dy, in registers; None where it takes none."""
    layout, itemsize = problem.layout, problem.cut_itemsize
    if not takes(problem):
        return None
    for row_bytes in ROW_BYTES:
        for threads in THREADS:  # fewest first: they wait for each other less
            elements = pieces(problem, threads) * threads * VECTOR_BYTES // itemsize
            # A map with fewer channels than a row has them all.
            fits = [
                block
                for block in (256, 128, 64, 32, 16, 8)
                if block <= power_of_2(layout.c)
                and block * itemsize >= min(row_bytes, power_of_2(layout.c) * itemsize)
                and layout.hw * block <= elements
            ]
            if fits:
                # The block that pads least, the largest of equals: the halo weighs least there.
                return _config(problem, min(fits, key=lambda block: (-layout.c % block, -block)))
    return None


def takes(problem: EcaProblem) -> bool:
    """Return whether the kernel computes such a map at all.

    One offset serves all tensors. Channels off the vector would be read one by one, on both sides of the
    tile's edge: such maps, of pruned networks, keep the two passes.
    """
    layout = problem.layout
    dense = layout.dense_channels_last and layout.c % HALO == 0 and layout.c * layout.hw < MAX_INDEX
    return dense and problem.taps // 2 <= HALO


def pieces(problem: EcaProblem, threads: int) -> int:
    """Vectors that each of so many threads may hold, as compiled for sm_80, sm_90, sm_100 and gfx942.

    In the backward p stays in registers, and x passes by. Up to 255 registers leave 8 warps per SM: enough,
    at 14 vectors in flight each; shorter shares per thread cost half as many instructions again. A program of
    512 threads would be alone on its SM, which loads nothing while it stores, and its halo outweighs what the
    lagged launch reads twice.
    """
    if problem.direction == "backward":
        return PIECES if threads <= MAX_BACKWARD_THREADS else 0
    crowded = (problem.front or problem.bits) and (problem.kept_itemsize > 2 or threads > 256)
    return PIECES_BESIDE_TERMS if crowded else PIECES


def shaped(problem: EcaProblem, block_c: int, threads: int) -> TileChannelsLastConfig:
    """The config of programs that own `block_c` channels with so many threads."""
    hw, elements = problem.layout.hw, VECTOR_BYTES // problem.cut_itemsize
    block_hw = threads * elements // block_c
    block_halo = threads * elements // (2 * HALO)
    return TileChannelsLastConfig(
        block_c=block_c,
        block_hw=block_hw,
        steps=-(-hw // block_hw),
        block_halo=block_halo,
        halo_steps=-(-hw // block_halo),
        num_warps=threads // problem.device.warp_size,
    )


def _config(problem: EcaProblem, block_c: int) -> TileChannelsLastConfig:
    layout, elements = problem.layout, VECTOR_BYTES // problem.cut_itemsize
    # At small batch fewer channels per program, so that every SM has one.
    while layout.n * -(-layout.c // block_c) < problem.device.num_sms and block_c > HALO:
        block_c //= 2
    threads = next(size for size in THREADS if layout.hw * block_c <= pieces(problem, size) * size * elements)
    return shaped(problem, block_c, threads)


def fits(problem: EcaProblem, config: Any) -> bool:
    """Return whether the kernel computes the problem with the config."""
    layout, tile = problem.layout, config.block_c * config.block_hw * config.steps
    return (
        takes(problem)
        and config.block_c <= power_of_2(layout.c)
        and config.steps == -(-layout.hw // config.block_hw)
        and config.halo_steps == -(-layout.hw // config.block_halo)
        and share_fits(problem, tile * problem.cut_itemsize, config.num_warps)
    )


def candidates(problem: EcaProblem, _: Choice) -> Iterator[Choice]:
    """Channels-last columns in registers."""
    layout, itemsize = problem.layout, problem.cut_itemsize
    if not takes(problem):
        return
    for block_c in powers(HALO, power_of_2(layout.c)):
        if padding(layout.c, block_c) > PADDING:
            continue
        for threads in THREADS:
            vectors = layout.hw * block_c * itemsize / (threads * VECTOR_BYTES)
            fits = vectors <= pieces(problem, threads) and threads * VECTOR_BYTES >= block_c * itemsize
            if fits and (vectors >= 1 or threads == THREADS[0]):
                yield Choice("tile_channels_last", shaped(problem, block_c, threads))
