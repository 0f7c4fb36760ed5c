"""What the programs of each kernel over the map access, in their order; `l2_model.py` replays it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch

from eca_triton.tuning.config import Config
from eca_triton.tuning.families.blocks import power_of_2
from eca_triton.tuning.families.lagged import LaggedConfig
from eca_triton.tuning.families.tile import TileConfig
from eca_triton.tuning.families.tile_channels_last import HALO, TileChannelsLastConfig
from eca_triton.tuning.layout import Layout

DTYPE = torch.bfloat16
ITEMSIZE = DTYPE.itemsize
Range = tuple[int, int]


@dataclass(frozen=True)
class Buffer:
    """A tensor [N, C, HW], cut into chunks that have consecutive numbers from `first` on."""

    first: int
    c: int
    hw: int
    itemsize: int
    chunk_c: int
    chunk_hw: int

    @property
    def chunks_of_image(self) -> int:
        return -(-self.c // self.chunk_c) * -(-self.hw // self.chunk_hw)

    def chunks(self, c: tuple[int, int], hw: tuple[int, int]) -> list[tuple[int, int]]:
        """Number within the image, and bytes, of the chunks that a range of channels and elements touches."""
        columns = -(-self.hw // self.chunk_hw)
        (c0, c1), (hw0, hw1) = ((max(0, a), min(b, end)) for (a, b), end in ((c, self.c), (hw, self.hw)))
        if c0 >= c1 or hw0 >= hw1:
            return []
        return [
            (
                i * columns + j,
                self.itemsize
                * (min(self.chunk_c, self.c - i * self.chunk_c))
                * (min(self.chunk_hw, self.hw - j * self.chunk_hw)),
            )
            for i in range(c0 // self.chunk_c, (c1 - 1) // self.chunk_c + 1)
            for j in range(hw0 // self.chunk_hw, (hw1 - 1) // self.chunk_hw + 1)
        ]


class Access(NamedTuple):
    """Of a range of channels and of elements of one image."""

    buffer: Buffer
    image: int
    c: tuple[int, int]
    hw: tuple[int, int]
    write: bool = False
    evict_first: bool = False


Turn = Sequence[Access]
Program = Iterator[Turn]


@dataclass(frozen=True)
class Maps:
    """The tensors of one call, and the elements of a row that a program accesses in one turn."""

    layout: Layout
    taps: int
    step: int
    x: Buffer
    out: Buffer
    residual: Buffer | None
    partial: Buffer

    @property
    def steps(self) -> list[tuple[int, int]]:
        """Turns over whole rows."""
        return [(start, start + self.step) for start in range(0, self.layout.hw, self.step)]

    def finish(self, image: int, c: tuple[int, int], hw: tuple[int, int], evict_first: bool = False) -> Turn:
        """Reads the residual, writes the output."""
        read = () if self.residual is None else (Access(self.residual, image, c, hw, False, evict_first),)
        return (*read, Access(self.out, image, c, hw, True, evict_first))


def maps_of(layout: Layout, taps: int, residual: bool, step: int, partials: int) -> Maps:
    """The tensors of one call.

    Args:
        layout: Of all maps.
        taps: Of the convolution.
        residual: Whether there is one.
        step: Elements of a row that a program accesses in one turn: a chunk has no more.
        partials: Partial sums per channel of an image.
    """
    piece = (power_of_2(max(1, taps // 2)), step) if layout.contiguous else (64 // ITEMSIZE, step)
    buffers: list[Buffer] = []
    for hw, itemsize, (chunk_c, chunk_hw) in [(layout.hw, ITEMSIZE, piece)] * 3 + [(partials, 4, (64, 1))]:
        first = 0 if not buffers else buffers[-1].first + layout.n * buffers[-1].chunks_of_image
        buffers.append(Buffer(first, layout.c, hw, itemsize, chunk_c, chunk_hw))
    return Maps(layout, taps, step, buffers[0], buffers[1], buffers[2] if residual else None, buffers[3])


def tile(maps: Maps, config: TileConfig, pid: int) -> Program:
    """A program of kernels/tile.py."""
    image, block = divmod(pid, -(-maps.layout.c // config.block_c))
    first = block * config.block_c
    last = min(first + config.block_c, maps.layout.c)
    r = maps.taps // 2
    if r:
        for hw in maps.steps:
            yield Access(maps.x, image, (first - r, first), hw), Access(maps.x, image, (last, last + r), hw)
    for hw in maps.steps:
        yield (Access(maps.x, image, (first, last), hw),)
    for hw in maps.steps:
        yield maps.finish(image, (first, last), hw)


def tile_channels_last(maps: Maps, config: TileChannelsLastConfig, pid: int) -> Program:
    """A program of kernels/tile_channels_last.py."""
    image, block = divmod(pid, -(-maps.layout.c // config.block_c))
    first = block * config.block_c
    last = min(first + config.block_c, maps.layout.c)
    for hw in maps.steps:
        yield (Access(maps.x, image, (first, last), hw),)
    if maps.taps > 1:
        for hw in maps.steps:
            sides = (first - HALO, first), (last, last + HALO)
            yield tuple(Access(maps.x, image, side, hw) for side in sides)
    for hw in maps.steps:
        yield maps.finish(image, (first, last), hw)


def lagged_place(layout: Layout, config: LaggedConfig, index: int) -> tuple[int, int, Range, Range]:
    """Return image and chunk of a tile of the lagged launches, and its channels and positions."""
    image, rest = divmod(index, config.tiles(layout))
    chunk, block = divmod(rest, -(-layout.c // config.block_c))
    c, hw = block * config.block_c, chunk * config.block_hw
    return image, chunk, (c, c + config.block_c), (hw, hw + config.block_hw)


def lagged(maps: Maps, config: LaggedConfig, arrived: list[int], ticket: int) -> Program:
    """A program of kernels/lagged.py; `arrived`: tiles summed, per image."""
    tiles, place = config.tiles(maps.layout), partial(lagged_place, maps.layout, config)
    if ticket < maps.layout.n * tiles:
        image, chunk, c, hw = place(ticket)
        yield (Access(maps.x, image, c, hw),)
        yield (Access(maps.partial, image, c, (chunk, chunk + 1), write=True),)
        arrived[image] += 1
        if arrived[image] == tiles:
            yield (Access(maps.partial, image, (0, maps.layout.c), (0, maps.partial.hw)),)
            arrived[image] += 1
    if ticket >= config.lag:
        image, _, c, hw = place(ticket - config.lag)
        yield (Access(maps.x, image, c, hw, evict_first=True),)
        while arrived[image] <= tiles:
            yield ()
        yield maps.finish(image, c, hw, evict_first=True)


def two_pass(maps: Maps, config: Config, splits: int, pooling: bool, pid: int) -> Program:
    """A program of kernels/pool.py, or of kernels/rescale.py, which starts with the last image."""
    layout = maps.layout
    blocks_c = -(-layout.c // config.block_c)
    image, rest = divmod(pid, blocks_c * config.splits)
    split, block = divmod(rest, blocks_c)
    c = block * config.block_c, (block + 1) * config.block_c
    if not pooling:
        image = layout.n - 1 - image
        r = maps.taps // 2
        yield (Access(maps.partial, image, (c[0] - r, c[1] + r), (0, splits)),)
    chunk = -(-layout.hw // (config.splits * config.block_hw)) * config.block_hw
    for start in range(split * chunk, min((split + 1) * chunk, layout.hw), config.block_hw):
        hw = start, start + config.block_hw
        yield (Access(maps.x, image, c, hw),)
        if not pooling:
            yield maps.finish(image, c, hw)
    if pooling:
        yield (Access(maps.partial, image, c, (split, split + 1), write=True),)
