"""Config of the channels-last register tile of the backward, or None where a map does not fit one."""

from __future__ import annotations

from .config import Device
from .layout import Layout
from .tile_channels_last import PIECES, TileChannelsLastConfig, cut

MAX_THREADS = 256


def tile_channels_last_backward_config(
    layout: Layout, itemsize: int, taps: int, device: Device
) -> TileChannelsLastConfig | None:
    """Config of the backward: p stays in registers, x passes by.

    Args:
        layout: Of x, dy, d_x and, where there are such, residual and d_residual.
        itemsize: Bytes of the largest element of these.
        taps: Of the convolution.
        device: Properties of the GPU.
    """
    return cut(layout, itemsize, taps, backward_pieces, device)


def backward_pieces(threads: int) -> int:
    """Vectors that each of so many threads may hold, as compiled for sm_80, sm_90 and sm_100.

    Up to 255 registers leave 8 warps per SM: enough, at 14 vectors in flight each; shorter shares per
    thread cost half as many instructions again. A program of 512 threads would be alone on its SM, which
    loads nothing while it stores, and its halo outweighs what the lagged launch reads twice.
    """
    return PIECES if threads <= MAX_THREADS else 0
