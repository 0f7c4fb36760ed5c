"""Config of the kernel that makes a 1x1 convolution and rescales it."""

from __future__ import annotations

from dataclasses import dataclass

from .config import Device
from .heuristic import power_of_2
from .layout import Layout

POSITIONS, CHANNELS, REDUCED = 64, 128, 64
LEAST = 16  # of a block, as matrix units take them
REGISTERS = 1 << 16  # of a multiprocessor
MAX_REGISTERS = 256  # of a thread, about
BARRIERS = 256  # bytes of shared memory beside what stages load, more than there are


@dataclass(frozen=True)
class ProductConfig:
    """How the kernel cuts its work; blocks are powers of two, of `LEAST` at least.

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
        """Of a program, at most: what its stages load, then its sums, on their way to whole rows."""
        stages = (self.block_hw + self.block_c) * self.block_i * itemsize * self.num_stages
        return max(stages, 4 * self.block_hw * self.block_c) + BARRIERS


def takes(itemsize: int, device: Device) -> bool:
    """Whether the kernel is for maps of such elements: of 16 bits, of which stages fit, by matrix units.

    Elsewhere it would spill, and a library makes the product.
    """
    return itemsize == 2 and device.multiplies(itemsize)


def most_sums(threads: int) -> int:
    """Sums of a thread: half of its registers, so that a residual of 16 bits and addresses have the others.

    So no candidate spills on sm_90, also with the residual and ReLU that Inductor puts before the store.
    """
    return min(MAX_REGISTERS, REGISTERS // threads) // 2


def product_config(c: int, hw: int, reduced: int) -> ProductConfig:
    """Config for a map of C channels and HW positions from `reduced` channels.

    64 x 128 results are 64 registers a thread, which leaves three programs to a multiprocessor: while one
    waits for its residual, another one multiplies.
    """
    block_hw, block_c, block_i = (
        min(block, max(LEAST, power_of_2(size)))
        for block, size in ((POSITIONS, hw), (CHANNELS, c), (REDUCED, reduced))
    )
    return ProductConfig(block_hw, block_c, block_i, num_stages=2 if reduced <= block_i else 3)
