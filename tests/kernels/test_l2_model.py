"""Kernels chosen for an H200 read a map from DRAM once; `python tests/kernels/l2_model.py` shows a table."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
from l2_model import L2, RESNET, SIZES, Cache, chosen, occupancy, resident_programs, traffic

from eca_triton.tuning.config import Choice
from eca_triton.tuning.families.lagged import LaggedConfig

UNHINTED = [L2(size.capacity, hints=False) for size in SIZES]
UNBOUNDED = [L2(10**12)]
TWO_PASS = Choice("two_pass", None)
LARGE = ((128, 256, 56, 56), 5)
WITHIN = 1.05  # of one read of the map and the residual, and one write


sites = pytest.mark.parametrize(
    ("site", "channels_last", "residual"),
    [
        pytest.param(site, last, residual, id=f"{site[0][2]}{'-last' * last}{'-residual' * residual}")
        for site, last, residual in product(RESNET, (False, True), (False, True))
    ],
)


@sites
def test_chosen_kernels_read_the_map_once(site: tuple, channels_last: bool, residual: bool) -> None:
    choice = chosen(*site, channels_last, residual)
    for figure in traffic(choice, *site, channels_last, residual):
        assert 2 + residual <= figure <= WITHIN * (2 + residual)


@pytest.mark.parametrize("residual", [False, True])
def test_behind_batch_norm_too(residual: bool) -> None:
    """Its terms take the registers that the tile of this map would need: another kernel is chosen."""
    choice = chosen(*RESNET[1], True, residual, front=True)
    for figure in traffic(choice, *RESNET[1], True, residual):
        assert figure <= WITHIN * (2 + residual)


@pytest.mark.parametrize("channels_last", [False, True])
def test_whichever_resident_program_proceeds(channels_last: bool) -> None:
    choice = chosen(*LARGE, channels_last, True)
    for figure in traffic(choice, *LARGE, channels_last, True, seed=0):
        assert figure <= WITHIN * 3


def test_two_passes_read_a_large_map_twice() -> None:
    for figure in traffic(TWO_PASS, *LARGE, True):
        assert figure >= 2.95


def test_a_lag_that_outlasts_l2_reads_the_map_twice() -> None:
    config = chosen(*LARGE, True, False).config
    assert isinstance(config, LaggedConfig)
    for figure in traffic(Choice("lagged", replace(config, lag=2000)), *LARGE, True):
        assert figure >= 2.75


def test_the_lag_relies_on_eviction_hints() -> None:
    """Half of what passes through L2 is output that nobody reads: least recently used is not least useful."""
    choice = chosen(*LARGE, True, False)
    smaller_l2_unhinted = traffic(choice, *LARGE, True, sizes=UNHINTED)[1]
    assert smaller_l2_unhinted > 2.5


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize(
    ("channels_last", "site"),
    [(False, RESNET[1]), (True, RESNET[1]), (True, LARGE)],
    ids=["tile", "tile_channels_last", "lagged"],
)
def test_an_l2_that_holds_everything_sees_each_byte_once(
    site: tuple, channels_last: bool, residual: bool
) -> None:
    """So the programs of each kernel cover the map; partial sums are what some of them add."""
    (batch, *shape), taps = site
    few = (batch // 16, *shape), taps
    for choice in (chosen(*site, channels_last, residual), TWO_PASS):
        (figure,) = traffic(choice, *few, channels_last, residual, sizes=UNBOUNDED)
        extra = figure - 2 - residual
        assert 0 < extra < 0.04 if choice.kernel in ("lagged", "two_pass") else extra == 0


class TestCache:
    def test_forgets_what_was_used_least_recently(self) -> None:
        cache = Cache(L2(2))
        for chunk in (1, 2, 1, 3, 1):  # 3 takes the place of 2
            cache.touch(chunk, 1, write=False, evict_first=False)
        assert cache.dram_bytes == 3
        cache.touch(2, 1, write=False, evict_first=False)
        assert cache.dram_bytes == 4

    def test_a_written_chunk_reaches_dram_once(self) -> None:
        cache = Cache(L2(2))
        for chunk in (1, 1, 2, 3):
            cache.touch(chunk, 1, write=True, evict_first=False)
        assert cache.dram_bytes == 1, "1 made room for 3"
        cache.flush()
        assert cache.dram_bytes == 3

    @pytest.mark.parametrize(("hints", "read_again"), [(True, 0), (False, 1)])
    def test_what_is_marked_makes_room_first(self, hints: bool, read_again: int) -> None:
        cache = Cache(L2(2, hints))
        cache.touch(1, 1, write=False, evict_first=False)
        for chunk in (2, 3):
            cache.touch(chunk, 1, write=False, evict_first=True)
        cache.touch(1, 1, write=False, evict_first=False)
        assert cache.dram_bytes == 3 + read_again


def test_occupancy_follows_registers_threads_and_shared_memory() -> None:
    assert resident_programs(threads=256, registers=128, shared_bytes=0) == 132 * 2
    assert resident_programs(threads=128, registers=32, shared_bytes=0) == 132 * 16
    assert resident_programs(threads=32, registers=32, shared_bytes=0) == 132 * 32
    assert resident_programs(threads=32, registers=32, shared_bytes=75 << 10) == 132 * 3
    assert occupancy("two_pass", (128, 256, 56, 56), True, 128) == 132 * 16
    assert occupancy("tile", (128, 256, 56, 56), False, 256) < 132 * 8
