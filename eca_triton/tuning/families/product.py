"""The kernel that makes a 1x1 convolution and rescales it: how it is cut, what may run, what is tried."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ..config import Choice, Device
from ..layout import Layout
from ..problem import ProductProblem
from .blocks import MAX_PROGRAMS, MAX_THREADS, blocks_of, power_of_2, programs

POSITIONS, CHANNELS, REDUCED = 64, 128, 64
LEAST = 16  # of a block, as matrix units take them
REGISTERS = 1 << 16  # of a multiprocessor
MAX_REGISTERS = 256  # of a thread, about
BARRIERS = 256  # bytes of shared memory beside what stages load, more than there are
BLOCKS = tuple(LEAST << doublings for doublings in range(5))  # of a product: 16 to 256
WARPS = (4, 8, 16)  # of a product's program: newer matrix units take groups of four
STAGES = (2, 3, 4)  # of a product's loop
LEAST_SUMS = 32  # of a thread: with fewer, loading the factors costs more than the product
FEW_SUMS = 8  # but more programs may outweigh that where there are not enough of them
RUN_BYTES = 64  # of a row of factors in one step: half a line


@dataclass(frozen=True)
class ProductConfig:
    """Cut of the kernel's work; blocks are powers of two, of `LEAST` at least.

    Attributes:
        block_hw: positions of one program.
        block_c: channels of one program.
        block_i: columns of the matrix in one step of its loop.
        num_warps: warps of one program.
        num_stages: steps of the loop whose loads are under way.
    """

    block_hw: int
    block_c: int
    block_i: int
    num_warps: int = 4
    num_stages: int = 3

    def tiles(self, layout: Layout) -> int:
        """Programs of one image of the result."""
        return -(-layout.hw // self.block_hw) * -(-layout.c // self.block_c)

    def shared_bytes(self, itemsize: int) -> int:
        """Return the most bytes that a program takes: what its stages load, then its sums."""
        stages = (self.block_hw + self.block_c) * self.block_i * itemsize * self.num_stages
        return max(stages, 4 * self.block_hw * self.block_c) + BARRIERS


def takes(itemsize: int, device: Device) -> bool:
    """Return whether the kernel is for such elements: of 16 bits, where matrix units multiply them.

    Elsewhere it would spill, and a library makes the product.
    """
    return itemsize == 2 and device.multiplies(itemsize)


def most_sums(threads: int) -> int:
    """Sums of a thread: half of its registers, so that a residual of 16 bits and addresses have the others.

    So no candidate spills on sm_90, also with the residual and ReLU that Inductor puts before the store.
    """
    return min(MAX_REGISTERS, REGISTERS // threads) // 2


def product_config(problem: ProductProblem) -> ProductConfig:
    """Config of the kernel.

    64 x 128 results are 64 registers a thread, which leaves three programs to a multiprocessor: while one
    waits for its residual, another one multiplies.
    """
    sizes = (POSITIONS, problem.layout.hw), (CHANNELS, problem.layout.c), (REDUCED, problem.reduced)
    block_hw, block_c, block_i = (min(block, max(LEAST, power_of_2(size))) for block, size in sizes)
    return ProductConfig(block_hw, block_c, block_i, num_stages=2 if problem.reduced <= block_i else 3)


def fits(problem: ProductProblem, config: Any) -> bool:
    """Return whether the kernel computes the problem with the config."""
    layout, threads = problem.layout, config.num_warps * problem.device.warp_size
    blocks = (config.block_hw, layout.hw), (config.block_c, layout.c), (config.block_i, problem.reduced)
    return (
        takes(problem.kept_itemsize, problem.device)
        and layout.dense_channels_last
        and all(block <= max(LEAST, power_of_2(size)) for block, size in blocks)
        and threads <= MAX_THREADS
        and config.block_hw * config.block_c <= most_sums(threads) * threads
        and config.shared_bytes(problem.kept_itemsize) <= problem.device.shared_bytes
        and layout.n * config.tiles(layout) <= MAX_PROGRAMS
    )


def candidates(problem: ProductProblem, heuristic: Choice) -> Iterator[Choice]:
    """Tiles whose sums are in registers, while what the next ones are made of is on its way."""
    usual: Any = heuristic.config
    least = LEAST_SUMS if programs(heuristic, problem) >= problem.device.num_sms else FEW_SUMS
    blocks_hw = blocks_of(BLOCKS, problem.layout.hw, usual.block_hw, LEAST)
    blocks_c = blocks_of(BLOCKS, problem.layout.c, usual.block_c, LEAST)
    blocks_i = [
        block
        for block in blocks_of(BLOCKS, problem.reduced, usual.block_i, LEAST)
        if block >= min(RUN_BYTES // problem.kept_itemsize, usual.block_i)
    ]
    for block_hw, block_c, block_i in itertools.product(blocks_hw, blocks_c, blocks_i):
        steps = -(-problem.reduced // block_i)
        for num_warps, num_stages in itertools.product(WARPS, STAGES):
            threads = num_warps * problem.device.warp_size
            sums = block_hw * block_c / threads
            # All steps but the one that is computed can be under way.
            if num_stages <= max(STAGES[0], steps + 1) and least <= sums <= most_sums(threads):
                yield Choice("product", ProductConfig(block_hw, block_c, block_i, num_warps, num_stages))
