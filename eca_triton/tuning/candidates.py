"""What tuning tries for a problem: the heuristic's choice and its neighbourhood, pruned without a GPU.

Every kernel that takes the problem gives the configs within its budget of registers; those that leave
multiprocessors idle or mostly move padding are dropped, and of many the ones nearest to the heuristic's stay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, replace
from itertools import product
from math import log2
from typing import Any

from . import lagged, lagged_backward, tile, tile_backward, tile_channels_last, tile_channels_last_backward
from .allowed import allowed
from .choice import Choice
from .config import FLAT, TILED, FlatConfig
from .heuristic import LEAST_FLAT, MAX_SPLITS, VECTOR_BYTES, power_of_2
from .problem import EcaProblem, PassProblem, Problem, ProductProblem
from .product import LEAST, ProductConfig, most_sums

MOST = 32  # of a problem: compiling one takes seconds of a core
PADDING = 0.25  # of the elements of a map that blocks may add
COLUMNS = (32, 64, 128, 256)  # of the contiguous tile's blocks: from half a line of bf16 on
AHEAD = (0.25, 0.5, 1.0)  # programs in flight, of which the lagged kernel's sums may be ahead
RUN_TIME = {"lag"}  # what no kernel is compiled for
BLOCKS = tuple(LEAST << doublings for doublings in range(5))  # of a product: 16 to 256
WARPS = (4, 8, 16)  # of a product's program: newer matrix units take groups of four
STAGES = (2, 3, 4)  # of a product's loop
LEAST_SUMS = 32  # of a thread: with fewer, loading the factors costs more than the product
FEW_SUMS = 8  # but more programs may outweigh that where there are not enough of them
RUN_BYTES = 64  # of a row of factors in one step: half a line
DOUBLINGS = (-2, -1, 0, 1, 2)  # of the heuristic's numbers, for a pass
PASS_VECTORS = (1, 8)  # of a thread in a step of a pass: fewer leave memory idle, more do not fit beside sums


def candidates(problem: Problem) -> list[Choice]:
    """Choices to time, the heuristic's first, then the nearest to it; two passes, where possible, come last.

    Args:
        problem: What is to be computed, and where.
    """
    first, two_pass = problem.heuristic(), Choice("two_pass", None)
    last = [two_pass] if allowed(problem, two_pass) else []
    found = [choice for kernel in _KERNELS[problem.kind] for choice in kernel(problem)]
    found = [choice for choice in dict.fromkeys(found) if choice != first and allowed(problem, choice)]
    busy = _busiest([first, *found], problem)
    found = [choice for choice in found if _programs(choice, problem) >= busy]
    found.sort(key=lambda choice: _distance(choice, first))
    return list(dict.fromkeys([first, *found[: MOST - 1 - len(last)], *last]))


def _tiles(problem: EcaProblem) -> Iterator[Choice]:
    """Contiguous rows in registers."""
    layout, taps, device = problem.layout, problem.taps, problem.device
    backward = problem.direction == "backward"
    limits = tile_backward.limits(problem.recomputed) if backward else tile.FORWARD
    rows = tile.rows_of(layout, problem.kept_itemsize, problem.itemsize, problem.bits)
    if rows is None:
        return
    for block_c in _powers(rows.least, max(rows.least, power_of_2(layout.c))):
        # Below, more rows are read for their sums alone than are kept.
        if min(taps - 1, layout.c - block_c) > tile.MAX_HALO * block_c:
            continue
        for threads in tile.THREADS:
            for columns in (0, *COLUMNS):
                config = tile.shaped(rows, block_c, threads, taps, device, limits, columns)
                share = block_c * rows.bytes / (config.num_warps * device.warp_size)
                # Narrow blocks are for fewer threads than asked.
                if share > limits.long_bytes or (share < VECTOR_BYTES and threads > tile.THREADS[0]):
                    continue
                if backward:
                    yield Choice("tile", tile_backward.with_halo(config, problem.itemsize, device))
                else:
                    yield Choice("tile", config)


def _tiles_channels_last(problem: EcaProblem) -> Iterator[Choice]:
    """Channels-last columns in registers."""
    layout, device = problem.layout, problem.device
    if not tile_channels_last.takes(layout, problem.taps):
        return
    pieces: Callable[[int], int]
    if problem.direction == "forward":
        itemsize = problem.kept_itemsize
        pieces = tile_channels_last.forward_pieces(itemsize, problem.front or problem.bits)
    else:
        itemsize, pieces = problem.itemsize, tile_channels_last_backward.backward_pieces
    for block_c in _powers(tile_channels_last.HALO, power_of_2(layout.c)):
        if _padding(layout.c, block_c) > PADDING:
            continue
        for threads in tile_channels_last.THREADS:
            vectors = layout.hw * block_c * itemsize / (threads * VECTOR_BYTES)
            fits = vectors <= pieces(threads) and threads * VECTOR_BYTES >= block_c * itemsize
            if fits and (vectors >= 1 or threads == tile_channels_last.THREADS[0]):
                yield Choice(
                    "tile_channels_last",
                    tile_channels_last.shaped(layout, itemsize, block_c, threads, device),
                )


def _lagged(problem: EcaProblem) -> Iterator[Choice]:
    """Tiles that come back from L2."""
    layout, device = problem.layout, problem.device
    # How far sums are ahead is for the heuristic's kernel to vary; another one has to win first.
    programs_ahead = AHEAD if problem.heuristic().kernel == "lagged" else AHEAD[1:2]
    itemsize, returning, vectors = problem.kept_itemsize, 1, lagged.VECTORS
    if problem.direction == "forward":
        most = lagged.forward_tile_bytes(itemsize, problem.front or problem.bits)
    else:
        itemsize, vectors = problem.itemsize, lagged_backward.BACKWARD_VECTORS
        most = lagged_backward.backward_tile_bytes(problem.recomputed)
        returning = lagged_backward.returning(problem.recomputed, problem.stored)
    vec_c = lagged.channels_per_vector(layout, itemsize, problem.bits, device)
    if vec_c is None:
        return
    channels_last = vec_c > 1
    extent = layout.c if channels_last else layout.hw  # along the contiguous axis
    for run in (32, 64, 128) if channels_last else (256, 512, 1024):
        run = min(run, power_of_2(extent))
        if _padding(extent, run) > PADDING:
            continue
        for size in (most, most // 2, most // 4):
            other = min(size // itemsize // run, power_of_2(layout.hw if channels_last else layout.c))
            block_c, block_hw = (run, other) if channels_last else (other, run)
            for threads in lagged.THREADS:
                share = run * other * itemsize / (threads * VECTOR_BYTES)
                if not 1 <= share <= vectors:
                    continue
                for ahead in programs_ahead:
                    config = lagged.shaped(
                        layout, itemsize, block_c, block_hw, threads, returning, device, ahead
                    )
                    if problem.direction == "backward":
                        config = lagged_backward.with_registers(config, problem.recomputed)
                    if config is not None:
                        yield Choice("lagged", config)


def _products(problem: ProductProblem) -> Iterator[Choice]:
    """Tiles whose sums are in registers, while what the next ones are made of is on its way."""
    first = problem.heuristic()
    usual: Any = first.config
    least = LEAST_SUMS if _programs(first, problem) >= problem.device.num_sms else FEW_SUMS
    blocks_hw = _blocks(BLOCKS, problem.layout.hw, usual.block_hw, LEAST)
    blocks_c = _blocks(BLOCKS, problem.layout.c, usual.block_c, LEAST)
    blocks_i = [
        block
        for block in _blocks(BLOCKS, problem.reduced, usual.block_i, LEAST)
        if block >= min(RUN_BYTES // problem.kept_itemsize, usual.block_i)
    ]
    for block_hw, block_c, block_i in product(blocks_hw, blocks_c, blocks_i):
        steps = -(-problem.reduced // block_i)
        for num_warps, num_stages in product(WARPS, STAGES):
            threads = num_warps * problem.device.warp_size
            sums = block_hw * block_c / threads
            # All steps but the one that is computed can be under way.
            if num_stages <= max(STAGES[0], steps + 1) and least <= sums <= most_sums(threads):
                yield Choice("product", ProductConfig(block_hw, block_c, block_i, num_warps, num_stages))


def _tiled(problem: PassProblem) -> Iterator[Choice]:
    """Tiles around the heuristic's, in more and in fewer ranges of positions."""
    usual: Any = problem.heuristic().config
    span = problem.layout.hw + usual.window - 1
    blocks_c = _blocks(_scaled(usual.block_c), problem.layout.c, usual.block_c)
    blocks_hw = _blocks(_scaled(usual.block_hw), span, usual.block_hw)
    vector = max(usual.vec_c, usual.vec_hw, usual.window)
    for block_c, block_hw, num_warps in product(blocks_c, blocks_hw, _scaled(usual.num_warps)):
        vectors = block_c * block_hw / (num_warps * problem.device.warp_size * vector)
        if not PASS_VECTORS[0] <= vectors <= PASS_VECTORS[1]:
            continue
        cut = replace(usual, block_c=block_c, block_hw=block_hw, num_warps=num_warps)
        for splits in _scaled(usual.splits):
            if splits <= min(MAX_SPLITS, -(-span // block_hw)):
                yield Choice(problem.step, replace(cut, splits=splits))


def _flat(problem: PassProblem) -> Iterator[Choice]:
    """Longer and shorter pieces of an image."""
    usual: Any = problem.heuristic().config
    for block, num_warps in product(_scaled(usual.block), _scaled(usual.num_warps)):
        vectors = block * problem.itemsize / (num_warps * problem.device.warp_size * VECTOR_BYTES)
        if block >= LEAST_FLAT and PASS_VECTORS[0] <= vectors <= PASS_VECTORS[1]:
            yield Choice(problem.step, FlatConfig(block, num_warps))


def _scaled(usual: int) -> list[int]:
    """Powers of two around one."""
    return [number for number in (int(usual * 2.0**each) for each in DOUBLINGS) if number >= 1]


def _blocks(blocks: Iterable[int], size: int, usual: int, least: int = 1) -> list[int]:
    """Of blocks for an axis, those that hardly pad, or no more than the heuristic's does."""
    largest, most = max(least, power_of_2(size)), max(PADDING, _padding(size, usual))
    return [block for block in blocks if block <= largest and _padding(size, block) <= most]


def _busiest(choices: list[Choice], problem: Problem) -> int:
    """Programs that a launch must have: half as many as multiprocessors, if any choice has so many."""
    most = max(_programs(choice, problem) for choice in choices)
    return min(problem.device.num_sms // 2, most)


def _programs(choice: Choice, problem: Problem) -> int:
    """Of one launch; of two passes, which cut all dims, no fewer than anybody asks for."""
    if choice.config is None:
        return problem.device.num_sms
    return problem.layout.n * choice.config.tiles(problem.layout)


def _distance(choice: Choice, other: Choice) -> float:
    """Doublings from one config to the other; other kernels are farther than any config of the same."""
    if choice.kernel != other.kernel:
        return 100.0 + _doublings(choice)
    here, there = _numbers(choice), _numbers(other)
    return sum(abs(log2(here[name] + 1) - log2(there[name] + 1)) for name in here)


def _doublings(choice: Choice) -> float:
    """A measure for configs of a kernel that the heuristic did not choose: the largest blocks come last."""
    return sum(log2(value + 1) for name, value in _numbers(choice).items() if name.startswith("block"))


def _numbers(choice: Choice) -> dict[str, int]:
    numbers: dict[str, Any] = {} if choice.config is None else asdict(choice.config)
    numbers |= numbers.pop("tile", {})
    return {name: int(value) for name, value in numbers.items() if name not in RUN_TIME}


def _padding(extent: int, block: int) -> float:
    """Of an extent, the share that whole blocks add."""
    return -extent % block / extent


def _powers(first: int, last: int) -> Iterator[int]:
    """Powers of two from `first`, which is one, to `last`."""
    while first <= last:
        yield first
        first *= 2


_ONE_LAUNCH = (_tiles, _tiles_channels_last, _lagged)
_KERNELS: dict[str, tuple[Callable[[Any], Iterator[Choice]], ...]] = {
    "forward": _ONE_LAUNCH,
    "backward": _ONE_LAUNCH,
    "product": (_products,),
    **dict.fromkeys(TILED, (_tiled,)),
    **dict.fromkeys(FLAT, (_flat,)),
}
"""What kernels there are for a kind of problem, each with its choices."""
