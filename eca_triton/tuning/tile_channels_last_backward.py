"""Config of the channels-last register tile of the backward, or None where a map does not fit one."""

from __future__ import annotations

from .config import Device
from .layout import Layout
from .tile_channels_last import PIECES, PIECES_BESIDE_TERMS, TileChannelsLastConfig, cut


def tile_channels_last_backward_config(
    layout: Layout, itemsize: int, taps: int, front: bool, activated: bool, device: Device
) -> TileChannelsLastConfig | None:
    """Config of the backward: p stays in registers, x passes by.

    Args:
        layout: Of x, dy, d_x and, where there are such, residual and d_residual.
        itemsize: Bytes of the largest element of these.
        taps: Of the convolution.
        front: Whether batch norm stands before the pooling.
        activated: Whether there is an activation, by bits or recomputed.
        device: Properties of the GPU.
    """

    def pieces(threads: int) -> int:
        """As compiled for sm_80, sm_90 and sm_100.

        A thread of 512 has 128 registers. Of 256 it takes up to 255, which leaves 8 warps per SM: enough, at
        14 vectors in flight each; and shorter shares per thread cost half as many instructions again.
        """
        return PIECES_BESIDE_TERMS if (front or activated) and threads > 256 else PIECES

    return cut(layout, itemsize, taps, pieces, device)
