"""Kernels chosen for an H200 read a map from DRAM once; `l2_model.py` and `l2_backward.py` show tables."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import l2_backward as backward
import pytest
from l2_model import L2, RESNET, SIZES, Cache, chosen, occupancy, resident_programs, traffic

from eca_triton.tuning.config import Choice
from eca_triton.tuning.families.lagged import LaggedConfig

UNHINTED = [L2(size.capacity, hints=False) for size in SIZES]
UNBOUNDED = [L2(10**12)]
TWO_PASS = Choice("two_pass", None)
LARGE = ((128, 256, 56, 56), 5)
BITS = 1 / 16  # of a map
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


@pytest.mark.parametrize("tail", [False, True], ids=["plain", "residual-relu"])
@pytest.mark.parametrize("site", RESNET, ids=lambda site: str(site[0][2]))
def test_every_map_of_a_backward_crosses_once(site: tuple, tail: bool) -> None:
    """dy, x and d_x; with a tail d_residual and the bits.

    At 7x7 2 % are read again where a release of Triton needs so few registers that more programs run at once.
    """
    once = 4 + BITS if tail else 3
    for figure in backward.traffic(backward.chosen(*site, tail), site[0], tail):
        assert once <= figure <= 1.025 * once


def test_whichever_resident_program_of_a_backward_proceeds() -> None:
    for figure in backward.traffic(backward.chosen(*LARGE, True), LARGE[0], True, seed=0):
        assert figure <= 4.13


def test_a_lag_of_a_backward_that_outlasts_l2_reads_p_twice() -> None:
    config = backward.chosen(*LARGE, False)
    assert isinstance(config, LaggedConfig)
    for figure in backward.traffic(replace(config, lag=4000), LARGE[0], False):
        assert figure >= 3.7


@pytest.mark.parametrize("tail", [False, True])
@pytest.mark.parametrize("site", [RESNET[0], RESNET[2]], ids=["lagged", "tile"])
def test_of_a_backward_an_l2_that_holds_everything_sees_each_byte_once(site: tuple, tail: bool) -> None:
    batch, *shape = site[0]
    few = (batch // 16, *shape)
    (figure,) = backward.traffic(backward.chosen(*site, tail), few, tail, sizes=UNBOUNDED)
    extra = figure - (4 + BITS if tail else 3)
    assert extra == 0 if shape[1] == 14 else 0 < extra < 0.02, "partial sums"


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
