"""What tuning tries for a problem: the heuristic's choice first, then what the analytical rules leave."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from tuned import H200, MI300, forward, one_of_two, product

from eca_triton.tuning.allowed import allowed
from eca_triton.tuning.candidates import MOST, candidates
from eca_triton.tuning.choice import choose
from eca_triton.tuning.config import FLAT, TILED, Choice
from eca_triton.tuning.families import lagged, tile
from eca_triton.tuning.families.lagged import LaggedConfig
from eca_triton.tuning.families.product import most_sums
from eca_triton.tuning.families.tile_channels_last import TileChannelsLastConfig
from eca_triton.tuning.problem import EcaProblem, Problem

SITES = {"56x56": (256, 3136), "28x28": (512, 784), "14x14": (1024, 196), "7x7": (2048, 49)}  # C, H * W


def any_problems(count: int) -> list[EcaProblem]:
    rng, found = random.Random(0), []
    for _ in range(count):
        direction = rng.choice(["backward", "forward"])
        flags = ("bits", "recomputed", "stored") if direction == "backward" else ("bits", "front")
        made = forward(
            rng.choice([1, 2, 8, 128]),
            rng.choice([1, 3, 8, 24, 64, 96, 160, 256, 1000, 1024, 2048]),
            rng.choice([1, 4, 25, 49, 64, 196, 784, 3136, 12544]),
            last=rng.random() < 0.5,
            dtype=rng.choice([torch.bfloat16, torch.float32]),
            taps=rng.choice([1, 3, 5, 7, 9]),
            device=rng.choice([H200, MI300]),
        )
        found.append(replace(made, direction=direction, **{flag: rng.random() < 0.5 for flag in flags}))
    return found


PRODUCTS: list[Problem] = [
    product(n, c, hw, reduced, device=device, dtype=dtype)
    for n in (1, 128)
    for c, hw, reduced in [
        (256, 3136, 64), (512, 784, 128), (1024, 196, 256), (2048, 49, 512), (31, 25, 17), (1, 1, 1),
    ]
    for dtype in (torch.bfloat16, torch.float32)
    for device in (H200, MI300)
]  # fmt: skip


PASSES: list[Problem] = [
    one_of_two(step, n, c, hw, last, device=device)
    for step in (*TILED, *FLAT)
    for n in (1, 128)
    for c, hw in [(256, 3136), (171, 784), (1024, 196), (2048, 49), (19, 3136), (1, 1)]
    for last in (False, True)
    for device in (H200, MI300)
]


def test_the_heuristic_comes_first_and_every_candidate_may_run() -> None:
    for each in [*any_problems(400), *PRODUCTS, *PASSES]:
        found = candidates(each)
        assert found[0] == choose(each)
        assert (Choice("two_pass", None) in found) == (each.kind in ("forward", "backward"))
        assert len(set(found)) == len(found) <= MOST
        assert all(allowed(each, choice) for choice in found[1:])


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("site", SITES)
def test_a_large_map_has_many_and_the_nearest_come_first(site: str, last: bool) -> None:
    found = candidates(forward(128, *SITES[site], last=last))
    assert len(found) >= 10
    kernels = [choice.kernel for choice in found]
    assert kernels[1] == kernels[0]
    assert kernels[-1] == "two_pass"


def test_a_thread_keeps_no_more_than_its_registers_hold_and_none_is_idle() -> None:
    for each in any_problems(200):
        limits = tile.limits(each)
        for choice in candidates(each)[1:]:
            config = choice.config
            if choice.kernel == "two_pass":
                continue
            threads = config.num_warps * each.device.warp_size
            if choice.kernel == "tile":
                assert config.block_c * each.layout.hw * each.kept_itemsize <= limits.long_bytes * threads
            elif isinstance(config, TileChannelsLastConfig):
                assert config.steps <= 7
            else:
                assert config.block_c * config.block_hw * each.itemsize >= 16 * threads


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
def test_no_candidate_leaves_most_multiprocessors_idle(last: bool) -> None:
    each = forward(1, *SITES["56x56"], last=last)
    for choice in candidates(each):
        if isinstance(choice.config, LaggedConfig):
            assert choice.config.tiles(each.layout) >= H200.num_sms // 2
        elif choice.config is not None:
            assert each.layout.c // choice.config.block_c >= H200.num_sms // 2


def test_how_far_sums_are_ahead_varies_where_the_heuristic_lags() -> None:
    def lags(each: EcaProblem) -> list[int]:
        """How many candidates differ in their lag alone, by what they have in common."""
        found = [choice.config for choice in candidates(each) if isinstance(choice.config, LaggedConfig)]
        alike = dict.fromkeys((replace(config, lag=0) for config in found), 0)
        for config in found:
            alike[replace(config, lag=0)] += 1
        return list(alike.values())

    assert max(lags(forward(128, *SITES["56x56"], last=True))) == 3
    assert set(lags(forward(128, *SITES["14x14"], last=True))) == {1}


def test_tiles_that_would_not_come_back_from_l2_are_no_candidates() -> None:
    for choice in candidates(forward(128, 2048, 3136, last=True, taps=7)):
        if isinstance(choice.config, LaggedConfig):
            assert choice.config.lag * choice.config.block_c * choice.config.block_hw * 2 <= lagged.L2_BYTES


def test_a_map_that_only_two_passes_compute_has_one_candidate() -> None:
    assert candidates(forward(128, 30, 49, last=True, taps=9)) == [Choice("two_pass", None)]


def test_a_products_matrix_units_are_fed_and_its_programs_fit() -> None:
    for each in PRODUCTS:
        first, *others = candidates(each)
        starved = each.layout.n * first.config.tiles(each.layout) < each.device.num_sms
        for choice in others:
            config, threads = choice.config, choice.config.num_warps * each.device.warp_size
            sums = config.block_hw * config.block_c / threads
            assert min(config.block_hw, config.block_c, config.block_i) >= 16
            assert (8 if starved else 32) <= sums <= most_sums(threads) <= 128
            staged = (config.block_hw + config.block_c) * config.block_i * config.num_stages
            assert staged * each.kept_itemsize <= each.device.shared_bytes
            assert config.num_stages == 2 or config.num_stages <= -(-each.reduced // config.block_i) + 1


def test_a_product_of_one_image_is_cut_for_half_of_the_multiprocessors_at_least() -> None:
    each = product(1, 512, 784, 128)
    programs = [choice.config.tiles(each.layout) for choice in candidates(each)]
    assert programs[0] < H200.num_sms // 2 <= min(programs[1:])
    assert max(programs) >= H200.num_sms


def test_a_products_blocks_pad_little_or_no_more_than_the_heuristics() -> None:
    for each in PRODUCTS:
        usual = choose(each).config
        for choice in candidates(each):
            for axis, size in (("hw", each.layout.hw), ("c", each.layout.c), ("i", each.reduced)):
                block, most = getattr(choice.config, f"block_{axis}"), getattr(usual, f"block_{axis}")
                assert -size % block <= max(0.25 * size, -size % most)


def test_a_passs_threads_have_vectors_to_wait_for_and_registers_for_their_sums() -> None:
    for each in PASSES:
        for choice in candidates(each)[1:]:
            config: Any = choice.config
            threads = config.num_warps * each.device.warp_size
            if each.step in ("affine", "affine_backward"):
                elements, vector = config.block, 8
            else:
                elements, vector = config.block_c * config.block_hw, max(config.vec_c, config.vec_hw)
                vector = max(vector, config.window)
            assert threads * vector <= elements <= 8 * threads * vector


OF_A_PRODUCT = ("block_hw", "block_c", "block_i", "num_warps", "num_stages")
OF_A_PASS = ("block_c", "block_hw", "splits", "num_warps")


@pytest.mark.parametrize(
    ("problem", "fields"),
    [
        (product(128, 256, 3136, 64), OF_A_PRODUCT),
        (product(128, 512, 784, 128), OF_A_PRODUCT),
        (one_of_two("pool", 2, 171, 784), OF_A_PASS),
        (one_of_two("pool", 2, 171, 784, last=True), OF_A_PASS),
    ],
    ids=["56x56", "28x28", "contiguous pass", "channels_last pass"],
)
def test_every_field_is_tried_with_other_values_but_no_other_vectors(
    problem: Problem, fields: tuple[str, ...]
) -> None:
    first, *others = (choice.config for choice in candidates(problem))
    assert len(others) == MOST - 1
    for field in fields:
        assert {getattr(config, field) for config in others} > {getattr(first, field)}, field
    if problem.kind == "product":
        assert any(config.block_hw * config.block_c > first.block_hw * first.block_c for config in others)
    else:
        assert {(config.vec_c, config.vec_hw) for config in others} == {(first.vec_c, first.vec_hw)}


def test_rows_that_start_anywhere_are_read_by_windows_whatever_the_tile() -> None:
    assert {choice.config.window for choice in candidates(one_of_two("pool", 128, 2048, 49))} == {8}
