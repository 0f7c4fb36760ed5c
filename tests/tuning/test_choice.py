"""Which kernel a map gets, for the sites of real networks and for maps of any shape."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from tuned import H200, MI300, layout_of, problem

from eca_triton.tuning.choice import choose
from eca_triton.tuning.config import Choice
from eca_triton.tuning.families.tile import TileConfig
from eca_triton.tuning.layout import Layout, common_layout

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


DTYPES = [torch.bfloat16, torch.float32]


def choice(shape: tuple[int, ...], k: int, last: bool = False, **options: Any) -> Choice:
    return choose(problem(layout_of(*shape, last=last), taps=k, **options))


@pytest.mark.parametrize("dtype", DTYPES)
def test_contiguous_sites_are_read_once(dtype: torch.dtype) -> None:
    for (c, size, k), batch in itertools.product(TIMM + MOBILENET_V2, (1, 8, 128)):
        found = choice((batch, c, size, size), k, dtype=dtype).kernel
        assert found in (("tile",) if batch == 128 else ("tile", "lagged")), (c, size, batch)


@pytest.mark.parametrize("front", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_channels_last_sites_are_read_once(dtype: torch.dtype, front: bool) -> None:
    """Off a vector of 8 channels, in pruned networks, they keep the two passes."""
    for (c, size, k), batch in itertools.product(TIMM + MOBILENET_V2, (1, 8, 32, 128)):
        found = choice((batch, c, size, size), k, last=True, dtype=dtype, front=front).kernel
        assert found in (("two_pass",) if c % 8 else ("tile_channels_last", "lagged")), (c, size, batch)


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


CROPPED = torch.empty(128, 64, 58, 58, device="meta")[..., 1:-1, 1:-1]


@pytest.mark.parametrize(
    "layout",
    [
        common_layout(CROPPED.shape, CROPPED.stride()),
        common_layout((128, 64, 8, 8), (4096, 64, 8, 1), (4096, 1, 512, 64)),
    ],
    ids=["gaps", "layouts that differ"],
)
def test_maps_that_no_kernel_walks_keep_two_passes(layout: Layout) -> None:
    assert choose(problem(layout)) == Choice("two_pass", None)
