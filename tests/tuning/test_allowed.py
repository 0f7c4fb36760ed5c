"""Which configs may run: all of the heuristic's, and none with which a kernel would go wrong."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from tuned import H200, backward, changed, forward, one_of_two, product

from eca_triton.tuning.allowed import allowed
from eca_triton.tuning.choice import choose
from eca_triton.tuning.config import FLAT, TILED, Choice, Device
from eca_triton.tuning.layout import common_layout
from eca_triton.tuning.problem import Problem

CHANNELS, POSITIONS = (1, 8, 24, 100, 256, 2048), (1, 17, 49, 192, 196, 784, 3136, 131 * 97)


def maps(device: Device) -> Iterator[Problem]:
    """Forward and backward."""
    widths = [(torch.bfloat16, 2), (torch.bfloat16, 4), (torch.float32, 4)]
    for n, c, hw, taps, bits, more, last, (dtype, itemsize) in itertools.product(
        (1, 128), CHANNELS, POSITIONS, (1, 5, 17, 63), *[(False, True)] * 3, widths
    ):
        if bits and (c if last else c * hw) % 8:
            continue
        common: dict[str, Any] = {"dtype": dtype, "itemsize": itemsize, "taps": taps, "device": device}
        yield forward(n, c, hw, last, front=more, bits=bits, **common)
        yield backward(n, c, hw, last, recomputed=more and not bits, stored=more, bits=bits, **common)


def products(device: Device) -> Iterator[Problem]:
    for n, c, hw, reduced, itemsize in itertools.product(
        (1, 128), CHANNELS, POSITIONS, (1, 24, 64, 512), (2, 4)
    ):
        yield product(n, c, hw, reduced, itemsize=itemsize, device=device)


def passes(device: Device) -> Iterator[Problem]:
    for n, c, hw, step, last, dtype in itertools.product(
        (1, 128), CHANNELS, POSITIONS, (*TILED, *FLAT), (False, True), (torch.bfloat16, torch.float32)
    ):
        yield one_of_two(step, n, c, hw, last, device=device, dtype=dtype)


@pytest.mark.parametrize("problems", [maps, products, passes])
@pytest.mark.parametrize("sms", [4, 132])
def test_whatever_the_heuristic_chooses_is_allowed(
    problems: Callable[[Device], Iterator[Problem]], sms: int
) -> None:
    for problem in problems(replace(H200, num_sms=sms)):
        assert allowed(problem, choose(problem)), problem


TILE = forward(128, 256, 3136)
FLOATS = forward(128, 256, 3136, dtype=torch.float32)
ODD = forward(128, 2048, 49)
BITS = forward(128, 512, 784, bits=True)
TILE_BACKWARD = backward(128, 256, 3136)
RECOMPUTED = backward(128, 256, 196, recomputed=True)
LAST = forward(128, 1024, 196, last=True)
LAGGED = forward(128, 256, 3136, last=True)
LAGGED_BITS = backward(128, 256, 3136, last=True, bits=True, stored=True)
PRODUCT = product(128, 256, 3136, 64)
POOL = one_of_two("pool", 128, 256, 3136)
POOL_LAST = one_of_two("pool", 1, 256, 3136, last=True)
WINDOWS = one_of_two("pool", 128, 2048, 49)
MOMENTS = one_of_two("moments", 128, 256, 3136)
AFFINE = one_of_two("affine", 128, 256, 3136)
FLAT_LAGGED = forward(128, 64, 112 * 112, maps=3, taps=63)
FLAT_BITS = replace(FLAT_LAGGED, itemsize=4, dtype=torch.float32, bits=True)
LAST_BITS = replace(LAGGED, itemsize=4, dtype=torch.float32, bits=True)

SPOILT: list[tuple[str, Problem, dict[str, Any], str]] = [
    ("tile", TILE, {"block_c": 6}, "blocks are powers of two"),
    ("tile", TILE, {"block_hw": 0}, "blocks are powers of two"),
    ("tile", TILE, {"num_warps": 3}, "warps are powers of two"),
    ("tile", TILE, {"chunks": 11}, "columns are left out"),
    ("tile", TILE, {"chunks": 14}, "a block of nothing"),
    ("tile", TILE, {"block_tail": 96}, "the tail is a power of two"),
    ("tile", TILE, {"block_hw": 16, "chunks": 196, "block_tail": 0}, "code would be endless"),
    ("tile", forward(128, 2048, 16), {"block_hw": 4, "chunks": 4, "block_tail": 0}, "blocks end on a vector"),
    ("tile", forward(128, 8, 196), {"block_c": 32}, "there are no more channels"),
    ("tile", forward(128, 256, 49, taps=63), {"block_c": 8}, "the halo outweighs the tile"),
    ("tile", TILE, {"vec": 16}, "vectors have 16 bytes"),
    ("tile", TILE, {"windowed": True}, "rows start on a vector"),
    ("tile", TILE, {"block_halo": 2}, "the halo is left out"),
    ("tile", TILE, {"block_c": 512, "num_warps": 32}, "registers have no room"),
    ("tile", TILE, {"num_warps": 64}, "no program has so many threads"),
    ("tile", FLOATS, {"packed": True}, "packed elements have 16 bits"),
    ("tile", ODD, {"windowed": False}, "rows start off a vector"),
    ("tile", ODD, {"block_c": 4}, "a vector belongs to two programs"),
    ("tile", BITS, {"vec": 4}, "a byte is a vector"),
    ("tile", TILE_BACKWARD, {"chunks": 1}, "columns are left out"),
    ("tile", TILE_BACKWARD, {"block_halo_hw": 96}, "blocks are powers of two"),
    ("tile", TILE_BACKWARD, {"block_halo_hw": 4}, "the halo's blocks end on a vector"),
    ("tile_channels_last", LAST, {"block_c": 4}, "the halo's vector"),
    ("tile_channels_last", LAST, {"block_c": 48}, "blocks are powers of two"),
    ("tile_channels_last", LAST, {"steps": 1}, "elements are left out"),
    ("tile_channels_last", LAST, {"halo_steps": 1}, "the halo's elements are left out"),
    ("tile_channels_last", LAST, {"num_warps": 1}, "registers have no room"),
    ("lagged", LAGGED, {"block_c": 0}, "blocks are powers of two"),
    ("lagged", LAGGED, {"block_g": 96}, "blocks are powers of two"),
    ("lagged", LAGGED, {"vec_c": 1}, "channels are contiguous"),
    ("lagged", LAGGED, {"vec_c": 16}, "vectors have 16 bytes"),
    ("lagged", LAGGED, {"vec_hw": 8}, "positions are not contiguous"),
    ("lagged", LAGGED, {"block_p": 1024}, "registers have no room for sums"),
    ("lagged", LAGGED, {"block_c": 512, "block_hw": 16, "lag": 1000}, "there are no more channels"),
    ("lagged", LAGGED, {"block_c": 8, "block_hw": 8192}, "there are no more elements"),
    ("lagged", LAGGED, {"lag": 1}, "programs would wait in vain"),
    ("lagged", LAGGED, {"lag": 2**31 - 1}, "tickets are int32"),
    ("lagged", LAGGED, {"max_registers": 8}, "no kernel fits"),
    ("lagged", LAGGED, {"max_registers": 256}, "no thread has so many"),
    ("lagged", LAGGED, {"num_warps": 32}, "a program cannot have so many"),
    ("lagged", LAGGED, {"block_hw": 2048, "block_c": 256}, "registers have no room"),
    ("lagged", LAGGED_BITS, {"block_c": 4}, "a byte belongs to two tiles"),
    ("lagged", FLAT_LAGGED, {"vec_hw": 1}, "vectors have 16 bytes"),
    ("product", PRODUCT, {"block_hw": 48}, "blocks are powers of two"),
    ("product", PRODUCT, {"block_i": 8}, "matrix units take sixteen"),
    ("product", PRODUCT, {"block_c": 0}, "matrix units take sixteen"),
    ("product", PRODUCT, {"num_warps": 3}, "warps are powers of two"),
    ("product", PRODUCT, {"num_warps": 64}, "no program has so many threads"),
    ("product", PRODUCT, {"block_c": 512}, "there are no more channels"),
    ("product", PRODUCT, {"block_hw": 8192, "block_c": 16, "num_warps": 16}, "there are no more positions"),
    ("product", PRODUCT, {"block_i": 128}, "there are no more columns"),
    ("product", PRODUCT, {"block_hw": 128, "block_c": 256}, "registers have no room for the sums"),
    ("product", PRODUCT, {"block_hw": 256, "block_c": 256, "num_warps": 16}, "512 threads have 128 each"),
    ("product", PRODUCT, {"num_stages": 0}, "a loop has a step"),
    ("product", PRODUCT, {"num_stages": 9}, "code would be endless"),
    ("product", product(8, 256, 196, 512), {"block_i": 512}, "shared memory has no room for the stages"),
    ("product", product(2**18, 2048, 3136, 64), {"block_hw": 16, "block_c": 16}, "programs are int32"),
    ("pool", POOL, {"block_c": 3}, "blocks are powers of two"),
    ("pool", POOL, {"block_hw": 0}, "blocks are powers of two"),
    ("pool", POOL, {"splits": 3}, "ranges are powers of two"),
    ("pool", POOL, {"num_warps": 64}, "no program has so many threads"),
    ("pool", POOL, {"block_c": 512, "num_warps": 32}, "there are no more channels"),
    ("pool", POOL, {"block_hw": 8192, "num_warps": 32}, "there are no more positions"),
    ("pool", POOL, {"splits": 32}, "a range has a step"),
    ("pool", POOL_LAST, {"block_hw": 16, "splits": 64}, "the gates would add too many sums"),
    ("pool", POOL, {"vec_hw": 16}, "vectors have 16 bytes"),
    ("pool", POOL, {"vec_c": 8}, "channels are not contiguous"),
    ("pool", POOL_LAST, {"vec_hw": 8}, "positions are not contiguous"),
    ("pool", POOL, {"window": 3}, "vectors are powers of two"),
    ("pool", POOL, {"block_c": 256, "num_warps": 4}, "registers have no room for the sums"),
    ("pool", one_of_two("pool", 2**22, 2048, 49), {"block_c": 1}, "programs are int32"),
    ("pool", WINDOWS, {"window": 16}, "a window has 16 bytes"),
    ("pool", WINDOWS, {"block_hw": 4}, "a window belongs to two steps"),
    ("rescale", one_of_two("rescale", 128, 2048, 49), {"window": 8}, "windows are for sums"),
    ("rescale", one_of_two("rescale", 1, 2**14, 1, taps=255), {"block_c": 2**13, "block_hw": 1}, "no tensor"),
    ("pool", one_of_two("pool", 1, 8, 2**22), {"block_hw": 2**13, "splits": 16, "num_warps": 32}, "int32"),
    ("moments", MOMENTS, {"block_c": 128, "block_hw": 256}, "two sums of each"),
    ("affine", AFFINE, {"block": 96}, "blocks are powers of two"),
    ("affine", AFFINE, {"block": 32}, "a program has eight bytes of bits"),
    ("affine", AFFINE, {"num_warps": 3}, "warps are powers of two"),
    ("affine", AFFINE, {"block": 2**15}, "registers have no room"),
    ("affine", one_of_two("affine", 1, 8, 17), {"block": 512}, "there are no more elements"),
    ("affine", one_of_two("affine", 2**18, 2048, 3136), {"block": 64}, "programs are int32"),
]


@pytest.mark.parametrize(("kernel", "problem", "fields", "why"), SPOILT, ids=[row[3] for row in SPOILT])
def test_a_config_that_would_go_wrong_is_not(
    kernel: str, problem: Problem, fields: dict[str, Any], why: str
) -> None:
    choice = choose(problem)
    assert choice.kernel == kernel
    assert not allowed(problem, changed(choice, **fields))


@pytest.mark.parametrize(
    ("problem", "other"),
    [
        (forward(128, 4, 3136), forward(1, 2**20, 3136)),
        (LAST, forward(128, 1020, 196, last=True)),
        (LAST, forward(1, 2**24, 196, last=True)),
        (LAST, forward(128, 1024, 196, last=True, taps=19)),
        (FLAT_BITS, replace(FLAT_BITS, layout=forward(128, 64, 112 * 112 + 4).layout)),
        (LAST_BITS, replace(LAST_BITS, layout=forward(128, 252, 3136, last=True).layout)),
        (PRODUCT, replace(PRODUCT, device=replace(H200, shared_bytes=48 << 10), dtype=torch.float32)),
        (PRODUCT, replace(PRODUCT, layout=TILE.layout)),
        (WINDOWS, one_of_two("pool", 1, 3, 49)),
        (WINDOWS, one_of_two("pool", 128, 2048, 49, last=True)),
        (AFFINE, replace(AFFINE, layout=common_layout((2, 256, 49, 64), (2**24, 2**16, 128, 1)))),
    ],
    ids=[
        "an image of 2**31",
        "no vector of channels",
        "an image of 2**31 channels-last",
        "taps past the halo",
        "a byte of two rows",
        "a byte of two positions",
        "a GPU with less shared memory",
        "a contiguous result",
        "the last window ends behind the tensor",
        "no rows of windows",
        "an image with gaps",
    ],
)
def test_a_config_of_another_problem_may_be_wrong(problem: Problem, other: Problem) -> None:
    choice = choose(problem)
    assert allowed(problem, choice)
    assert not allowed(other, choice)


def test_a_halo_without_a_mask_ends_with_the_row() -> None:
    choice = choose(RECOMPUTED)
    assert allowed(RECOMPUTED, changed(choice, block_halo_hw=64))
    assert allowed(RECOMPUTED, changed(choice, block_halo_hw=4))
    padded = changed(choice, block_hw=256, chunks=1, block_tail=0)
    # A row of 196 ends with a block of 4, behind which 256 columns have sixteen more.
    assert not allowed(RECOMPUTED, changed(padded, block_halo_hw=4))
    assert allowed(RECOMPUTED, changed(padded, block_halo_hw=64))


def test_another_kernel_than_the_heuristics_may_be_faster() -> None:
    tile, lagged = choose(TILE), choose(FLAT_LAGGED)
    assert (tile.kernel, lagged.kernel) == ("tile", "lagged")
    assert allowed(TILE, lagged)
    assert allowed(TILE, Choice("two_pass", None))
    assert not allowed(LAGGED, tile)
    assert not allowed(TILE, choose(LAST))
    assert not allowed(TILE, choose(PRODUCT))
    assert not any(allowed(PRODUCT, each) for each in (tile, lagged, Choice("two_pass", None)))
    assert not allowed(replace(TILE, device=replace(H200, vendor="amd")), lagged)


@pytest.mark.parametrize(
    "changes", [{"device": replace(H200, capability="7.5")}, {"dtype": torch.float32}], ids=str
)
def test_a_product_that_no_matrix_unit_makes_is_not_allowed(changes: dict[str, Any]) -> None:
    assert allowed(PRODUCT, choose(PRODUCT))
    assert not allowed(replace(PRODUCT, **changes), choose(PRODUCT))
