"""How kernels cut their work: pure functions of shape, strides and device."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor
from tuned import H200, MI300, layout_of

from eca_triton.tuning.config import Config, Device, TiledPass
from eca_triton.tuning.families.blocks import power_of_2
from eca_triton.tuning.families.passes import (
    MAX_SPLITS,
    TILE_BYTES,
    backward_block,
    gate_block,
    pass_config,
)
from eca_triton.tuning.layout import Layout, common_layout
from eca_triton.tuning.problem import PassProblem

HALF = torch.bfloat16


def config_of(step: TiledPass, layout: Layout, dtype: torch.dtype = HALF, device: Device = H200) -> Config:
    """Of one launch for maps of one dtype."""
    config = pass_config(PassProblem(layout, dtype, dtype.itemsize, device, step))
    assert isinstance(config, Config)
    return config


def empty(*shape: int) -> Tensor:
    return torch.empty(shape, device="meta")


def common(*maps: Tensor) -> Layout:
    return common_layout(maps[0].shape, *(each.stride() for each in maps))


@pytest.mark.parametrize(
    ("layout", "spatial", "strides"),
    [
        pytest.param(layout_of(2, 3, 4, 5, 6), (1, 1, 120), [(360, 120, 0, 0, 1)], id="dense"),
        pytest.param(layout_of(2, 3, 4, 5, last=True), (1, 1, 20), [(60, 1, 0, 0, 3)], id="channels-last"),
        pytest.param(
            common(empty(2, 3, 5, 4).transpose(2, 3)), (1, 1, 20), [(60, 20, 0, 0, 1)], id="columns first"
        ),
        pytest.param(common(empty(2, 3, 6, 8)[..., 1:5, 2:7]), (1, 4, 5), [(144, 48, 0, 8, 1)], id="cropped"),
        pytest.param(
            common(empty(2, 3, 4, 5), empty(2, 3, 5, 4).transpose(2, 3)),
            (1, 4, 5),
            [(60, 20, 0, 5, 1), (60, 20, 0, 1, 4)],
            id="two that differ",
        ),
        pytest.param(common(empty(1, 1, 1, 5)), (1, 1, 5), [(0, 0, 0, 0, 1)], id="dims of size one"),
        pytest.param(
            common_layout((2, 3, 1, 1), (3, 1, 3, 3)), (1, 1, 1), [(3, 1, 0, 0, 0)], id="one position"
        ),
    ],
)
def test_spatial_dims_are_merged_as_far_as_the_strides_of_all_tensors_allow(
    layout: Layout, spatial: tuple[int, ...], strides: list[tuple[int, ...]]
) -> None:
    assert layout.spatial == spatial
    assert layout.strides == tuple(strides)
    assert layout.flat == (spatial[:2] == (1, 1))


@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 1, 1, 1, 1)])
def test_other_numbers_of_dims_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="1 to 3 spatial dims"):
        common_layout(shape, (1,) * len(shape))


@pytest.mark.parametrize(
    ("layout", "channels", "positions"),
    [
        *((layout_of(2, 16, size, size), 1, each) for size, each in ((56, 8), (6, 4), (14, 4), (7, 1))),
        *(
            (layout_of(2, c, 7, 7, last=True), each, 1)
            for c, each in ((64, 8), (24, 8), (20, 4), (142, 2), (19, 1))
        ),
        pytest.param(common(empty(2, 3, 16, 16)[..., :8]), 1, 1, id="rows of a cropped map"),
        pytest.param(common(empty(2, 3, 68)[..., :64]), 1, 4, id="rows that lie apart"),
        pytest.param(common(empty(2, 3, 64), empty(2, 3, 512)[..., ::8]), 1, 1, id="one of two is sparse"),
        pytest.param(
            common(empty(2, 64, 8, 8), empty(2, 64, 8, 8).to(memory_format=torch.channels_last)),
            1,
            1,
            id="two layouts",
        ),
    ],
    ids=lambda value: f"{value.c}x{value.hw}" if isinstance(value, Layout) else str(value),
)
def test_vectors_cover_an_axis_whose_rows_all_start_and_end_on_one(
    layout: Layout, channels: int, positions: int
) -> None:
    assert (layout.vector(1, 8), layout.vector(2, 8)) == (channels, positions)


@pytest.mark.parametrize(
    ("layout", "dtype", "window"),
    [
        pytest.param(layout_of(2, 64, 7, 7), HALF, 8, id="7x7"),
        pytest.param(layout_of(2, 64, 14, 14), HALF, 8, id="14x14 is half aligned"),
        pytest.param(layout_of(2, 64, 14, 14), torch.float32, 1, id="14x14 fp32 is aligned"),
        pytest.param(layout_of(2, 64, 56, 56), HALF, 1, id="56x56 is aligned"),
        pytest.param(layout_of(3, 19, 7, 7), HALF, 1, id="tensor ends inside a vector"),
        pytest.param(layout_of(8, 64, 1, 3), HALF, 1, id="rows shorter than a vector"),
        pytest.param(common(empty(2, 64, 8, 8)[..., 1:]), HALF, 1, id="with gaps"),
        pytest.param(layout_of(2, 64, 7, 7, last=True), HALF, 1, id="channels-last"),
    ],
)
def test_rows_off_a_vector_are_read_by_windows_where_no_read_leaves_the_tensor(
    layout: Layout, dtype: torch.dtype, window: int
) -> None:
    assert config_of("pool", layout, dtype).window == window


@pytest.mark.parametrize(("size", "block"), [(56, 256), (28, 1024), (14, 256), (32, 1024), (48, 256)])
def test_blocks_of_a_contiguous_row_pad_least_and_are_long(size: int, block: int) -> None:
    assert config_of("pool", layout_of(128, 256, size, size)).block_hw == block


SITES = ((1, 1), (3, 7), (19, 14), (64, 112), (256, 56), (2047, 7), (2048, 7))


@pytest.mark.parametrize("device", [H200, MI300], ids=["h200", "mi300"])
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
def test_every_config_is_launchable(last: bool, device: Device) -> None:
    for n, (c, size), dtype in itertools.product((1, 8, 128, 70_000), SITES, (HALF, torch.float32)):
        layout = layout_of(n, c, size, size, last=last)
        for config in (config_of(step, layout, dtype, device) for step in ("pool", "rescale")):
            for block in (config.block_c, config.block_hw, config.splits, config.num_warps):
                assert block == power_of_2(block) >= 1, layout
            assert config.block_c * config.block_hw * dtype.itemsize <= TILE_BYTES, layout
            assert config.num_warps * device.warp_size <= 1024, layout
            assert config.splits <= MAX_SPLITS, layout
            assert n * config.splits * -(-c // config.block_c) < 2**31, "a grid of one axis"


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
def test_few_programs_cut_the_spatial_dims_and_many_leave_them_whole(last: bool) -> None:
    one, many = (config_of("pool", layout_of(n, 256, 56, 56, last=last)) for n in (1, 128))
    assert -(-256 // one.block_c) * one.splits >= 0.9 * H200.num_sms
    if last:
        assert many.block_c * 2 >= 128, "whole lines"
    else:
        assert many.splits == 1


@pytest.mark.parametrize("block_k", [1, 2, 4, 8, 16, 32, 64])
def test_gate_blocks_are_powers_of_two_that_fit_registers(block_k: int) -> None:
    blocks = [(gate_block(splits, block_k), 1024) for splits in (1, 2, 8, 32)]
    blocks += [(backward_block(total, block_k), 64 * 128) for total in (1, 1 << 20, 1 << 24)]
    for block, most in blocks:
        assert block == power_of_2(block)
        assert block * block_k <= max(most, 16 * block_k)


def test_a_power_of_2_is_its_own() -> None:
    sizes = [1, 2, 3, 4, 5, 8, 9, 1024, 1025]
    assert [power_of_2(size) for size in sizes] == [1, 2, 4, 4, 8, 8, 16, 1024, 2048]
