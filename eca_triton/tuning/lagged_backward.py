"""Config of the lagged launch of the backward, or None where it would not pay."""

from __future__ import annotations

from dataclasses import replace

from .config import Device
from .lagged import TILE_BYTES, VECTORS, LaggedConfig, cut
from .layout import Layout


def lagged_backward_config(
    layout: Layout, itemsize: int, recomputed: bool, stored: bool, bits: bool, device: Device
) -> LaggedConfig | None:
    """Config of the backward.

    Args:
        layout: Of x, dy, d_x and, where there are such, residual and d_residual.
        itemsize: Bytes of the largest element of these.
        recomputed: Whether the activation's argument is recomputed: neither the identity nor bits.
        stored: Whether d_residual is wanted.
        bits: Whether the activation's bits are read.
        device: Properties of the GPU.
    """
    # What is spread comes back: d_residual, or dy; to recompute it, x and perhaps a residual.
    returning = 3 if recomputed and not stored else 1
    # Two maps at a time take the registers of one in the forward, and what recomputes u takes more.
    size, vectors = TILE_BYTES // 2, VECTORS // 2
    if not recomputed:
        return cut(layout, itemsize, size, vectors, returning, bits, device)
    config = cut(layout, itemsize, size // 2, vectors, returning, bits, device)
    return None if config is None else replace(config, max_registers=255)
