"""Config of the lagged launch of the backward, or None where it would not pay."""

from __future__ import annotations

from dataclasses import replace

from .config import Device
from .lagged import TILE_BYTES, VECTORS, LaggedConfig, cut
from .layout import Layout

BACKWARD_VECTORS = VECTORS // 2


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
    size = backward_tile_bytes(recomputed)
    config = cut(layout, itemsize, size, BACKWARD_VECTORS, returning(recomputed, stored), bits, device)
    return with_registers(config, recomputed)


def returning(recomputed: bool, stored: bool) -> int:
    """Maps that come back from L2: what is spread, d_residual or dy; to recompute it, x and a residual."""
    return 3 if recomputed and not stored else 1


def backward_tile_bytes(recomputed: bool) -> int:
    """Bytes of a tile, at most: two maps at a time take the registers of one in the forward."""
    return TILE_BYTES // 4 if recomputed else TILE_BYTES // 2


def with_registers(config: LaggedConfig | None, recomputed: bool) -> LaggedConfig | None:
    """The config with all the registers that there are, if u is recomputed."""
    return replace(config, max_registers=255) if config is not None and recomputed else config
