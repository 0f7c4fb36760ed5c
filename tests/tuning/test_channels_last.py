"""How the kernels that read a map once cut it: pure functions of layout and device."""

from __future__ import annotations

import itertools

import pytest
import torch

from eca_triton.tuning.config import Device
from eca_triton.tuning.families.lagged import L2_BYTES, lagged_backward_config, lagged_config
from eca_triton.tuning.families.tile_channels_last import (
    HALO,
    tile_channels_last_backward_config,
    tile_channels_last_config,
)
from eca_triton.tuning.layout import Layout, common_layout

H200 = Device(num_sms=132, warp_size=32)
MI300 = Device(num_sms=304, warp_size=64, vendor="amd")

TILES = [(16, 14), (24, 28), (96, 14), (160, 7), (320, 7), (512, 28), (1024, 14), (1280, 7), (2048, 7)]
LARGE = [(16, 112), (24, 56), (64, 112), (144, 56), (256, 56), (256, 72)]
BATCHES = [1, 8, 128, 70_000]


def layout_of(*shape: int, channels_last: bool = True) -> Layout:
    x = torch.empty(shape, device="meta")
    return common_layout(
        shape, (x.movedim(1, -1).contiguous().movedim(-1, 1) if channels_last else x).stride()
    )


class TestTile:
    @pytest.mark.parametrize("device", [H200, MI300], ids=["h200", "mi300"])
    @pytest.mark.parametrize("front", [False, True])
    @pytest.mark.parametrize("itemsize", [2, 4])
    @pytest.mark.parametrize(("n", "site"), list(itertools.product(BATCHES, TILES)), ids=str)
    def test_covers_the_map_with_one_vector_per_thread(
        self, n: int, site: tuple[int, int], itemsize: int, front: bool, device: Device
    ) -> None:
        c, size = site
        config = tile_channels_last_config(layout_of(n, c, size, size), itemsize, 5, front, device)
        if config is None:
            assert front, "only batch norm or an activation takes the registers of a map that would fit"
            assert size == 28
            return
        vectors = config.num_warps * device.warp_size * 16 // itemsize
        assert config.block_c * config.block_hw == vectors == 2 * HALO * config.block_halo
        for block, steps in (
            (config.block_hw, config.steps),
            (config.block_halo, config.halo_steps),
        ):
            assert (steps - 1) * block < size * size <= steps * block
        assert config.steps <= 7, "28 registers"
        assert config.num_warps * device.warp_size <= 512

    @pytest.mark.parametrize(
        ("c", "size", "block_c", "threads"),
        [(2048, 7, 128, 128), (1024, 14, 64, 256), (512, 28, 32, 512), (160, 7, 64, 128)],
    )
    def test_large_batches(self, c: int, size: int, block_c: int, threads: int) -> None:
        """Whole lines of 128 bytes where they fit, the fewest threads, the least padding."""
        config = tile_channels_last_config(layout_of(128, c, size, size), 2, 5, False, H200)
        assert config is not None
        assert (config.block_c, config.num_warps * 32) == (block_c, threads)

    @pytest.mark.parametrize(("c", "size"), [(2048, 7), (1024, 14)])
    def test_one_image_fills_the_sms_as_far_as_halos_allow(self, c: int, size: int) -> None:
        config = tile_channels_last_config(layout_of(1, c, size, size), 2, 7, False, H200)
        assert config is not None
        assert c // config.block_c >= 0.95 * H200.num_sms

    @pytest.mark.parametrize(
        ("layout", "taps"),
        [
            pytest.param(layout_of(8, 256, 56, 56), 5, id="does not fit"),
            pytest.param(layout_of(8, 142, 7, 7), 5, id="channels off the vector"),
            pytest.param(layout_of(8, 64, 7, 7), 19, id="band longer than the halo"),
            pytest.param(layout_of(8, 64, 7, 7, channels_last=False), 5, id="contiguous"),
            pytest.param(common_layout((8, 64, 7, 7), (6272, 1, 896, 128)), 5, id="half of the channels"),
            pytest.param(common_layout((8, 64, 7, 7), (4096, 1, 512, 64)), 5, id="cropped"),
            pytest.param(
                common_layout((8, 64, 7, 7), (3136, 1, 448, 64), (3136, 49, 7, 1)), 5, id="two layouts"
            ),
        ],
    )
    def test_leaves_other_maps_alone(self, layout: Layout, taps: int) -> None:
        assert tile_channels_last_config(layout, 2, taps, False, H200) is None


class TestLagged:
    @pytest.mark.parametrize("front", [False, True])
    @pytest.mark.parametrize("itemsize", [2, 4])
    @pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
    @pytest.mark.parametrize(("n", "site"), list(itertools.product(BATCHES, LARGE)), ids=str)
    def test_nobody_waits_for_a_later_ticket_and_tiles_come_back_from_l2(
        self, n: int, site: tuple[int, int], channels_last: bool, itemsize: int, front: bool
    ) -> None:
        c, size = site
        layout = layout_of(n, c, size, size, channels_last=channels_last)
        config = lagged_config(layout, itemsize, front, H200)
        if config is None:
            assert c * size * size * itemsize * 5 > L2_BYTES, "only images of which few fit L2"
            return
        tiles = config.tiles(layout)
        # Ticket t rescales tile t - lag, whose image is summed by tickets up to that image's last tile.
        assert config.lag >= tiles
        for ticket in (config.lag, config.lag + tiles - 1, config.lag + tiles):
            assert ((ticket - config.lag) // tiles + 1) * tiles - 1 <= ticket
        tile_bytes = config.block_c * config.block_hw * itemsize
        assert tile_bytes <= 1 << 15
        assert (config.lag + H200.num_sms) * tile_bytes <= max(L2_BYTES, 2 * n * c * size * size * itemsize)
        vector = 16 // itemsize
        assert {config.vec_c, config.vec_hw} == {1, vector}
        for block in (config.block_c, config.block_hw, config.block_p, config.block_g, config.num_warps):
            assert block & (block - 1) == 0

    @pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
    def test_one_image_gives_most_sms_a_tile(self, channels_last: bool) -> None:
        layout = layout_of(1, 256, 56, 56, channels_last=channels_last)
        config = lagged_config(layout, 2, False, H200)
        assert config is not None
        assert config.tiles(layout) >= H200.num_sms

    @pytest.mark.parametrize(
        ("layout", "device"),
        [
            pytest.param(layout_of(8, 256, 56, 56), MI300, id="an L2 per die"),
            pytest.param(layout_of(8, 142, 57, 57), H200, id="no vectors"),
            pytest.param(layout_of(8, 512, 256, 256), H200, id="an image larger than L2"),
            pytest.param(common_layout((8, 64, 56, 56), (6272 * 64, 1, 7168, 128)), H200, id="with gaps"),
        ],
    )
    def test_leaves_other_maps_alone(self, layout: Layout, device: Device) -> None:
        assert lagged_config(layout, 2, False, device) is None

    def test_no_byte_of_bits_belongs_to_two_rows(self) -> None:
        odd, even = (layout_of(1, 16, 114, width, channels_last=False) for width in (114, 112))
        assert lagged_config(odd, 4, False, H200) is not None
        assert lagged_config(odd, 4, False, H200, bits=True) is None
        assert lagged_config(even, 4, False, H200, bits=True) is not None


class TestBackward:
    @pytest.mark.parametrize("itemsize", [2, 4])
    @pytest.mark.parametrize(("n", "site"), list(itertools.product(BATCHES, TILES)), ids=str)
    def test_tiles_are_the_forwards_of_programs_that_share_an_sm(
        self, n: int, site: tuple[int, int], itemsize: int
    ) -> None:
        c, size = site
        layout = layout_of(n, c, size, size)
        config = tile_channels_last_backward_config(layout, itemsize, 5, H200)
        forward = tile_channels_last_config(layout, itemsize, 5, False, H200)
        assert forward is not None
        if config is None:
            assert forward.num_warps == 16 or itemsize == 4 or size == 28
        else:
            assert config.num_warps <= 8
            assert config == forward or forward.num_warps == 16

    @pytest.mark.parametrize("recomputed", [False, True])
    @pytest.mark.parametrize("stored", [False, True])
    @pytest.mark.parametrize("itemsize", [2, 4])
    @pytest.mark.parametrize(("n", "site"), list(itertools.product(BATCHES, [*LARGE, (512, 28)])), ids=str)
    def test_what_comes_back_fits_l2(
        self, n: int, site: tuple[int, int], itemsize: int, stored: bool, recomputed: bool
    ) -> None:
        c, size = site
        layout = layout_of(n, c, size, size)
        config = lagged_backward_config(layout, itemsize, recomputed, stored, False, H200)
        maps = 3 if recomputed and not stored else 1
        if config is None:
            assert maps * c * size * size * itemsize * 5 > L2_BYTES, "only images of which few fit L2"
            return
        assert config.lag >= config.tiles(layout)
        kept = maps * (config.lag + H200.num_sms) * config.block_c * config.block_hw * itemsize
        assert kept <= max(L2_BYTES, 2 * maps * n * c * size * size * itemsize)

    def test_one_map_comes_back_unless_p_is_recomputed(self) -> None:
        layout = layout_of(128, 256, 72, 72)
        assert lagged_backward_config(layout, 2, False, False, True, H200) is not None
        assert lagged_backward_config(layout, 2, True, True, False, H200) is not None
        assert lagged_backward_config(layout, 4, True, False, False, H200) is None
