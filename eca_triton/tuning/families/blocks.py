"""What the rules of all kernels share: vectors, blocks, and what a thread may hold."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ..config import Choice
from ..layout import Layout
from ..problem import Problem

VECTOR_BYTES = 16  # the widest load or store of a thread
MAX_THREADS = 1024
SHARE_BYTES = 512  # of a tile per thread: half of the registers that it can have
MAX_PROGRAMS = 2**31 - 1  # of a launch along one axis
PADDING = 0.25  # of the elements of a map that blocks may add


def power_of_2(size: int) -> int:
    """Smallest power of two that is at least `size`."""
    return 1 << (size - 1).bit_length()


def image(layout: Layout) -> int:
    """Elements of one image."""
    return layout.c * layout.hw


def share_fits(problem: Problem, tile_bytes: int, num_warps: int) -> bool:
    """Return whether the registers of so many warps hold a tile."""
    threads = num_warps * problem.device.warp_size
    return threads <= MAX_THREADS and tile_bytes <= SHARE_BYTES * threads


def programs(choice: Choice, problem: Problem) -> int:
    """Count the programs of one launch; two passes, which cut all dims, have as many as anybody asks for."""
    if choice.config is None:
        return problem.device.num_sms
    return problem.layout.n * choice.config.tiles(problem.layout)


def blocks_of(blocks: Iterable[int], size: int, usual: int, least: int = 1) -> list[int]:
    """Pick the blocks for an axis that hardly pad, or no more than the heuristic's does."""
    largest, most = max(least, power_of_2(size)), max(PADDING, padding(size, usual))
    return [block for block in blocks if block <= largest and padding(size, block) <= most]


def padding(extent: int, block: int) -> float:
    """Return the share of an extent that whole blocks add."""
    return -extent % block / extent


def powers(first: int, last: int) -> Iterator[int]:
    """Powers of two from `first`, which is one, to `last`."""
    while first <= last:
        yield first
        first *= 2
