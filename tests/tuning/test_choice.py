"""Which kernel a map gets, for the sites of real networks and for maps of any shape."""

from __future__ import annotations

import random

import pytest
import torch

from eca_triton.tuning.choice import choose
from eca_triton.tuning.config import Choice, Device
from eca_triton.tuning.families.tile import FORWARD, MAX_HALO, TileConfig
from eca_triton.tuning.layout import Layout, common_layout
from eca_triton.tuning.problem import EcaProblem

H200 = Device(num_sms=132, warp_size=32)
MI300 = Device(num_sms=304, warp_size=64, vendor="amd")

# (C, H = W, k) of every ECA module in timm's 23 networks at their own image sizes.
TIMM = [
    (19, 56, 5), (26, 56, 5), (64, 64, 3), (128, 32, 5), (142, 28, 5), (171, 28, 5),
    (256, 16, 5), (256, 56, 5), (256, 64, 5), (256, 80, 5), (256, 88, 5), (278, 14, 5),
    (384, 8, 5), (384, 16, 5), (512, 8, 5), (512, 28, 5), (512, 32, 5), (512, 40, 5),
    (512, 44, 5), (768, 14, 5), (818, 14, 5), (1024, 7, 5), (1024, 14, 5), (1024, 16, 5),
    (1024, 20, 5), (1536, 7, 5), (1536, 8, 5), (1536, 10, 5), (1536, 11, 5), (1536, 14, 5),
    (1536, 16, 5), (1536, 20, 5), (1536, 22, 5), (2022, 7, 7), (2042, 7, 7), (2048, 7, 7),
    (2048, 8, 7), (2048, 10, 7),
]  # fmt: skip
MOBILENET_V2 = [
    (16, 112, 1), (24, 56, 1), (32, 28, 1), (64, 14, 1), (96, 14, 3), (160, 7, 3), (320, 7, 3),
]  # fmt: skip


def layout_of(shape: tuple[int, ...], channels_last: bool = False) -> Layout:
    x = torch.empty(shape, device="meta")
    return common_layout(
        shape, (x.movedim(1, -1).contiguous().movedim(-1, 1) if channels_last else x).stride()
    )


def choice(
    shape: tuple[int, ...],
    k: int,
    channels_last: bool = False,
    itemsize: int = 2,
    device: Device = H200,
    front: bool = False,
) -> Choice:
    return choose(
        EcaProblem.forward(layout_of(shape, channels_last), "any", itemsize, itemsize, k, front, device)
    )


def assert_fits(config: TileConfig, layout: Layout, itemsize: int, k: int, device: Device) -> None:
    """The whole row is in registers, and the launch is one that a GPU takes."""
    for size in (config.block_c, config.block_hw, config.vec, config.num_warps, max(1, config.block_tail)):
        assert size & (size - 1) == 0, "powers of two"
    assert config.chunks >= 1
    columns = config.chunks * config.block_hw + config.block_tail
    assert columns >= layout.hw + (config.vec - 1 if config.windowed else 0)
    threads = config.num_warps * device.warp_size
    assert config.block_c * layout.hw * itemsize <= FORWARD.long_bytes * threads
    assert threads <= 512, "more would have fewer than 128 registers each"
    assert min(k - 1, layout.c - config.block_c) <= MAX_HALO * config.block_c
    assert layout.c * layout.hw % config.vec == 0
    assert config.block_c * layout.hw % config.vec == 0, "blocks end on a vector"
    if config.windowed:
        assert config.vec <= layout.hw, "a vector holds parts of two rows at most"
    else:
        assert layout.hw % config.vec == 0
    assert config.packed or itemsize == 4 or config.block_c * columns <= 64 * threads


@pytest.mark.parametrize("batch", [1, 8, 128])
@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize(("c", "size", "k"), TIMM + MOBILENET_V2)
def test_contiguous_sites_are_read_once(c: int, size: int, k: int, itemsize: int, batch: int) -> None:
    shape = (batch, c, size, size)
    found = choice(shape, k, itemsize=itemsize)
    assert found.kernel in ("tile", "lagged")
    if batch == 128:
        assert found.kernel == "tile"
    if isinstance(found.config, TileConfig):
        assert_fits(found.config, layout_of(shape), itemsize, k, H200)


@pytest.mark.parametrize("front", [False, True])
@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize(("c", "size", "k"), TIMM + MOBILENET_V2)
def test_channels_last_sites_are_read_once(c: int, size: int, k: int, itemsize: int, front: bool) -> None:
    """Off a vector of 8 channels, in pruned networks, they keep the two passes."""
    for batch in (1, 8, 32, 128):
        found = choice((batch, c, size, size), k, channels_last=True, itemsize=itemsize, front=front)
        assert found.kernel == "two_pass" if c % 8 else found.kernel in ("tile_channels_last", "lagged")


@pytest.mark.parametrize(
    ("shape", "block_c", "columns", "num_warps"),
    [
        pytest.param((128, 256, 56, 56), 8, (256, 12, 64), 8, id="56x56"),
        pytest.param((128, 512, 28, 28), 16, (128, 6, 16), 8, id="28x28"),
        pytest.param((128, 1024, 14, 14), 32, (64, 3, 4), 4, id="14x14"),
        pytest.param((128, 2048, 7, 7), 64, (32, 2, 0), 4, id="7x7"),
    ],
)
def test_tiles_of_resnet(
    shape: tuple[int, ...], block_c: int, columns: tuple[int, int, int], num_warps: int
) -> None:
    config = choice(shape, 7 if shape[1] == 2048 else 5).config
    assert isinstance(config, TileConfig)
    assert (config.block_c, config.num_warps) == (block_c, num_warps)
    assert (config.block_hw, config.chunks, config.block_tail) == columns
    assert config.windowed == (shape[-1] == 7)


@pytest.mark.parametrize("batch", [1, 2, 4, 8])
@pytest.mark.parametrize(("c", "size", "k"), [(256, 56, 5), (512, 28, 5), (1024, 14, 5), (2048, 7, 7)])
def test_small_batches_give_every_sm_a_program(c: int, size: int, k: int, batch: int) -> None:
    config = choice((batch, c, size, size), k).config
    assert isinstance(config, TileConfig)
    assert batch * -(-c // config.block_c) >= 0.9 * H200.num_sms


def test_few_large_rows_at_batch_1_are_shared_by_all_sms() -> None:
    assert choice((1, 16, 112, 112), 1).kernel == "lagged"
    assert choice((1, 65, 112, 112), 1).kernel == "lagged"
    assert choice((1, 66, 112, 112), 1).kernel == "tile", "half of the SMs have a row"
    assert choice((1, 16, 112, 112), 1, device=MI300).kernel == "two_pass", "its L2 is one per die"
    assert choice((1, 24, 7, 7), 3).kernel == "tile", "nothing to share"


@pytest.mark.parametrize(
    ("shape", "kernel"),
    [
        pytest.param((8, 64, 33), "tile", id="1-D"),
        pytest.param((8, 64, 3, 4, 5), "tile", id="3-D"),
        pytest.param((8, 64, 1, 1), "tile", id="pooled"),
        pytest.param((8, 64, 60_000), "lagged", id="rows too long for registers"),
        pytest.param((2, 64, 300_000), "two_pass", id="images too large for L2"),
        pytest.param((1, 2**26, 7, 7), "two_pass", id="offsets past int32"),
    ],
)
def test_other_ranks_and_sizes(shape: tuple[int, ...], kernel: str) -> None:
    assert choice(shape, 3).kernel == kernel


def test_maps_with_gaps_keep_two_passes() -> None:
    x = torch.empty(128, 64, 58, 58, device="meta")[..., 1:-1, 1:-1]
    layout = common_layout(x.shape, x.stride())
    assert choose(EcaProblem.forward(layout, "any", 2, 2, 5, False, H200)) == Choice("two_pass", None)


def test_layouts_that_differ_keep_two_passes() -> None:
    x = torch.empty(128, 64, 8, 8, device="meta")
    layout = common_layout(x.shape, x.stride(), x.to(memory_format=torch.channels_last).stride())
    assert choose(EcaProblem.forward(layout, "any", 2, 2, 5, False, H200)).kernel == "two_pass"


def test_any_shape_has_a_kernel_that_fits() -> None:
    rng = random.Random(0)
    for _ in range(500):
        spatial = [rng.choice([1, 2, 3, 5, 7, 8, 13, 14, 31, 56, 100, 225]) for _ in range(rng.randint(1, 3))]
        shape = (rng.choice([1, 3, 8, 128]), rng.choice([1, 2, 3, 8, 19, 64, 142, 2047, 2048]), *spatial)
        k, itemsize = rng.choice([1, 3, 5, 9, 31]), rng.choice([2, 4])
        device = rng.choice([H200, MI300])
        found = choice(shape, k, rng.random() < 0.5, itemsize, device)
        assert (found.config is None) == (found.kernel == "two_pass")
        if isinstance(found.config, TileConfig):
            assert_fits(found.config, layout_of(shape), itemsize, k, device)
