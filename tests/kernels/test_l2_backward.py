"""The channels-last backward reads maps from DRAM once; `l2_backward.py`, run, shows a table."""

from __future__ import annotations

from dataclasses import replace

import pytest
from l2_backward import chosen, traffic
from l2_model import L2, RESNET

from eca_triton.tuning.families.lagged import LaggedConfig

LARGE, TAPS = RESNET[0]
BITS = 1 / 16


@pytest.mark.parametrize("tail", [False, True], ids=["plain", "residual-relu"])
@pytest.mark.parametrize("site", RESNET, ids=lambda site: str(site[0][2]))
def test_every_map_crosses_once(site: tuple, tail: bool) -> None:
    """dy, x and d_x; with a tail d_residual and the bits.

    At 7x7 2 % are read again where a release of Triton needs so few registers that more programs run at once.
    """
    once = 4 + BITS if tail else 3
    for figure in traffic(chosen(*site, tail), site[0], tail):
        assert once <= figure <= 1.025 * once


def test_whichever_resident_program_proceeds() -> None:
    for figure in traffic(chosen(LARGE, TAPS, True), LARGE, True, seed=0):
        assert figure <= 4.13


def test_a_lag_that_outlasts_l2_reads_p_twice() -> None:
    config = chosen(LARGE, TAPS, False)
    assert isinstance(config, LaggedConfig)
    for figure in traffic(replace(config, lag=4000), LARGE, False):
        assert figure >= 3.7


@pytest.mark.parametrize("tail", [False, True])
@pytest.mark.parametrize("site", [RESNET[0], RESNET[2]], ids=["lagged", "tile"])
def test_an_l2_that_holds_everything_sees_each_byte_once(site: tuple, tail: bool) -> None:
    batch, *shape = site[0]
    few = (batch // 16, *shape)
    (figure,) = traffic(chosen(*site, tail), few, tail, sizes=[L2(10**12)])
    extra = figure - (4 + BITS if tail else 3)
    assert extra == 0 if shape[1] == 14 else 0 < extra < 0.02, "partial sums"
