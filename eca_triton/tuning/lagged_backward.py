"""Config of the lagged launch of the backward, or None where it would not pay."""

from __future__ import annotations

from .config import Device
from .lagged import TILE_BYTES, LaggedConfig, cut
from .layout import Layout


def lagged_backward_config(
    layout: Layout, itemsize: int, bits: bool, returning: int, device: Device
) -> LaggedConfig | None:
    """Config of the backward.

    Args:
        layout: Of x, dy, d_x and, where there are such, residual and d_residual.
        itemsize: Bytes of the largest element of these.
        bits: Whether the activation's bits are read.
        returning: Maps that come back from L2. One, p in d_residual or dy; where p is recomputed and not stored, x
            too, and the residual if there is one.
        device: Properties of the GPU.
    """
    # Two maps at a time take the registers of one in the forward.
    return cut(layout, itemsize, TILE_BYTES // 2, returning, bits, device)
