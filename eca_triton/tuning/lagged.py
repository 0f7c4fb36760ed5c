"""Config of the lagged launch, or None where it would not pay."""

from __future__ import annotations

from dataclasses import dataclass

from .config import Device
from .heuristic import VECTOR_BYTES, power_of_2
from .layout import Layout

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


@dataclass(frozen=True)
class LaggedConfig:
    """How the kernel cuts a map; blocks are powers of two.

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


def lagged_config(
    layout: Layout, itemsize: int, front: bool, device: Device, bits: bool = False
) -> LaggedConfig | None:
    """Config for x of `itemsize` bytes; `front`: with batch norm or an activation before the pooling.

    `layout` covers x, out and the residual; `bits`: with a mask for the backward.
    """
    return cut(layout, itemsize, forward_tile_bytes(itemsize, front or bits), VECTORS, 1, bits, device)


def forward_tile_bytes(itemsize: int, more: bool) -> int:
    """Bytes of a tile of the forward, at most.

    Beside batch norm's terms, or packed into bits, 64 elements of 16 bits take more registers than wide
    programs may have.
    """
    return TILE_BYTES // 2 if more and itemsize == 2 else TILE_BYTES


def cut(
    layout: Layout, itemsize: int, size: int, vectors: int, returning: int, bits: bool, device: Device
) -> LaggedConfig | None:
    """Config for maps of `itemsize` bytes.

    Args:
        layout: Of all maps.
        itemsize: Bytes of an element.
        size: Bytes of a tile, at most.
        vectors: Of a tile per thread, at most unless 256 threads have more.
        returning: Maps that come back from L2.
        bits: Whether there is a mask, of which no byte may belong to two rows.
        device: Properties of the GPU.
    """
    vec_c = channels_per_vector(layout, itemsize, bits, device)
    if vec_c is None:
        return None
    # Smaller tiles would be mostly overhead.
    smallest = (4 if vec_c > 1 else 2) * VECTOR_BYTES * THREADS[0]
    while True:
        block_c, block_hw = _tile(layout, size // itemsize, vec_c > 1)
        tiles = -(-layout.c // block_c) * -(-layout.hw // block_hw)
        # Smaller tiles until every SM has one.
        if layout.n * tiles >= device.num_sms or size <= smallest:
            break
        size //= 2
    tile_bytes = block_c * block_hw * itemsize
    threads = min(max(tile_bytes // (vectors * VECTOR_BYTES), THREADS[0]), THREADS[-1])
    return shaped(layout, itemsize, block_c, block_hw, threads, returning, device)


def channels_per_vector(layout: Layout, itemsize: int, bits: bool, device: Device) -> int | None:
    """Channels of one vector access: all of it where they are contiguous, else 1; None: no such kernel."""
    if not takes(layout, device):
        return None
    vector = VECTOR_BYTES // itemsize
    vec_c, vec_hw = layout.vector(1, vector), layout.vector(2, vector)
    if max(vec_c, vec_hw) < vector:  # element by element, issuing costs more than the second read
        return None
    if vec_c == vector:
        return vector
    return None if bits and layout.hw % 8 else 1


def takes(layout: Layout, device: Device) -> bool:
    """Whether the kernel takes such maps there.

    CDNA's L2 is one per die, so a tile may not come back from it; no AMD GPU has been tried.
    """
    return device.vendor == "nvidia" and (layout.contiguous or layout.dense_channels_last)


def shaped(
    layout: Layout,
    itemsize: int,
    block_c: int,
    block_hw: int,
    threads: int,
    returning: int,
    device: Device,
    programs_ahead: float = 0.5,
) -> LaggedConfig | None:
    """The config of such tiles in programs of so many threads; None where tiles would not come back from L2.

    The rest as `cut`, for a map that the kernel takes.

    Args:
        layout: Of all maps.
        itemsize: Bytes of an element.
        block_c: Channels of a tile.
        block_hw: Spatial elements of a tile.
        threads: Of a program.
        returning: Maps that come back from L2.
        device: Properties of the GPU.
        programs_ahead: How far the sums are ahead of an image's last, in programs that are in flight.
    """
    vector = VECTOR_BYTES // itemsize
    channels_last = layout.vector(1, vector) == vector
    tiles = -(-layout.c // block_c) * -(-layout.hw // block_hw)
    tile_bytes = block_c * block_hw * itemsize
    # A tile comes back when its image is summed and the programs in flight, half way on average, are through.
    resident = device.num_sms * RESIDENT_THREADS // threads
    lag = min(tiles + int(resident * programs_ahead), layout.n * tiles)
    map_bytes = layout.n * layout.c * layout.hw * itemsize
    if (
        returning * min((lag + resident) * tile_bytes, map_bytes) > L2_BYTES
        or layout.n * tiles + lag > MAX_INDEX
    ):
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
        vec_c=vector if channels_last else layout.vector(1, vector),
        vec_hw=1 if channels_last else vector,
        max_registers=MAX_REGISTERS[threads],
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
