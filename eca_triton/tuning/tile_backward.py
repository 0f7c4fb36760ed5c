"""Config of the contiguous register tile's backward, or None where a map does not fit one."""

from __future__ import annotations

from dataclasses import dataclass

from .config import Device
from .heuristic import VECTOR_BYTES, power_of_2
from .layout import Layout
from .tile import Limits, TileConfig, cut

# The gradient takes 26 registers, as large a share of x is on its way beside it, and both have sums. What
# activations compute takes as many again.
LINEAR = Limits(short_bytes=104, long_bytes=104, packed_elements=48)
RECOMPUTED = Limits(short_bytes=52, long_bytes=52, packed_elements=48)


@dataclass(frozen=True)
class TileBackwardConfig:
    """How the kernel cuts a map.

    Attributes:
        tile: how it cuts the rows of the gradient that it keeps.
        block_halo_hw: columns of one block of the halo, whose rows are few and only summed.
    """

    tile: TileConfig
    block_halo_hw: int

    def tiles(self, layout: Layout) -> int:
        """Programs of one image."""
        return self.tile.tiles(layout)


def tile_backward_config(
    layout: Layout, dy_itemsize: int, itemsize: int, taps: int, bits: bool, recomputed: bool, device: Device
) -> TileBackwardConfig | None:
    """Config for dy of `dy_itemsize` bytes.

    Args:
        layout: Of dy, x, d_x, the residual and its gradient together.
        dy_itemsize: Bytes of an element of dy.
        itemsize: Bytes of the largest element of these maps.
        taps: Of the convolution over channels.
        bits: Whether bits say what the activation passed.
        recomputed: Whether the activation's slope is computed anew.
        device: What runs it.
    """
    tile = cut(layout, dy_itemsize, itemsize, taps, device, bits, limits(recomputed))
    return None if tile is None else with_halo(tile, itemsize, device)


def limits(recomputed: bool) -> Limits:
    """What a thread may hold, with the activation's slope computed anew or not."""
    return RECOMPUTED if recomputed else LINEAR


def with_halo(tile: TileConfig, itemsize: int, device: Device) -> TileBackwardConfig:
    """The config with this tile: a vector of the halo for every thread."""
    row = power_of_2(tile.chunks * tile.block_hw + tile.block_tail)
    access = min(tile.vec, VECTOR_BYTES // itemsize)
    share = tile.num_warps * device.warp_size * access // tile.block_halo
    return TileBackwardConfig(tile, block_halo_hw=min(row, max(share, tile.vec)))
