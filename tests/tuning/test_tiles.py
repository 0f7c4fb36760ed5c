"""How the kernels that read a map once cut it: pure functions of layout and device."""

from __future__ import annotations

import itertools
import random

import pytest
import torch
from tuned import H200, MI300, layout_of, problem

from eca_triton.tuning.choice import choose
from eca_triton.tuning.config import Device
from eca_triton.tuning.families.lagged import L2_BYTES, lagged_config
from eca_triton.tuning.families.tile import (
    FORWARD,
    LINEAR,
    MAX_HALO,
    RECOMPUTED,
    Limits,
    TileConfig,
    tile_config,
)
from eca_triton.tuning.families.tile_channels_last import HALO, tile_channels_last_config
from eca_triton.tuning.layout import Layout, common_layout

RESNET = {
    "56x56": ((128, 256, 56, 56), 5),
    "28x28": ((128, 512, 28, 28), 5),
    "14x14": ((128, 1024, 14, 14), 5),
    "7x7": ((128, 2048, 7, 7), 7),
}
DTYPES = [torch.bfloat16, torch.float32]
TILES = [(16, 14), (24, 28), (96, 14), (160, 7), (320, 7), (512, 28), (1024, 14), (1280, 7), (2048, 7)]
LARGE = [(16, 112), (24, 56), (64, 112), (144, 56), (256, 56), (256, 72)]
BATCHES = [1, 8, 128, 70_000]
FEW_FIT = "only images of which few fit L2"


# Contiguous tiles: `tile`, forward and backward.


def assert_fits(
    config: TileConfig, layout: Layout, itemsize: int, k: int, bits: bool, limits: Limits, device: Device
) -> None:
    """The whole row is in registers, and the launch is one that a GPU takes."""
    for size in (config.block_c, config.block_hw, config.vec, config.num_warps, max(1, config.block_tail)):
        assert size & (size - 1) == 0, "powers of two"
    assert config.chunks >= 1
    columns = config.chunks * config.block_hw + config.block_tail
    assert columns >= layout.hw + (config.vec - 1 if config.windowed else 0)
    threads = config.num_warps * device.warp_size
    assert config.block_c * layout.hw * itemsize <= limits.long_bytes * threads
    assert threads <= 512, "more would have fewer than 128 registers each"
    assert min(k - 1, layout.c - config.block_c) <= MAX_HALO * config.block_c
    assert layout.c * layout.hw % config.vec == 0, "images end on a vector"
    assert config.block_c * layout.hw % config.vec == 0, "blocks too"
    assert config.windowed == (layout.hw % config.vec != 0)
    assert config.vec <= layout.hw or not config.windowed, "a vector holds parts of two rows at most"
    assert config.packed or itemsize == 4 or config.block_c * columns <= 64 * threads
    if bits:
        assert config.vec == 8, "a vector is a byte of bits"
        assert config.block_hw % 8 == config.block_tail % 8 == 0


def test_any_shape_has_a_kernel_that_fits() -> None:
    rng, found = random.Random(0), 0
    sides = [1, 2, 3, 5, 7, 8, 10, 13, 14, 16, 20, 22, 28, 31, 32, 44, 56, 64, 80, 88, 100, 112, 225]
    channels = [1, 2, 3, 8, 19, 24, 64, 142, 171, 256, 278, 512, 818, 1024, 1536, 2022, 2047, 2048]
    for _ in range(2000):
        side, dims = rng.choice(sides), rng.randint(1, 3)
        spatial = [side] * dims if rng.random() < 0.5 else [rng.choice(sides) for _ in range(dims)]
        shape = (rng.choice([1, 3, 8, 128]), rng.choice(channels), *spatial)
        layout = layout_of(*shape, last=rng.random() < 0.25)
        k, dtype, device = rng.choice([1, 3, 5, 9, 31]), rng.choice(DTYPES), rng.choice([H200, MI300])
        bits, recomputed, itemsize = rng.random() < 0.5, rng.random() < 0.5, dtype.itemsize
        common = {"dtype": dtype, "taps": k, "device": device}

        chosen = choose(problem(layout, **common))
        assert (chosen.config is None) == (chosen.kernel == "two_pass")
        if isinstance(chosen.config, TileConfig):
            assert_fits(chosen.config, layout, itemsize, k, False, FORWARD, device)

        config = tile_config(problem(layout, "backward", bits=bits, recomputed=recomputed, **common))
        if config is not None:
            found += 1
            forward = tile_config(problem(layout, bits=bits, **common))
            assert forward is not None, "what has a backward has a forward"
            assert_fits(forward, layout, itemsize, k, bits, FORWARD, device)
            limits = RECOMPUTED if recomputed else LINEAR
            assert_fits(config, layout, itemsize, k, bits, limits, device)
            assert config.block_halo_hw & (config.block_halo_hw - 1) == 0, "a power of two"
            assert config.block_halo_hw >= min(config.vec, layout.hw)
    assert found > 200


@pytest.mark.parametrize(
    ("site", "forward", "columns", "linear", "recomputed"),
    [
        ("56x56", (8, 8), (256, 12, 64), (4, 8), (4, 16)),
        ("28x28", (16, 8), (128, 6, 16), (16, 8), (8, 8)),
        ("14x14", (32, 4), (64, 3, 4), (32, 4), (32, 8)),
        ("7x7", (64, 4), (32, 2, 0), (64, 4), (64, 8)),
    ],
)
def test_tiles_of_resnet(
    site: str,
    forward: tuple[int, int],
    columns: tuple[int, int, int],
    linear: tuple[int, int],
    recomputed: tuple[int, int],
) -> None:
    """Channels of a program and its warps; of forward, the columns too."""
    shape, k = RESNET[site]
    layout = layout_of(*shape)
    tile = tile_config(problem(layout, taps=k))
    assert (tile.block_hw, tile.chunks, tile.block_tail) == columns
    assert tile.windowed == (site == "7x7")
    tiles = [tile_config(problem(layout, "backward", taps=k, recomputed=each)) for each in (False, True)]
    assert [(each.block_c, each.num_warps) for each in (tile, *tiles)] == [forward, linear, recomputed]


@pytest.mark.parametrize("site", RESNET)
@pytest.mark.parametrize("bits", [False, True])
def test_every_thread_loads_a_vector_of_the_halo(site: str, bits: bool) -> None:
    shape, k = RESNET[site]
    config = tile_config(problem(layout_of(*shape), "backward", taps=k, bits=bits))
    halo = config.block_halo * config.block_halo_hw
    whole_rows = config.block_halo_hw >= shape[2] * shape[3]
    assert halo == config.num_warps * 32 * config.vec or whole_rows


def test_bits_take_windows_where_rows_end_inside_a_byte() -> None:
    """14 x 14 of 16 bits has rows of 49 vectors of 8 bytes, which is enough without bits."""
    layout = layout_of(128, 1024, 14, 14)
    assert not tile_config(problem(layout, "backward")).windowed
    fp32 = problem(layout, dtype=torch.float32, bits=True)
    for each in (problem(layout, "backward", bits=True), problem(layout, bits=True), fp32):
        config = tile_config(each)
        assert (config.vec, config.windowed) == (8, True), "in fp32, a byte of bits is two vectors"


@pytest.mark.parametrize("shape", [(8, 3, 3, 3), (8, 64, 2, 2), (8, 64, 1, 1)], ids=str)
def test_no_tile_with_bits_where_images_or_windows_split_a_byte(shape: tuple[int, ...]) -> None:
    layout = layout_of(*shape)
    assert tile_config(problem(layout, taps=3)) is not None
    assert tile_config(problem(layout, taps=3, bits=True)) is None
    assert tile_config(problem(layout, "backward", taps=3, bits=True)) is None


@pytest.mark.parametrize(
    "layout", [layout_of(8, 64, 60_000), layout_of(8, 64, 56, 56, last=True)], ids=["long rows", "no rows"]
)
def test_no_backward_where_a_row_outgrows_the_registers_or_is_none(layout: Layout) -> None:
    assert tile_config(problem(layout, "backward", taps=3)) is None


# Channels-last tiles.


@pytest.mark.parametrize("device", [H200, MI300], ids=["h200", "mi300"])
@pytest.mark.parametrize("front", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_channels_last_tile_covers_the_map_with_one_vector_per_thread(
    dtype: torch.dtype, front: bool, device: Device
) -> None:
    for n, (c, size) in itertools.product(BATCHES, TILES):
        layout = layout_of(n, c, size, size, last=True)
        config = tile_channels_last_config(problem(layout, dtype=dtype, front=front, device=device))
        if config is None:
            assert front, "only batch norm or an activation takes the registers of a map that would fit"
            assert size == 28
            continue
        vectors = config.num_warps * device.warp_size * 16 // dtype.itemsize
        assert config.block_c * config.block_hw == vectors == 2 * HALO * config.block_halo, (n, c, size)
        for block, steps in ((config.block_hw, config.steps), (config.block_halo, config.halo_steps)):
            assert (steps - 1) * block < size * size <= steps * block, (n, c, size)
        assert config.steps <= 7, "28 registers"
        assert config.num_warps * device.warp_size <= 512, (n, c, size)


@pytest.mark.parametrize(
    ("c", "size", "block_c", "threads"),
    [(2048, 7, 128, 128), (1024, 14, 64, 256), (512, 28, 32, 512), (160, 7, 64, 128)],
)
def test_channels_last_tiles_of_large_batches(c: int, size: int, block_c: int, threads: int) -> None:
    """Whole lines of 128 bytes where they fit, the fewest threads, the least padding."""
    config = tile_channels_last_config(problem(layout_of(128, c, size, size, last=True)))
    assert (config.block_c, config.num_warps * 32) == (block_c, threads)


@pytest.mark.parametrize(("c", "size"), [(2048, 7), (1024, 14)])
def test_one_channels_last_image_fills_the_sms_as_far_as_halos_allow(c: int, size: int) -> None:
    config = tile_channels_last_config(problem(layout_of(1, c, size, size, last=True), taps=7))
    assert c // config.block_c >= 0.95 * H200.num_sms


@pytest.mark.parametrize(
    ("layout", "taps"),
    [
        pytest.param(layout_of(8, 256, 56, 56, last=True), 5, id="does not fit"),
        pytest.param(layout_of(8, 142, 7, 7, last=True), 5, id="channels off the vector"),
        pytest.param(layout_of(8, 64, 7, 7, last=True), 19, id="band longer than the halo"),
        pytest.param(layout_of(8, 64, 7, 7), 5, id="contiguous"),
        pytest.param(common_layout((8, 64, 7, 7), (6272, 1, 896, 128)), 5, id="half of the channels"),
        pytest.param(common_layout((8, 64, 7, 7), (4096, 1, 512, 64)), 5, id="cropped"),
        pytest.param(common_layout((8, 64, 7, 7), (3136, 1, 448, 64), (3136, 49, 7, 1)), 5, id="two layouts"),
    ],
)
def test_other_maps_have_no_channels_last_tile(layout: Layout, taps: int) -> None:
    assert tile_channels_last_config(problem(layout, taps=taps)) is None


@pytest.mark.parametrize("dtype", DTYPES)
def test_channels_last_backward_tiles_are_the_forwards_of_programs_that_share_an_sm(
    dtype: torch.dtype,
) -> None:
    for n, (c, size) in itertools.product(BATCHES, TILES):
        layout = layout_of(n, c, size, size, last=True)
        config = tile_channels_last_config(problem(layout, "backward", dtype=dtype))
        forward = tile_channels_last_config(problem(layout, dtype=dtype))
        assert forward is not None, layout
        if config is None:
            assert forward.num_warps == 16 or dtype == torch.float32 or size == 28, layout
        else:
            assert config.num_warps <= 8, layout
            assert config == forward or forward.num_warps == 16, layout


# Lagged tiles.


@pytest.mark.parametrize("front", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
def test_nobody_waits_for_a_later_ticket_and_tiles_come_back_from_l2(
    last: bool, dtype: torch.dtype, front: bool
) -> None:
    itemsize = dtype.itemsize
    for n, (c, size) in itertools.product(BATCHES, LARGE):
        layout, image_bytes = layout_of(n, c, size, size, last=last), c * size * size * itemsize
        config = lagged_config(problem(layout, dtype=dtype, front=front))
        if config is None:
            assert image_bytes * 5 > L2_BYTES, FEW_FIT
            continue
        tiles = config.tiles(layout)
        # Ticket t rescales tile t - lag, whose image is summed by tickets up to that image's last tile.
        assert config.lag >= tiles
        for ticket in (config.lag, config.lag + tiles - 1, config.lag + tiles):
            assert ((ticket - config.lag) // tiles + 1) * tiles - 1 <= ticket, layout
        tile_bytes = config.block_c * config.block_hw * itemsize
        assert tile_bytes <= 1 << 15, layout
        assert (config.lag + H200.num_sms) * tile_bytes <= max(L2_BYTES, 2 * n * image_bytes), layout
        assert {config.vec_c, config.vec_hw} == {1, 16 // itemsize}, layout
        for block in (config.block_c, config.block_hw, config.block_p, config.block_g, config.num_warps):
            assert block & (block - 1) == 0, layout


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
def test_one_lagged_image_gives_most_sms_a_tile(last: bool) -> None:
    layout = layout_of(1, 256, 56, 56, last=last)
    assert lagged_config(problem(layout)).tiles(layout) >= H200.num_sms


@pytest.mark.parametrize(
    ("layout", "device"),
    [
        pytest.param(layout_of(8, 256, 56, 56, last=True), MI300, id="an L2 per die"),
        pytest.param(layout_of(8, 142, 57, 57, last=True), H200, id="no vectors"),
        pytest.param(layout_of(8, 512, 256, 256, last=True), H200, id="an image larger than L2"),
        pytest.param(common_layout((8, 64, 56, 56), (6272 * 64, 1, 7168, 128)), H200, id="with gaps"),
    ],
)
def test_other_maps_are_not_lagged(layout: Layout, device: Device) -> None:
    assert lagged_config(problem(layout, device=device)) is None


def test_no_byte_of_bits_belongs_to_two_rows() -> None:
    odd, even = (layout_of(1, 16, 114, width) for width in (114, 112))
    assert lagged_config(problem(odd, dtype=torch.float32)) is not None
    assert lagged_config(problem(odd, dtype=torch.float32, bits=True)) is None
    assert lagged_config(problem(even, dtype=torch.float32, bits=True)) is not None


@pytest.mark.parametrize("recomputed", [False, True])
@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_comes_back_in_a_lagged_backward_fits_l2(
    dtype: torch.dtype, stored: bool, recomputed: bool
) -> None:
    maps, itemsize = 3 if recomputed and not stored else 1, dtype.itemsize
    common = {"dtype": dtype, "recomputed": recomputed, "stored": stored}
    for n, (c, size) in itertools.product(BATCHES, [*LARGE, (512, 28)]):
        layout, image_bytes = layout_of(n, c, size, size, last=True), maps * c * size * size * itemsize
        config = lagged_config(problem(layout, "backward", **common))
        if config is None:
            assert image_bytes * 5 > L2_BYTES, FEW_FIT
            continue
        assert config.lag >= config.tiles(layout), layout
        kept = maps * (config.lag + H200.num_sms) * config.block_c * config.block_hw * itemsize
        assert kept <= max(L2_BYTES, 2 * n * image_bytes), layout


def test_one_map_comes_back_unless_p_is_recomputed() -> None:
    layout = layout_of(128, 256, 72, 72, last=True)
    assert lagged_config(problem(layout, "backward", bits=True)) is not None
    assert lagged_config(problem(layout, "backward", recomputed=True, stored=True)) is not None
    assert lagged_config(problem(layout, "backward", dtype=torch.float32, recomputed=True)) is None
