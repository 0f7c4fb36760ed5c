"""How the contiguous backward, and a forward that writes bits, cut a map: pure functions."""

from __future__ import annotations

import random

import pytest
import torch

from eca_triton.tuning.config import Device
from eca_triton.tuning.families.tile import (
    FORWARD,
    LINEAR,
    MAX_HALO,
    RECOMPUTED,
    Limits,
    TileBackwardConfig,
    TileConfig,
    tile_backward_config,
    tile_config,
)
from eca_triton.tuning.layout import Layout, common_layout

H200 = Device(num_sms=132, warp_size=32)
MI300 = Device(num_sms=304, warp_size=64, vendor="amd")
RESNET = {
    "56x56": ((128, 256, 56, 56), 5),
    "28x28": ((128, 512, 28, 28), 5),
    "14x14": ((128, 1024, 14, 14), 5),
    "7x7": ((128, 2048, 7, 7), 7),
}


def layout_of(*shape: int) -> Layout:
    return common_layout(shape, torch.empty(shape, device="meta").stride())


def backward(
    shape: tuple[int, ...], k: int, bits: bool = False, recomputed: bool = False
) -> TileBackwardConfig:
    config = tile_backward_config(layout_of(*shape), 2, 2, k, bits, recomputed, H200)
    assert config is not None
    return config


def assert_fits(
    config: TileConfig, layout: Layout, itemsize: int, bits: bool, limits: Limits, warp_size: int
) -> None:
    assert config.chunks * config.block_hw + config.block_tail >= layout.hw + (
        config.vec - 1 if config.windowed else 0
    )
    assert config.block_c * layout.hw % config.vec == 0, "blocks end on a vector"
    assert layout.c * layout.hw % config.vec == 0, "images too"
    assert config.windowed == (layout.hw % config.vec != 0)
    assert config.vec <= layout.hw or not config.windowed, "a vector holds parts of two rows at most"
    if bits:
        assert config.vec == 8, "a vector is a byte of bits"
        assert config.block_hw % 8 == config.block_tail % 8 == 0
    threads = config.num_warps * warp_size
    assert threads <= 512
    assert config.block_c * layout.hw * itemsize <= limits.long_bytes * threads
    columns = config.chunks * config.block_hw + config.block_tail
    assert config.packed or itemsize == 4 or config.block_c * columns <= 64 * threads


@pytest.mark.parametrize(
    ("site", "linear", "recomputed"),
    [
        ("56x56", (4, 8), (4, 16)),
        ("28x28", (16, 8), (8, 8)),
        ("14x14", (32, 4), (32, 8)),
        ("7x7", (64, 4), (64, 8)),
    ],
)
def test_tiles_of_resnet(site: str, linear: tuple[int, int], recomputed: tuple[int, int]) -> None:
    """Channels of a program and its warps."""
    for again, expected in ((False, linear), (True, recomputed)):
        tile = backward(*RESNET[site], recomputed=again).tile
        assert (tile.block_c, tile.num_warps) == expected


@pytest.mark.parametrize("site", RESNET)
@pytest.mark.parametrize("bits", [False, True])
def test_every_thread_loads_a_vector_of_the_halo(site: str, bits: bool) -> None:
    shape, k = RESNET[site]
    config = backward(shape, k, bits)
    halo = config.tile.block_halo * config.block_halo_hw
    whole_rows = config.block_halo_hw >= shape[2] * shape[3]
    assert halo == config.tile.num_warps * 32 * config.tile.vec or whole_rows


def test_bits_take_windows_where_rows_end_inside_a_byte() -> None:
    """14 x 14 of 16 bits has rows of 49 vectors of 8 bytes, which is enough without bits."""
    layout = layout_of(128, 1024, 14, 14)
    for config in (
        tile_config(layout, 2, 2, 5, H200, bits=True),
        backward((128, 1024, 14, 14), 5, bits=True).tile,
    ):
        assert (config.vec, config.windowed) == (8, True)
    assert not backward((128, 1024, 14, 14), 5).tile.windowed
    fp32 = tile_config(layout, 4, 4, 5, H200, bits=True)
    assert (fp32.vec, fp32.windowed) == (8, True), "a byte of bits is two vectors"


@pytest.mark.parametrize("shape", [(8, 3, 3, 3), (8, 64, 2, 2), (8, 64, 1, 1)], ids=str)
def test_no_tile_with_bits_where_images_or_windows_split_a_byte(shape: tuple[int, ...]) -> None:
    layout = layout_of(*shape)
    assert tile_config(layout, 2, 2, 3, H200) is not None
    assert tile_config(layout, 2, 2, 3, H200, bits=True) is None
    assert tile_backward_config(layout, 2, 2, 3, True, False, H200) is None


def test_none_where_a_row_outgrows_the_registers() -> None:
    assert tile_backward_config(layout_of(8, 64, 60_000), 2, 2, 3, False, False, H200) is None
    x = torch.empty(8, 64, 56, 56, device="meta").to(memory_format=torch.channels_last)
    assert tile_backward_config(common_layout(x.shape, x.stride()), 2, 2, 3, False, False, H200) is None


def test_any_shape_fits_or_is_refused() -> None:
    rng = random.Random(0)
    found = 0
    for _ in range(500):
        spatial = [rng.choice([1, 2, 3, 5, 7, 8, 13, 14, 31, 56, 100, 225]) for _ in range(rng.randint(1, 3))]
        shape = (rng.choice([1, 3, 8, 128]), rng.choice([1, 2, 3, 8, 19, 64, 142, 2047, 2048]), *spatial)
        layout, k, itemsize = layout_of(*shape), rng.choice([1, 3, 5, 9, 31]), rng.choice([2, 4])
        bits, recomputed, device = rng.random() < 0.5, rng.random() < 0.5, rng.choice([H200, MI300])
        config = tile_backward_config(layout, itemsize, itemsize, k, bits, recomputed, device)
        if config is None:
            continue
        found += 1
        forward = tile_config(layout, itemsize, itemsize, k, device, bits)
        assert forward is not None, "what has a backward has a forward"
        assert_fits(forward, layout, itemsize, bits, FORWARD, device.warp_size)
        tile, limits = config.tile, RECOMPUTED if recomputed else LINEAR
        assert_fits(tile, layout, itemsize, bits, limits, device.warp_size)
        assert min(k - 1, layout.c - tile.block_c) <= MAX_HALO * tile.block_c
        assert config.block_halo_hw & (config.block_halo_hw - 1) == 0, "a power of two"
        assert config.block_halo_hw >= min(tile.vec, layout.hw)
    assert found > 100
