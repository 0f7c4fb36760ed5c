"""How kernels cut their work: pure functions of shape, strides and device."""

from __future__ import annotations

import itertools

import pytest
import torch

from eca_triton.tuning.config import Config, Device
from eca_triton.tuning.families.blocks import power_of_2
from eca_triton.tuning.families.passes import (
    MAX_SPLITS,
    TILE_BYTES,
    backward_block,
    gate_block,
    pool_config,
    rescale_config,
)
from eca_triton.tuning.layout import Layout, common_layout

H200 = Device(num_sms=132, warp_size=32)
MI300 = Device(num_sms=304, warp_size=64, vendor="amd")

SHAPES = [
    (n, c, size, size)
    for n, (c, size) in itertools.product(
        (1, 8, 128, 70_000), ((1, 1), (3, 7), (19, 14), (64, 112), (256, 56), (2047, 7), (2048, 7))
    )
]


def layout_of(shape: tuple[int, ...], channels_last: bool = False) -> Layout:
    x = torch.empty(shape, device="meta")
    return common_layout(
        shape, (x.movedim(1, -1).contiguous().movedim(-1, 1) if channels_last else x).stride()
    )


class TestLayout:
    """Spatial dims are merged as far as the strides of all tensors allow."""

    def test_dense_maps_have_one_spatial_stride(self) -> None:
        assert layout_of((2, 3, 4, 5, 6)).spatial == (1, 1, 120)
        assert layout_of((2, 3, 4, 5, 6)).strides == ((360, 120, 0, 0, 1),)
        assert layout_of((2, 3, 4, 5), channels_last=True).strides == ((60, 1, 0, 0, 3),)

    def test_order_of_spatial_dims_does_not_matter(self) -> None:
        x = torch.empty(2, 3, 5, 4, device="meta").transpose(2, 3)
        assert common_layout(x.shape, x.stride()) == layout_of((2, 3, 4, 5))

    def test_a_cropped_map_keeps_its_rows(self) -> None:
        x = torch.empty(2, 3, 6, 8, device="meta")[..., 1:5, 2:7]
        layout = common_layout(x.shape, x.stride())
        assert layout.spatial == (1, 4, 5)
        assert layout.strides == ((144, 48, 0, 8, 1),)
        assert not layout.flat

    def test_tensors_are_merged_only_where_all_allow_it(self) -> None:
        x = torch.empty(2, 3, 4, 5, device="meta")
        transposed = torch.empty(2, 3, 5, 4, device="meta").transpose(2, 3)
        layout = common_layout(x.shape, x.stride(), transposed.stride())
        assert layout.spatial == (1, 4, 5)
        assert layout.strides == ((60, 20, 0, 5, 1), (60, 20, 0, 1, 4))

    def test_dims_of_size_one_have_no_stride(self) -> None:
        x = torch.empty(1, 1, 1, 5, device="meta")
        assert common_layout(x.shape, x.stride()).strides == ((0, 0, 0, 0, 1),)
        assert common_layout((2, 3, 1, 1), (3, 1, 3, 3)).strides == ((3, 1, 0, 0, 0),)

    @pytest.mark.parametrize("shape", [(2, 3), (2, 3, 1, 1, 1, 1)])
    def test_other_numbers_of_dims_are_refused(self, shape: tuple[int, ...]) -> None:
        with pytest.raises(ValueError, match="1 to 3 spatial dims"):
            common_layout(shape, (1,) * len(shape))


class TestVectors:
    """A vector may cover an axis only if every row of it starts and ends on a vector."""

    @pytest.mark.parametrize(("size", "vector"), [(56, 8), (6, 4), (14, 4), (7, 1)])
    def test_contiguous(self, size: int, vector: int) -> None:
        layout = layout_of((2, 16, size, size))
        assert (layout.vector(1, 8), layout.vector(2, 8)) == (1, vector)

    @pytest.mark.parametrize(("c", "vector"), [(64, 8), (24, 8), (20, 4), (142, 2), (19, 1)])
    def test_channels_last(self, c: int, vector: int) -> None:
        layout = layout_of((2, c, 7, 7), channels_last=True)
        assert (layout.vector(1, 8), layout.vector(2, 8)) == (vector, 1)

    def test_rows_of_a_cropped_map_are_no_vectors(self) -> None:
        x = torch.empty(2, 3, 16, 16, device="meta")[..., :8]
        assert common_layout(x.shape, x.stride()).vector(2, 8) == 1

    def test_rows_that_lie_apart_start_on_a_vector(self) -> None:
        x = torch.empty(2, 3, 68, device="meta")[..., :64]
        assert common_layout(x.shape, x.stride()).vector(2, 8) == 4

    def test_every_tensor_has_vectors(self) -> None:
        x, sparse = torch.empty(2, 3, 64, device="meta"), torch.empty(2, 3, 512, device="meta")[..., ::8]
        assert common_layout(x.shape, x.stride(), sparse.stride()).vector(2, 8) == 1

    def test_two_layouts_share_no_axis(self) -> None:
        x = torch.empty(2, 64, 8, 8, device="meta")
        strides = x.to(memory_format=torch.channels_last).stride()
        layout = common_layout(x.shape, x.stride(), strides)
        assert (layout.vector(1, 8), layout.vector(2, 8)) == (1, 1)


class TestWindow:
    """Rows that start off a vector boundary are read by aligned windows, where no read leaves the tensor."""

    @pytest.mark.parametrize(
        ("shape", "itemsize", "window"),
        [
            pytest.param((2, 64, 7, 7), 2, 8, id="7x7"),
            pytest.param((2, 64, 14, 14), 2, 8, id="14x14 is half aligned"),
            pytest.param((2, 64, 14, 14), 4, 1, id="14x14 fp32 is aligned"),
            pytest.param((2, 64, 56, 56), 2, 1, id="56x56 is aligned"),
            pytest.param((3, 19, 7, 7), 2, 1, id="tensor ends inside a vector"),
            pytest.param((8, 64, 1, 3), 2, 1, id="rows shorter than a vector"),
        ],
    )
    def test_contiguous(self, shape: tuple[int, ...], itemsize: int, window: int) -> None:
        assert pool_config(layout_of(shape), itemsize, H200).window == window

    def test_never_on_maps_with_gaps(self) -> None:
        x = torch.empty(2, 64, 8, 8, device="meta")[..., 1:]
        assert pool_config(common_layout(x.shape, x.stride()), 2, H200).window == 1

    def test_never_channels_last(self) -> None:
        assert pool_config(layout_of((2, 64, 7, 7), channels_last=True), 2, H200).window == 1


@pytest.mark.parametrize(("size", "block"), [(56, 256), (28, 1024), (14, 256), (32, 1024), (48, 256)])
def test_blocks_of_a_contiguous_row_pad_least_and_are_long(size: int, block: int) -> None:
    assert pool_config(layout_of((128, 256, size, size)), 2, H200).block_hw == block


@pytest.mark.parametrize("device", [H200, MI300], ids=["h200", "mi300"])
@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_config_is_launchable(
    shape: tuple[int, ...], channels_last: bool, itemsize: int, device: Device
) -> None:
    layout = layout_of(shape, channels_last)
    for config in (pool_config(layout, itemsize, device), rescale_config(layout, itemsize, device)):
        for size in (config.block_c, config.block_hw, config.splits, config.num_warps):
            assert size >= 1
            assert size & (size - 1) == 0, "powers of two"
        assert config.block_c * config.block_hw * itemsize <= TILE_BYTES
        assert config.num_warps * device.warp_size <= 1024
        assert config.splits <= MAX_SPLITS
        assert layout.n * config.splits * -(-layout.c // config.block_c) < 2**31, "a grid of one axis"


class TestSplits:
    """Few programs fill the SMs by cutting the spatial dims; many programs leave them whole."""

    def programs(self, config: Config, shape: tuple[int, ...]) -> int:
        return shape[0] * -(-shape[1] // config.block_c) * config.splits

    @pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
    def test_batch_one_keeps_most_sms_busy(self, channels_last: bool) -> None:
        shape = (1, 256, 56, 56)
        config = pool_config(layout_of(shape, channels_last), 2, H200)
        assert self.programs(config, shape) >= 0.9 * H200.num_sms

    def test_large_batches_are_not_cut(self) -> None:
        assert pool_config(layout_of((128, 256, 56, 56)), 2, H200).splits == 1

    def test_channels_last_tiles_are_whole_lines(self) -> None:
        config = pool_config(layout_of((128, 256, 56, 56), channels_last=True), 2, H200)
        assert config.block_c * 2 >= 128


@pytest.mark.parametrize("block_k", [1, 2, 4, 8, 16, 32, 64])
def test_gate_blocks_are_powers_of_two_that_fit_registers(block_k: int) -> None:
    for splits in (1, 2, 8, 32):
        block = gate_block(splits, block_k)
        assert block & (block - 1) == 0
        assert block * block_k <= max(1024, 16 * block_k)
    for total in (1, 1 << 20, 1 << 24):
        block = backward_block(total, block_k)
        assert block & (block - 1) == 0
        assert block * block_k <= max(64 * 128, 16 * block_k)


def test_a_power_of_2_is_its_own() -> None:
    sizes = [1, 2, 3, 4, 5, 8, 9, 1024, 1025]
    assert [power_of_2(size) for size in sizes] == [1, 2, 4, 4, 8, 8, 16, 1024, 2048]
