"""The lagged launch, forward and backward: how it is cut, what may run, what is tried."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ..config import Choice
from ..layout import Layout
from ..problem import EcaProblem
from .blocks import PADDING, VECTOR_BYTES, padding, power_of_2, share_fits
from .product import REGISTERS
from .tile import OCTET

THREADS = (128, 256)
VECTORS = 8  # of a tile per thread: 32 registers
TILE_BYTES = VECTORS * VECTOR_BYTES * THREADS[-1]
# Two wide programs or three narrow ones per SM. Left to itself, ptxas spills some values to fit one more.
MAX_REGISTERS = {128: 168, 256: 128}
RESIDENT_THREADS = 512  # per SM, about
L2_BYTES = 24 << 20  # of it a tile must come back: half an A100's, H100's or H200's, the rest is for output
MAX_INDEX = 2**31 - 2**16  # tickets are int32
# A poll is a round trip to L2 and two barriers, hundreds of ns: milliseconds in all. What a program waits
# for, sums that others have begun, takes no longer than L2_BYTES take from DRAM: tens of microseconds.
PATIENCE = 1 << 13
AHEAD = (0.25, 0.5, 1.0)  # programs in flight, of which the lagged kernel's sums may be ahead


@dataclass(frozen=True)
class LaggedConfig:
    """Cut of a map by the kernel; blocks are powers of two.

    Attributes:
        block_c: channels of one tile.
        block_hw: spatial elements of one tile.
        lag: tiles between summing and rescaling.
        block_p: chunks of partial sums in one step of the last arriver.
        block_g: channels in that step.
        num_warps: warps of one program.
        vec_c: channels that one vector access covers; 1 unless channels are contiguous.
        vec_hw: spatial elements that one vector access covers; 1 unless these are contiguous.
        max_registers: of a thread, which the kernel fits unless SiLU or GELU is in it.
        patience: polls for an image's gates after which a program forms them itself.
    """

    block_c: int
    block_hw: int
    lag: int
    block_p: int
    block_g: int
    num_warps: int
    vec_c: int
    vec_hw: int
    max_registers: int
    patience: int = PATIENCE

    def tiles(self, layout: Layout) -> int:
        """Tiles of one image."""
        return -(-layout.c // self.block_c) * -(-layout.hw // self.block_hw)


def lagged_config(problem: EcaProblem) -> LaggedConfig | None:
    """Return the rule's config; None where vectors are not whole, or tiles would not come back from L2."""
    vec_c = _channels_per_vector(problem)
    if vec_c is None:
        return None
    layout, itemsize, size = problem.layout, problem.cut_itemsize, _tile_bytes(problem)
    # Smaller tiles would be mostly overhead.
    smallest = (4 if vec_c > 1 else 2) * VECTOR_BYTES * THREADS[0]
    while True:
        block_c, block_hw = _tile(layout, size // itemsize, vec_c > 1)
        tiles = -(-layout.c // block_c) * -(-layout.hw // block_hw)
        # Smaller tiles until every SM has one.
        if layout.n * tiles >= problem.device.num_sms or size <= smallest:
            break
        size //= 2
    vectors = block_c * block_hw * itemsize // VECTOR_BYTES
    threads = min(max(vectors // _vectors_per_thread(problem), THREADS[0]), THREADS[-1])
    return _shaped(problem, vec_c, block_c, block_hw, threads)


def fits(problem: EcaProblem, config: Any) -> bool:
    """Return whether the kernel of the direction computes the problem with the config."""
    layout, itemsize, vec_c = problem.layout, problem.cut_itemsize, _channels_per_vector(problem)
    vector = VECTOR_BYTES // itemsize
    if vec_c is None or (config.vec_c, config.vec_hw) != (vec_c, vector // vec_c):
        return False
    block, extent = (config.block_c, layout.c) if vec_c > 1 else (config.block_hw, layout.hw)
    unit = OCTET if problem.bits else vector  # no byte of bits may belong to two rows
    tiles = config.tiles(layout)
    threads = config.num_warps * problem.device.warp_size
    return (
        block % unit == extent % unit == 0
        and config.block_c <= power_of_2(layout.c)
        and config.block_hw <= power_of_2(layout.hw)
        and tiles <= config.lag  # else programs wait in vain
        and layout.n * tiles + config.lag <= MAX_INDEX
        and config.block_p * config.block_g <= 64 * threads
        and config.max_registers <= REGISTERS // threads
        and share_fits(problem, config.block_c * config.block_hw * itemsize, config.num_warps)
    )


def candidates(problem: EcaProblem, heuristic: Choice) -> Iterator[Choice]:
    """Tiles that come back from L2."""
    vec_c = _channels_per_vector(problem)
    if vec_c is None:
        return
    layout, itemsize, most = problem.layout, problem.cut_itemsize, _tile_bytes(problem)
    # How far sums are ahead is for the heuristic's kernel to vary; another one has to win first.
    programs_ahead = AHEAD if heuristic.kernel == "lagged" else AHEAD[1:2]
    channels_last = vec_c > 1
    extent = layout.c if channels_last else layout.hw  # along the contiguous axis
    for run in (32, 64, 128) if channels_last else (256, 512, 1024):
        run = min(run, power_of_2(extent))
        if padding(extent, run) > PADDING:
            continue
        for size in (most, most // 2, most // 4):
            other = min(size // itemsize // run, power_of_2(layout.hw if channels_last else layout.c))
            block_c, block_hw = (run, other) if channels_last else (other, run)
            for threads in THREADS:
                share = run * other * itemsize / (threads * VECTOR_BYTES)
                if not 1 <= share <= _vectors_per_thread(problem):
                    continue
                for ahead in programs_ahead:
                    config = _shaped(problem, vec_c, block_c, block_hw, threads, ahead)
                    if config is not None:
                        yield Choice("lagged", config)


def _channels_per_vector(problem: EcaProblem) -> int | None:
    """Channels of one vector access: all of it where they are contiguous, else 1; None: no such kernel.

    CDNA's L2 is one per die, so a tile may not come back from it; no AMD GPU has been tried.
    """
    layout, vector = problem.layout, VECTOR_BYTES // problem.cut_itemsize
    if problem.device.vendor != "nvidia" or not (layout.contiguous or layout.dense_channels_last):
        return None
    if layout.vector(1, vector) == vector:
        return vector
    if layout.vector(2, vector) < vector:  # element by element, issuing costs more than the second read
        return None
    return None if problem.bits and layout.hw % OCTET else 1


def _tile_bytes(problem: EcaProblem) -> int:
    """Bytes of a tile, at most.

    Forward: beside batch norm's terms, or packed into bits, 64 elements of 16 bits take more registers than
    wide programs may have. Backward: two maps at a time take the registers of one in the forward.
    """
    if problem.direction == "backward":
        return TILE_BYTES // 4 if problem.recomputed else TILE_BYTES // 2
    more = problem.front or problem.bits
    return TILE_BYTES // 2 if more and problem.kept_itemsize == 2 else TILE_BYTES


def _vectors_per_thread(problem: EcaProblem) -> int:
    """Vectors of a tile per thread, at most unless the widest programs have more."""
    return VECTORS if problem.direction == "forward" else VECTORS // 2


def _returning(problem: EcaProblem) -> int:
    """Maps that come back from L2: what is spread, d_residual or dy; to recompute it, x and a residual."""
    return 3 if problem.recomputed and not problem.stored else 1


def _shaped(
    problem: EcaProblem,
    vec_c: int,
    block_c: int,
    block_hw: int,
    threads: int,
    programs_ahead: float = 0.5,
) -> LaggedConfig | None:
    """The config of such tiles in programs of so many threads; None where tiles would not come back from L2.

    vec_c: as of `_channels_per_vector`.
    programs_ahead: how far the sums are ahead of an image's last, in programs that are in flight.
    """
    layout, device, itemsize = problem.layout, problem.device, problem.cut_itemsize
    tiles = -(-layout.c // block_c) * -(-layout.hw // block_hw)
    tile_bytes = block_c * block_hw * itemsize
    # A tile comes back when its image is summed and the programs in flight, half way on average, are through.
    resident = device.num_sms * RESIDENT_THREADS // threads
    lag = min(tiles + int(resident * programs_ahead), layout.n * tiles)
    map_bytes = layout.n * layout.c * layout.hw * itemsize
    window = _returning(problem) * min((lag + resident) * tile_bytes, map_bytes)
    if window > L2_BYTES or layout.n * tiles + lag > MAX_INDEX:
        return None
    # Without a limit, as in Inductor's templates, ptxas gives small tiles few registers: four sums at a time.
    sums = (16 if tile_bytes >= VECTORS * VECTOR_BYTES * threads else 4) * threads
    block_g = min(128, max(16, power_of_2(layout.c)))
    return LaggedConfig(
        block_c=block_c,
        block_hw=block_hw,
        lag=lag,
        block_p=min(sums // block_g, power_of_2(-(-layout.hw // block_hw))),
        block_g=block_g,
        num_warps=threads // device.warp_size,
        vec_c=vec_c,
        vec_hw=VECTOR_BYTES // itemsize // vec_c,
        max_registers=255 if problem.recomputed else MAX_REGISTERS[threads],
    )


def _tile(layout: Layout, elements: int, channels_last: bool) -> tuple[int, int]:
    """Channels and spatial elements: of the sizes along the contiguous axis the one that pads least."""
    if channels_last:
        # Whole lines of bf16: wider rows would make more partial sums of the same tile.
        block_c = _least_padding(layout.c, (64, 128, 32))
        return block_c, min(elements // block_c, power_of_2(layout.hw))
    block_hw = min(_least_padding(layout.hw, (1024, 512, 256)), elements)
    return min(elements // block_hw, power_of_2(layout.c)), block_hw


def _least_padding(extent: int, blocks: tuple[int, ...]) -> int:
    """The block that pads `extent` least, the first of equals; all of a short extent."""
    return min(power_of_2(extent), min(blocks, key=lambda block: -extent % block))
