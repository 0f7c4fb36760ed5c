"""Config of the kernel that makes a 1x1 convolution and rescales it."""

from __future__ import annotations

from dataclasses import dataclass

from .heuristic import power_of_2

POSITIONS, CHANNELS, REDUCED = 64, 128, 64


@dataclass(frozen=True)
class ProductConfig:
    """How the kernel cuts its work; blocks are powers of two, of 16 at least, as matrix units take them.

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


def product_config(c: int, hw: int, reduced: int) -> ProductConfig:
    """Config for a map of C channels and HW positions from `reduced` channels.

    64 x 128 results are 64 registers a thread, which leaves three programs to a multiprocessor: while one
    waits for its residual, another one multiplies.
    """
    block_hw, block_c, block_i = (
        min(block, max(16, power_of_2(size)))
        for block, size in ((POSITIONS, hw), (CHANNELS, c), (REDUCED, reduced))
    )
    return ProductConfig(block_hw, block_c, block_i, num_stages=2 if reduced <= block_i else 3)
