"""DRAM traffic of the channels-last backward, by `l2_model.py`; run it for a table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from l2_model import DEVICE, L2, RESNET, SIZES, dram, layout_of, occupancy
from l2_programs import DTYPE, ITEMSIZE, Access, Buffer, Program, Range, Turn, lagged_place

from eca_triton.tuning.families.lagged import LaggedConfig, lagged_config
from eca_triton.tuning.families.tile_channels_last import (
    HALO,
    TileChannelsLastConfig,
    tile_channels_last_config,
)
from eca_triton.tuning.layout import Layout
from eca_triton.tuning.problem import EcaProblem
from eca_triton.util.tables import plain_table

Config = TileChannelsLastConfig | LaggedConfig


@dataclass(frozen=True)
class Maps:
    """The tensors of a backward; with a tail, d_residual and bits: a byte of `bits` is eight channels."""

    layout: Layout
    step: int
    dy: Buffer
    x: Buffer
    d_x: Buffer
    partial: Buffer
    d_residual: Buffer | None
    bits: Buffer | None

    def read(self, image: int, c: Range, hw: Range, keep_dy: bool = False, hints: bool = True) -> Turn:
        """dy, x and bits."""
        turn = [Access(self.dy, image, c, hw, evict_first=hints and not keep_dy)]
        turn.append(Access(self.x, image, c, hw, evict_first=hints))
        if self.bits is not None:
            turn.append(Access(self.bits, image, (c[0] // 8, c[1] // 8), hw, evict_first=hints))
        return turn


def maps_of(layout: Layout, tail: bool, step: int, partials: int) -> Maps:
    """The tensors of one call, channels-last in bf16."""
    buffers: list[Buffer] = []
    whole = (layout.c, layout.hw, ITEMSIZE, 64 // ITEMSIZE, step)
    bits = (layout.c // 8, layout.hw, 1, 4, step)
    for c, hw, itemsize, chunk_c, chunk_hw in [whole] * 4 + [(layout.c, partials, 4, 64, 1), bits]:
        first = 0 if not buffers else buffers[-1].first + layout.n * buffers[-1].chunks_of_image
        buffers.append(Buffer(first, c, hw, itemsize, chunk_c, chunk_hw))
    dy, x, d_x, d_residual, partial_sums, packed = buffers
    return Maps(
        layout, step, dy, x, d_x, partial_sums, d_residual if tail else None, packed if tail else None
    )


def tile(maps: Maps, config: TileChannelsLastConfig, pid: int) -> Program:
    """A program of kernels/tile_channels_last_backward.py."""
    image, block = divmod(pid, -(-maps.layout.c // config.block_c))
    first = block * config.block_c
    c = first, min(first + config.block_c, maps.layout.c)
    steps = [(start, start + maps.step) for start in range(0, maps.layout.hw, maps.step)]
    for hw in steps:
        yield maps.read(image, c, hw, hints=False)
        if maps.d_residual is not None:
            yield (Access(maps.d_residual, image, c, hw, write=True),)
    for hw in steps:
        for side in ((first - HALO, first), (c[1], c[1] + HALO)):
            if 0 <= side[0] < maps.layout.c:
                yield maps.read(image, side, hw, hints=False)
    for hw in steps:
        yield (Access(maps.d_x, image, c, hw, write=True),)


def lagged(maps: Maps, config: LaggedConfig, arrived: list[int], ticket: int) -> Program:
    """A program of kernels/lagged_backward.py; `arrived`: tiles summed, per image."""
    tiles, place = config.tiles(maps.layout), partial(lagged_place, maps.layout, config)
    if ticket < maps.layout.n * tiles:
        image, chunk, c, hw = place(ticket)
        yield maps.read(image, c, hw, keep_dy=maps.d_residual is None)
        if maps.d_residual is not None:
            yield (Access(maps.d_residual, image, c, hw, write=True),)
        yield (Access(maps.partial, image, c, (chunk, chunk + 1), write=True),)
        arrived[image] += 1
        if arrived[image] == tiles:
            yield (Access(maps.partial, image, (0, maps.layout.c), (0, maps.partial.hw)),)
            arrived[image] += 1
    if ticket >= config.lag:
        image, _, c, hw = place(ticket - config.lag)
        while arrived[image] <= tiles:
            yield ()
        yield (
            Access(maps.dy if maps.d_residual is None else maps.d_residual, image, c, hw, evict_first=True),
        )
        yield (Access(maps.d_x, image, c, hw, write=True, evict_first=True),)


def chosen(shape: Sequence[int], taps: int, tail: bool) -> Config:
    """The config of an H200: registers, or what does not fit them lagged."""
    layout = layout_of(shape, True, tail)
    problem = EcaProblem(layout, DTYPE, ITEMSIZE, DEVICE, "backward", taps, bits=tail, stored=tail)
    config, other = tile_channels_last_config(problem), lagged_config(problem)
    if config is not None:
        return config
    assert other is not None
    return other


def traffic(
    config: Config,
    shape: Sequence[int],
    tail: bool,
    *,
    seed: int | None = None,
    sizes: Sequence[L2] = SIZES,
) -> list[float]:
    """DRAM traffic of one backward in units of the map's size, per L2; arguments as of `l2_model.traffic`."""
    layout = layout_of(shape, True, tail)
    program: Callable[[int], Program]
    if isinstance(config, LaggedConfig):
        maps = maps_of(layout, tail, config.block_hw, -(-layout.hw // config.block_hw))
        count, kernel = layout.n * config.tiles(layout) + config.lag, "lagged_backward"
        program = partial(lagged, maps, config, [0] * layout.n)
    else:
        maps = maps_of(layout, tail, 64, 1)
        count, kernel = layout.n * -(-layout.c // config.block_c), "tile_channels_last_backward"
        program = partial(tile, maps, config)
    slots = occupancy(kernel, shape, True, config.num_warps * DEVICE.warp_size)
    return dram([(map(program, range(count)), slots)], layout, sizes, seed)


def main() -> None:
    """Print the table."""
    sizes = [*SIZES, *(L2(size.capacity, hints=False) for size in SIZES)]
    rows = []
    for shape, taps in RESNET:
        for tail in (False, True):
            config = chosen(shape, taps, tail)
            kernel = "lagged" if isinstance(config, LaggedConfig) else "tile"
            cells = [f"{figure:.2f}" for figure in traffic(config, shape, tail, sizes=sizes)]
            rows.append(("x".join(map(str, shape)), "yes" if tail else "no", kernel, *cells))
    heads = ["map", "residual and ReLU", "kernel", *map(str, sizes)]
    print("DRAM traffic of the backward in units of the map, by the size of L2")
    print(plain_table(heads, rows, heads[3:]))


if __name__ == "__main__":
    main()
