"""Launches of two passes, and of kernels on [N, C]: how they are cut, what may run, what is tried."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import Any

from ..config import FLAT, Choice, Config, FlatConfig
from ..layout import Layout
from ..problem import PassProblem
from .blocks import MAX_PROGRAMS, VECTOR_BYTES, blocks_of, image, power_of_2, share_fits

THREADS = 128  # 4 warps: more programs hide the latency of memory better than wider ones
TILE_BYTES = 4 * VECTOR_BYTES * THREADS  # 4 vectors in flight per thread
SCALARS = 8  # elements per thread where vectors are impossible: each needs an address of its own
MIN_TILE = 1024  # elements; below this the loop and the final reduction cost more than the loads
MAX_SPLITS = 32  # every gate adds this many partial sums
PROGRAMS_PER_SM = 8  # 64 KB in flight per SM
LEAST_FLAT = 64  # elements of a program that walks an image: eight bytes of bits
MAX_BEHIND = 2**16  # positions, of which the index of one behind the last still fits into int32
MAX_ELEMENTS = 2**20  # of a tensor in a kernel, by Triton
DOUBLINGS = (-2, -1, 0, 1, 2)  # of the heuristic's numbers, for a pass
PASS_VECTORS = (1, 8)  # of a thread in a step of a pass: fewer leave memory idle, more do not fit beside sums


def pass_config(problem: PassProblem) -> Config | FlatConfig:
    """Config of one launch."""
    layout = problem.layout
    if problem.step in FLAT:  # two vectors of bf16 per thread
        return FlatConfig(min(16 * THREADS, max(LEAST_FLAT, power_of_2(layout.c * layout.hw))))
    vector = VECTOR_BYTES // problem.itemsize
    # Rows that start off a vector boundary would be read element by element; where they are only summed,
    # aligned windows read whole vectors instead. The last one ends inside the tensor only if the tensor is a
    # whole number of vectors, and rows shorter than a vector gain nothing.
    windowed = (
        problem.step == "pool"
        and layout.vector(2, vector) < vector <= layout.hw
        and layout.contiguous
        and layout.n * layout.c * layout.hw % vector == 0
    )
    # Moments are two sums of each element.
    return _tile(problem, vector if windowed else 1, TILE_BYTES // (2 if problem.step == "moments" else 1))


def gate_block(splits: int, block_k: int) -> int:
    """Entries of [N, C] per program of the gate kernel.

    8 neighbours per thread; fewer when each is many partial sums, which only happens when N * C is small.
    """
    return max(16, 8 * THREADS // block_k // max(1, splits // 4))


def backward_block(total: int, block_k: int) -> int:
    """Entries of [N, C] per program of the backward kernels.

    16 neighbours per thread; 64 for large inputs, since one program per tap adds all partial sums.
    """
    return max(16, (16 if total <= 1 << 20 else 64) * THREADS // block_k)


def near_gate_block(block_k: int) -> int:
    """Entries of [N, C] per program of a kernel that convolves at every neighbour of an entry."""
    return max(2, 16 * THREADS // block_k**2)


def batch_norm_backward_blocks(n: int, block_k: int) -> tuple[int, int]:
    """Images and channels of one step of a kernel that sums over all images: 32 channels are a sector."""
    block_n = min(power_of_2(n), max(1, 16 * THREADS // (32 * block_k)))
    return block_n, 32


def batch_statistics_blocks(n: int) -> tuple[int, int]:
    """Images and channels of one step of the kernel that combines the statistics of images, as above."""
    return min(power_of_2(n), 16 * THREADS // 32), 32


def _tile(problem: PassProblem, window: int, tile_bytes: int) -> Config:
    layout, device, itemsize = problem.layout, problem.device, problem.itemsize
    vector = VECTOR_BYTES // itemsize
    vec_c, vec_hw = layout.vector(1, vector), layout.vector(2, vector)
    span = layout.hw + window - 1
    tile = SCALARS * THREADS if vec_c == vec_hw == window == 1 else tile_bytes // itemsize
    if _channels_innermost(layout):
        # 64 channels are whole 128-byte lines of bf16. Short maps take more channels, to fill the tile.
        block_hw = min(tile // 64, power_of_2(span))
        block_c = min(tile // block_hw, power_of_2(layout.c))
        block_hw = min(tile // block_c, power_of_2(span))
    else:
        # Long runs along hw; of 256, 512 and 1024 the one that pads least, the longest of equals.
        block_hw = min(power_of_2(span), min((1024, 512, 256), key=lambda block: -span % block))
        block_c = min(tile // block_hw, power_of_2(layout.c))

    # At small batch smaller tiles make more programs; the contiguous axis keeps its length.
    while True:
        programs = layout.n * -(-layout.c // block_c)
        steps = -(-span // block_hw)
        if programs * min(steps, MAX_SPLITS) >= device.num_sms or block_c * block_hw <= MIN_TILE:
            break
        if _channels_innermost(layout) and block_hw > 1:
            block_hw //= 2
        elif block_c > 1:
            block_c //= 2
        else:
            break

    # Cut the spatial dims only when images and channels alone leave the SMs idle.
    splits = 1
    while programs * splits < PROGRAMS_PER_SM * device.num_sms and splits * 2 <= min(steps, MAX_SPLITS):
        splits *= 2
    # At least 8 elements, a vector of bf16, per thread.
    num_warps = max(1, min(THREADS, block_c * block_hw // 8) // device.warp_size)
    return Config(block_c, block_hw, splits, num_warps, vec_c, vec_hw, window)


def _channels_innermost(layout: Layout) -> bool:
    """Return whether threads should run along channels: where the first tensor is densest."""
    strides = layout.strides[0]
    return layout.hw == 1 or (layout.c > 1 and strides[1] < strides[4])


def tiled_fits(problem: PassProblem, config: Any) -> bool:
    """Return whether the kernel computes the problem with the config."""
    layout = problem.layout
    span = layout.hw + config.window - 1
    sums = 2 if problem.step == "moments" else 1  # in fp32, of every element of a tile
    return (
        config.block_c <= power_of_2(layout.c)
        and config.block_hw <= power_of_2(span)
        and config.splits <= -(-span // config.block_hw)
        and config.splits * config.block_hw <= MAX_BEHIND
        and config.block_c * power_of_2(problem.taps + 1) <= MAX_ELEMENTS
        and max(config.vec_c, config.vec_hw, config.window) * problem.itemsize <= VECTOR_BYTES
        and layout.vector(1, config.vec_c) == config.vec_c
        and layout.vector(2, config.vec_hw) == config.vec_hw
        and (config.window == 1 or _windows_fit(problem, config))
        and share_fits(problem, 4 * sums * config.block_c * config.block_hw, config.num_warps)
        and layout.n * config.tiles(layout) <= MAX_PROGRAMS
    )


def _windows_fit(problem: PassProblem, config: Any) -> bool:
    """Rows are read from the vector before their first element on, so no vector may end behind the tensor."""
    layout = problem.layout
    return (
        problem.step == "pool"
        and layout.contiguous
        and layout.n * image(layout) % config.window == config.block_hw % config.window == 0
        and config.window <= layout.hw
    )


def flat_fits(problem: PassProblem, config: Any) -> bool:
    """Return whether the kernel computes the problem with the config."""
    layout = problem.layout
    return (
        (layout.contiguous or layout.dense_channels_last)
        and config.block <= max(LEAST_FLAT, power_of_2(image(layout)))
        and share_fits(problem, 4 * config.block, config.num_warps)
        and layout.n * config.tiles(layout) <= MAX_PROGRAMS
    )


def tiled_candidates(problem: PassProblem, heuristic: Choice) -> Iterator[Choice]:
    """Tiles around the heuristic's, in more and in fewer ranges of positions."""
    usual: Any = heuristic.config
    span = problem.layout.hw + usual.window - 1
    blocks_c = blocks_of(_scaled(usual.block_c), problem.layout.c, usual.block_c)
    blocks_hw = blocks_of(_scaled(usual.block_hw), span, usual.block_hw)
    vector = max(usual.vec_c, usual.vec_hw, usual.window)
    for block_c, block_hw, num_warps in product(blocks_c, blocks_hw, _scaled(usual.num_warps)):
        vectors = block_c * block_hw / (num_warps * problem.device.warp_size * vector)
        if not PASS_VECTORS[0] <= vectors <= PASS_VECTORS[1]:
            continue
        cut = replace(usual, block_c=block_c, block_hw=block_hw, num_warps=num_warps)
        for splits in _scaled(usual.splits):
            if splits <= min(MAX_SPLITS, -(-span // block_hw)):
                yield Choice(problem.step, replace(cut, splits=splits))


def flat_candidates(problem: PassProblem, heuristic: Choice) -> Iterator[Choice]:
    """Longer and shorter pieces of an image."""
    usual: Any = heuristic.config
    for block, num_warps in product(_scaled(usual.block), _scaled(usual.num_warps)):
        vectors = block * problem.itemsize / (num_warps * problem.device.warp_size * VECTOR_BYTES)
        if block >= LEAST_FLAT and PASS_VECTORS[0] <= vectors <= PASS_VECTORS[1]:
            yield Choice(problem.step, FlatConfig(block, num_warps))


def _scaled(usual: int) -> list[int]:
    """Powers of two around one."""
    return [number for number in (int(usual * 2.0**each) for each in DOUBLINGS) if number >= 1]
