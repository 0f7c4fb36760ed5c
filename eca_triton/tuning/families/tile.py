"""The contiguous register tile, forward and backward: how it is cut, what may run, what is tried."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import gcd
from typing import Any

from ..config import Choice
from ..layout import Layout
from ..problem import EcaProblem
from .blocks import VECTOR_BYTES, image, power_of_2, powers, share_fits

THREADS = (64, 128, 256, 512)
OCTET = 8  # elements whose bits share a byte
NARROW_BYTES = 8  # aligned accesses this wide are as good as wider ones that need windows
LINE_COLUMNS = 64  # of a block: whole 128-byte lines of bf16
WINDOW_COLUMNS = 32
PADDING = 1 / 16  # of a row, that wider blocks may cost
MAX_HALO = 2  # rows that are only summed, per row of the tile
MAX_INDEX = 2**31 - 2**16  # offsets inside an image are int32
COLUMNS = (32, 64, 128, 256)  # of the contiguous tile's blocks: from half a line of bf16 on


@dataclass(frozen=True)
class TileConfig:
    """Cut of a map by the kernel; blocks are powers of two.

    Attributes:
        block_c: channels of one program.
        block_hw: columns of one block of its tile.
        chunks: such blocks.
        block_tail: columns of one more block, or 0.
        block_halo: channels on both sides of the tile.
        vec: elements that one access may cover, or that share a byte of bits.
        windowed: whether rows start off a vector, and are read by aligned windows.
        packed: whether the tile must be kept from being converted to fp32 ahead of time.
        num_warps: warps of one program.
    """

    block_c: int
    block_hw: int
    chunks: int
    block_tail: int
    block_halo: int
    vec: int
    windowed: bool
    packed: bool
    num_warps: int

    def tiles(self, layout: Layout) -> int:
        """Programs of one image."""
        return -(-layout.c // self.block_c)


@dataclass(frozen=True)
class TileBackwardConfig(TileConfig):
    """Cut of a map by the kernel of the backward; the tile is of the gradient that it keeps.

    Attributes:
        block_halo_hw: columns of one block of the halo, whose rows are few and only summed.
    """

    block_halo_hw: int


@dataclass(frozen=True)
class Limits:
    """Limits of what one thread may hold of the tile.

    Attributes:
        short_bytes: where nothing asks for more: many small programs hide latency.
        long_bytes: at most.
        packed_elements: above, 16-bit elements may not also be kept as fp32.
    """

    short_bytes: int
    long_bytes: int
    packed_elements: int


# 50 registers at most, which leave as many for sums and addresses at 128 per thread.
FORWARD = Limits(short_bytes=100, long_bytes=200, packed_elements=64)
# The gradient takes 26 registers, as large a share of x is on its way beside it, and both have sums. What
# activations compute takes as many again.
LINEAR = Limits(short_bytes=104, long_bytes=104, packed_elements=48)
RECOMPUTED = Limits(short_bytes=52, long_bytes=52, packed_elements=48)


def limits(problem: EcaProblem) -> Limits:
    """Return what a thread may hold."""
    if problem.direction == "forward":
        return FORWARD
    return RECOMPUTED if problem.recomputed else LINEAR


def tile_config(problem: EcaProblem) -> TileConfig | None:
    """Config of the kernel that keeps rows of x, or of dy, in registers; None where it takes none."""
    rows = rows_of(problem)
    if rows is None:
        return None
    c, halo, least, room = problem.layout.c, problem.taps - 1, rows.least, limits(problem)

    block_c = max(least, 1 << max(0, (room.short_bytes * THREADS[0] // rows.bytes).bit_length() - 1))
    threads = THREADS[0]
    # More channels in a program dilute its halo: first with more threads, since those also have loads in
    # flight, then with longer shares per thread; the largest programs only for rows that fit no other.
    while halo > block_c / 8 and threads < 256:
        block_c, threads = 2 * block_c, 2 * threads
    while halo > block_c / 4 and 2 * block_c * rows.bytes <= room.long_bytes * threads:
        block_c *= 2
    while block_c * rows.bytes > room.long_bytes * threads:
        if threads < (THREADS[-1] if halo else 256) or block_c <= least:
            threads *= 2
        else:
            block_c //= 2
    block_c = min(block_c, max(least, power_of_2(c)))

    # At small batch fewer channels per program, so that every SM has one.
    n, num_sms = problem.layout.n, problem.device.num_sms
    while n * -(-c // block_c) < num_sms and block_c > least and 2 * halo <= MAX_HALO * block_c:
        block_c //= 2
    if threads > THREADS[-1] or min(halo, c - block_c) > MAX_HALO * block_c:
        return None
    return shaped(problem, rows, block_c, threads)


@dataclass(frozen=True)
class Rows:
    """Rows of a map as threads read them.

    Attributes:
        vec: as of `TileConfig`, like `windowed`.
        windowed: whether rows start off a vector.
        access: elements of one load or store.
        span: columns to read of a row.
        bytes: of a row that is kept.
        least: channels of a program, at least: blocks end on a vector.
    """

    vec: int
    windowed: bool
    access: int
    span: int
    bytes: int
    least: int


def rows_of(problem: EcaProblem) -> Rows | None:
    """The rows of a map that the kernel takes, else None."""
    layout, kept_itemsize, bits = problem.layout, problem.kept_itemsize, problem.bits
    c, hw = layout.c, layout.hw
    if not layout.contiguous or c * hw > MAX_INDEX:
        return None
    vec, windowed = _vector(c, hw, problem.itemsize, bits)
    if bits and vec != OCTET:
        return None
    span = -(-(hw + vec - 1) // vec) * vec if windowed else hw
    access = min(vec, VECTOR_BYTES // problem.itemsize)
    return Rows(vec, windowed, access, span, span * kept_itemsize, vec // gcd(vec, hw))


def shaped(problem: EcaProblem, rows: Rows, block_c: int, threads: int, columns: int = 0) -> TileConfig:
    """The config of programs of `block_c` channels and so many threads, or fewer where some would idle.

    columns: of the widest block, 0 for what suits the rows.
    """
    # One vector per thread and block, over whole lines. Short rows that need windows cost fewest instructions
    # in blocks of 32, with every store a whole vector. Narrower ones pad less and use fewer threads.
    room, warp_size = limits(problem), problem.device.warp_size
    share = threads * rows.access // block_c
    columns = columns or max(WINDOW_COLUMNS if rows.windowed else LINE_COLUMNS, share)
    needed = power_of_2(-(-block_c * rows.bytes // room.long_bytes))
    narrowest = max(4 * rows.vec, needed * rows.access // block_c)
    block_hw, chunks, block_tail = _blocks(rows.span, columns, narrowest, share if rows.windowed else 1)
    threads = min(threads, max(warp_size, THREADS[0], block_c * block_hw // rows.access))
    tile = TileConfig(
        block_c=block_c,
        block_hw=block_hw,
        chunks=chunks,
        block_tail=block_tail,
        block_halo=power_of_2(max(problem.taps - 1, 1)),
        vec=rows.vec,
        windowed=rows.windowed,
        packed=problem.kept_itemsize == 2 and block_c * rows.span > room.packed_elements * threads,
        num_warps=max(1, threads // warp_size),
    )
    if problem.direction == "forward":
        return tile
    # A vector of the halo for every thread.
    row = power_of_2(chunks * block_hw + block_tail)
    share = tile.num_warps * warp_size * rows.access // tile.block_halo
    return TileBackwardConfig(**vars(tile), block_halo_hw=min(row, max(share, rows.vec)))


def _vector(c: int, hw: int, itemsize: int, bits: bool) -> tuple[int, bool]:
    """Elements of one access, and whether it takes aligned windows to have so many.

    With bits: of a byte of them, which may take two accesses.
    """
    if bits:
        return (OCTET, hw % OCTET != 0) if c * hw % OCTET == 0 and hw >= OCTET else (1, False)
    widest = VECTOR_BYTES // itemsize
    vec = gcd(hw, widest)
    if vec * itemsize >= NARROW_BYTES:
        return vec, False
    # Images must start on a vector, and a vector may hold the end of one row and the start of the next only.
    window = gcd(c * hw, widest)
    while window > hw:
        window //= 2
    return (window, True) if window > vec else (vec, False)


def _blocks(span: int, widest: int, narrowest: int, least_tail: int) -> tuple[int, int, int]:
    """Columns of a block, number of blocks, columns of the tail: the widest that hardly pad."""
    best = None
    block = min(power_of_2(span), power_of_2(widest))
    narrowest = min(narrowest, block)
    while block >= narrowest:
        chunks, rest = divmod(span, block)
        tail = max(power_of_2(rest), power_of_2(least_tail)) if rest else 0
        if tail >= block:
            chunks, tail = chunks + 1, 0
        padded = chunks * block + tail
        if chunks and (best is None or padded < best[0] - PADDING * span):
            best = padded, block, chunks, tail
        block //= 2
    assert best is not None, "a block of all columns always fits"
    return best[1:]


def fits(problem: EcaProblem, config: Any) -> bool:
    """Return whether the kernel computes the problem with the config."""
    layout, halo = problem.layout, problem.taps - 1
    span = -(-(layout.hw + config.vec - 1) // config.vec) * config.vec if config.windowed else layout.hw
    columns = config.chunks * config.block_hw + config.block_tail
    return (
        layout.contiguous
        and layout.c * layout.hw <= MAX_INDEX
        and _vectors_fit(problem, config.vec, config.windowed)
        and config.block_c * layout.hw % config.vec == 0  # no vector is shared by two programs
        and config.block_hw % config.vec == config.block_tail % config.vec == 0
        and span <= columns < span + max(config.block_hw, config.block_tail)
        and config.block_c <= max(config.vec, power_of_2(layout.c))
        and min(halo, layout.c - config.block_c) <= MAX_HALO * config.block_c
        and config.block_halo == power_of_2(max(halo, 1))
        and (problem.kept_itemsize == 2 or not config.packed)
        and share_fits(problem, config.block_c * columns * problem.kept_itemsize, config.num_warps)
        and (problem.direction == "forward" or _halo_fits(problem, config, columns))
    )


def _halo_fits(problem: EcaProblem, config: Any, columns: int) -> bool:
    """Return whether the backward's kernel walks over the halo in such blocks."""
    layout, block = problem.layout, config.block_halo_hw
    # The halo's loop has no mask where blocks end with the row: then there may be no block after it, unless
    # there is no halo. Circular padding, which has one for all channels too, takes half a band of them.
    masked = layout.hw % block != 0 or columns - layout.hw < block
    no_halo = layout.c <= config.block_c and layout.c < problem.taps // 2
    return block % config.vec == 0 and block <= power_of_2(columns) and (masked or no_halo)


def _vectors_fit(problem: EcaProblem, vec: int, windowed: bool) -> bool:
    layout = problem.layout
    if (problem.bits and vec != OCTET) or (not problem.bits and vec * problem.itemsize > VECTOR_BYTES):
        return False
    if windowed:  # images start on a vector, which may hold the end of one row and the start of the next
        return image(layout) % vec == 0 and layout.hw % vec != 0 and vec <= layout.hw
    return layout.hw % vec == 0


def candidates(problem: EcaProblem, _: Choice) -> Iterator[Choice]:
    """Contiguous rows in registers."""
    layout, taps, room, rows = problem.layout, problem.taps, limits(problem), rows_of(problem)
    if rows is None:
        return
    for block_c in powers(rows.least, max(rows.least, power_of_2(layout.c))):
        # Below, more rows are read for their sums alone than are kept.
        if min(taps - 1, layout.c - block_c) > MAX_HALO * block_c:
            continue
        for threads in THREADS:
            for columns in (0, *COLUMNS):
                config = shaped(problem, rows, block_c, threads, columns)
                share = block_c * rows.bytes / (config.num_warps * problem.device.warp_size)
                # Narrow blocks are for fewer threads than asked.
                if share <= room.long_bytes and (share >= VECTOR_BYTES or threads == THREADS[0]):
                    yield Choice("tile", config)
