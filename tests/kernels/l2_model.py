"""DRAM traffic of the map's kernels, by replaying their accesses through an L2; run it for a table.

Programs start in the order of their ids, as many at a time as fit the SMs, and take turns; a turn is one of
their own accesses (`l2_programs.py`): a step over the halo, over the tile, over residual and output. A
program of the lagged launch lets turns pass while it waits. The whole batch is replayed, from a cold L2.
What L2 forgets is what was used least recently, but first of all what the kernel marks `evict_first`: so PTX
defines that hint. "unhinted" ignores it. A read that misses counts; a write stays in L2 and counts when it
is forgotten, or at the end. Weights and gates, 8 bytes per channel and image at most, are left out.

40 MB is what an H200's L2 has been seen to hold; 24 MB is what is left if its two halves keep lines twice.

Chunks are counted, not lines: what one turn accesses of two channels or four (as many as a halo has on a
side), or of the 32 channels of a channels-last element, the 64 bytes that a miss fetches. A turn that needs
a part of a chunk is charged for all of it, so figures err upwards; only halos do, by less than a percent.
"""

from __future__ import annotations

import json
import random
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import islice, product
from pathlib import Path
from typing import NamedTuple

import torch
from l2_programs import DTYPE, ITEMSIZE, Program, lagged, maps_of, tile, tile_channels_last, two_pass

from eca_triton.tuning.choice import choose
from eca_triton.tuning.config import Choice, TiledPass
from eca_triton.tuning.families.lagged import LaggedConfig
from eca_triton.tuning.families.passes import pass_config
from eca_triton.tuning.families.tile import TileConfig
from eca_triton.tuning.families.tile_channels_last import TileChannelsLastConfig
from eca_triton.tuning.layout import Layout, common_layout
from eca_triton.tuning.problem import EcaProblem, PassProblem
from eca_triton.tuning.targets import TARGETS, Target
from eca_triton.util.tables import plain_table

H200 = TARGETS["h200"]
DEVICE = H200.device
RESNET = (((128, 256, 56, 56), 5), ((128, 512, 28, 28), 5), ((128, 1024, 14, 14), 5), ((128, 2048, 7, 7), 7))
BUDGETS = json.loads(Path(__file__).with_name("budgets.json").read_text())


class L2(NamedTuple):
    """What a replay goes through: bytes, and whether `evict_first` is heeded."""

    capacity: int
    hints: bool = True

    def __str__(self) -> str:
        return f"{self.capacity // 10**6} MB" + ("" if self.hints else " unhinted")


SIZES = (L2(40_000_000), L2(24_000_000))


class Cache:
    """Chunks, least recently used first, each with its bytes: negative where DRAM does not have them yet.

    With hints, what the kernel marks `evict_first` makes room before anything else does.
    """

    def __init__(self, l2: L2) -> None:
        self.capacity = l2.capacity
        self.kept: OrderedDict[int, int] = OrderedDict()
        self.passing: OrderedDict[int, int] = OrderedDict() if l2.hints else self.kept
        self.used = 0
        self.dram_bytes = 0

    def touch(self, chunk: int, size: int, write: bool, evict_first: bool) -> None:
        """One access."""
        held = self.kept.pop(chunk, 0) or self.passing.pop(chunk, 0)
        (self.passing if evict_first else self.kept)[chunk] = -size if write or held < 0 else size
        if held:
            return
        if not write:
            self.dram_bytes += size
        self.used += size
        while self.used > self.capacity:
            _, held = (self.passing or self.kept).popitem(last=False)
            self.used -= abs(held)
            self.dram_bytes += max(0, -held)

    def flush(self) -> None:
        """The end: everything written reaches DRAM."""
        while self.kept or self.passing:
            self.dram_bytes += max(0, -(self.passing or self.kept).popitem()[1])


def replay(programs: Iterable[Program], resident: int, caches: Sequence[Cache], seed: int | None) -> None:
    """One launch: programs in turn, or, with a seed, each time one of those resident."""
    waiting = iter(programs)
    running = deque(islice(waiting, resident))
    rng = random.Random(seed)
    known: dict[tuple[int, tuple[int, int], tuple[int, int]], list[tuple[int, int]]] = {}
    while running:
        if seed is not None:
            running.rotate(rng.randrange(len(running)))
        program = running.popleft()
        turn = next(program, None)
        if turn is None:
            running.extend(islice(waiting, 1))
            continue
        running.append(program)
        for buffer, image, c, hw, write, evict_first in turn:
            pieces = known.get((buffer.first, c, hw))
            if pieces is None:
                pieces = known[buffer.first, c, hw] = buffer.chunks(c, hw)
            base = buffer.first + image * buffer.chunks_of_image
            for chunk, size in pieces:
                for held in caches:
                    held.touch(base + chunk, size, write, evict_first)


def resident_programs(threads: int, registers: int, shared_bytes: int, target: Target = H200) -> int:
    """Programs that run at the same time: an SM has 65536 registers, 2048 threads, 32 programs."""
    registers = -(-registers // 8) * 8
    per_sm = min(65536 // (registers * threads), 2048 // threads, 32)
    return target.device.num_sms * min(per_sm, target.shared_bytes_per_sm // (shared_bytes + 1024))


def occupancy(kernel: str, shape: Sequence[int], channels_last: bool, threads: int) -> int:
    """Programs resident at a time, at the fewest registers that a compiled variant of the site has.

    budgets.json has them. A site without a row takes the kernel's leanest; `two_pass`, which has none,
    is taken to fill the SMs.
    """
    site = "x".join(map(str, shape[2:])) + (" last" if channels_last else "")
    rows = [
        (name, row)
        for version in BUDGETS.values()
        for name, row in version["sm_90"].items()
        if row["kernel"] == kernel
    ]
    own = [row for name, row in rows if name in (site, f"{site} tail")] or [row for _, row in rows]
    return max(
        (resident_programs(threads, row["registers"], row["shared_bytes"]) for row in own),
        default=resident_programs(threads, 32, 0),
    )


def layout_of(shape: Sequence[int], channels_last: bool, residual: bool) -> Layout:
    """Of x, out and the residual."""
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    x = torch.empty(tuple(shape), device="meta", memory_format=memory_format)
    return common_layout(x.shape, *[x.stride()] * (3 if residual else 2))


def chosen(
    shape: Sequence[int], taps: int, channels_last: bool, residual: bool, front: bool = False
) -> Choice:
    """The kernel of an H200; `front`: with batch norm or an activation before pooling."""
    layout = layout_of(shape, channels_last, residual)
    return choose(EcaProblem(layout, DTYPE, ITEMSIZE, DEVICE, "forward", taps, front=front))


def traffic(
    choice: Choice,
    shape: Sequence[int],
    taps: int,
    channels_last: bool = False,
    residual: bool = False,
    *,
    resident: int | None = None,
    seed: int | None = None,
    sizes: Sequence[L2] = SIZES,
) -> list[float]:
    """DRAM traffic of one call in units of the map's size, per L2.

    Args:
        choice: Kernel and config.
        shape: [N, C, H, W] of the map, in bf16.
        taps: Of the convolution over channels.
        channels_last: Whether the map is.
        residual: Whether one is added.
        resident: Programs at a time; None: as the registers allow.
        seed: Of the order in which resident programs proceed; None: in turn.
        sizes: Of the L2, as many as are to be replayed.
    """
    layout = layout_of(shape, channels_last, residual)
    config = choice.config
    steps: tuple[TiledPass, ...] = ("pool", "rescale")
    pool, rescale = (pass_config(PassProblem(layout, DTYPE, ITEMSIZE, DEVICE, step)) for step in steps)
    partials = -(-layout.hw // config.block_hw) if isinstance(config, LaggedConfig) else pool.splits
    # A tile is loaded at one go, whatever its blocks: up to 2 kB of a row at a time, or 64 rows of channels.
    step = 64 if channels_last else 1024
    if config is None:
        step = min(pool.block_hw, rescale.block_hw)
    elif isinstance(config, LaggedConfig):
        step = config.block_hw
    maps = maps_of(layout, taps, residual, step, partials)

    launches: list[tuple[int, int, Callable[[int], Program]]]  # programs, threads in warps, each program
    by_channels = layout.n * -(-layout.c // config.block_c) if config is not None else 0
    if isinstance(config, TileConfig):
        launches = [(by_channels, config.num_warps, partial(tile, maps, config))]
    elif isinstance(config, TileChannelsLastConfig):
        launches = [(by_channels, config.num_warps, partial(tile_channels_last, maps, config))]
    elif isinstance(config, LaggedConfig):
        count = layout.n * config.tiles(layout) + config.lag
        launches = [(count, config.num_warps, partial(lagged, maps, config, [0] * layout.n))]
    else:
        launches = [
            (
                layout.n * -(-layout.c // half.block_c) * half.splits,
                half.num_warps,
                partial(two_pass, maps, half, pool.splits, half is pool),
            )
            for half in (pool, rescale)
        ]

    def slots(warps: int) -> int:
        return resident or occupancy(choice.kernel, shape, channels_last, warps * DEVICE.warp_size)

    programs = ((map(program, range(count)), slots(warps)) for count, warps, program in launches)
    return dram(programs, layout, sizes, seed)


def dram(
    launches: Iterable[tuple[Iterable[Program], int]], layout: Layout, sizes: Sequence[L2], seed: int | None
) -> list[float]:
    """Traffic of launches, each its programs and how many are resident, in units of the map, per L2."""
    caches = [Cache(l2) for l2 in sizes]
    for programs, slots in launches:
        replay(programs, slots, caches, seed)
    for held in caches:
        held.flush()
    return [held.dram_bytes / (layout.n * layout.c * layout.hw * ITEMSIZE) for held in caches]


def main() -> None:
    """Print the table."""
    sizes = [*SIZES, *(L2(size.capacity, hints=False) for size in SIZES)]
    rows = []
    for channels_last, (shape, taps), residual in product((False, True), RESNET, (False, True)):
        site = (shape, taps, channels_last, residual)
        choice = chosen(*site)
        figures = traffic(choice, *site, sizes=sizes) + traffic(Choice("two_pass", None), *site)
        layout = "channels-last" if channels_last else "contiguous"
        tail = "yes" if residual else "no"
        cells = [f"{figure:.2f}" for figure in figures]
        rows.append(("x".join(map(str, shape)), layout, tail, choice.kernel, *cells))
    heads = ["map", "layout", "residual", "kernel", *map(str, sizes), *(f"two_pass {size}" for size in SIZES)]
    print("DRAM traffic in units of the map, by the size of L2")
    print(plain_table(heads, rows, heads[4:]))


if __name__ == "__main__":
    main()
