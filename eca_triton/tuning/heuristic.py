"""From shape, layout and device to a Config, with the reason beside each rule."""

from __future__ import annotations

from .config import Config, Device, FlatConfig
from .layout import Layout

VECTOR_BYTES = 16  # the widest load or store of a thread
THREADS = 128  # 4 warps: more programs hide the latency of memory better than wider ones
TILE_BYTES = 4 * VECTOR_BYTES * THREADS  # 4 vectors in flight per thread
SCALARS = 8  # elements per thread where vectors are impossible: each needs an address of its own
MIN_TILE = 1024  # elements; below this the loop and the final reduction cost more than the loads
MAX_SPLITS = 32  # every gate adds this many partial sums
PROGRAMS_PER_SM = 8  # 64 KB in flight per SM
LEAST_FLAT = 64  # elements of a program that walks an image: eight bytes of bits


def pool_config(layout: Layout, itemsize: int, device: Device) -> Config:
    """Config of the pool kernel for one tensor."""
    vector = VECTOR_BYTES // itemsize
    vec_hw = layout.vector(2, vector)
    # Rows that start off a vector boundary would be read element by element; aligned windows read whole
    # vectors instead. The last one ends inside the tensor only if the tensor is a whole number of vectors,
    # and rows shorter than a vector gain nothing.
    windowed = (
        vec_hw < vector <= layout.hw and layout.contiguous and layout.n * layout.c * layout.hw % vector == 0
    )
    return _tile(layout, itemsize, device, window=vector if windowed else 1)


def rescale_config(layout: Layout, itemsize: int, device: Device) -> Config:
    """Config of the rescale kernel; `layout` covers x, out and the residual, `itemsize` is their largest."""
    return _tile(layout, itemsize, device, window=1)


def moments_config(layout: Layout, itemsize: int, device: Device) -> Config:
    """Config of the moments kernel, as `rescale_config`; half the tile, since it keeps two sums of each."""
    return _tile(layout, itemsize, device, window=1, tile_bytes=TILE_BYTES // 2)


def gate_block(splits: int, block_k: int) -> int:
    """Entries of [N, C] per program of the gate kernel.

    8 neighbours per thread; fewer when each is many partial sums, which only happens when N * C is small.
    """
    return max(16, 8 * THREADS // block_k // max(1, splits // 4))


def backward_block(total: int, block_k: int) -> int:
    """Entries of [N, C] per program of the backward kernels.

    16 neighbours per thread; 64 for large inputs, since one program per tap adds all partial sums.
    """
    return max(16, (16 if total <= 1 << 20 else 64) * THREADS // block_k)


def near_gate_block(block_k: int) -> int:
    """Entries of [N, C] per program of a kernel that convolves at every neighbour of an entry."""
    return max(2, 16 * THREADS // block_k**2)


def batch_norm_backward_blocks(n: int, block_k: int) -> tuple[int, int]:
    """Images and channels of one step of a kernel that sums over all images: 32 channels are a sector."""
    block_n = min(power_of_2(n), max(1, 16 * THREADS // (32 * block_k)))
    return block_n, 32


def batch_statistics_blocks(n: int) -> tuple[int, int]:
    """Images and channels of one step of the kernel that combines the statistics of images, as above."""
    return min(power_of_2(n), 16 * THREADS // 32), 32


def affine_config(layout: Layout) -> FlatConfig:
    """Config of the affine kernels: two vectors of bf16 per thread."""
    return FlatConfig(min(16 * THREADS, max(LEAST_FLAT, power_of_2(layout.c * layout.hw))))


def power_of_2(size: int) -> int:
    """Smallest power of two that is at least `size`."""
    return 1 << (size - 1).bit_length()


def _tile(layout: Layout, itemsize: int, device: Device, window: int, tile_bytes: int = TILE_BYTES) -> Config:
    vector = VECTOR_BYTES // itemsize
    vec_c, vec_hw = layout.vector(1, vector), layout.vector(2, vector)
    span = layout.hw + window - 1
    tile = SCALARS * THREADS if vec_c == vec_hw == window == 1 else tile_bytes // itemsize
    if _channels_innermost(layout):
        # 64 channels are whole 128-byte lines of bf16. Short maps take more channels, to fill the tile.
        block_hw = min(tile // 64, power_of_2(span))
        block_c = min(tile // block_hw, power_of_2(layout.c))
        block_hw = min(tile // block_c, power_of_2(span))
    else:
        # Long runs along hw; of 256, 512 and 1024 the one that pads least, the longest of equals.
        block_hw = min(power_of_2(span), min((1024, 512, 256), key=lambda block: -span % block))
        block_c = min(tile // block_hw, power_of_2(layout.c))

    # At small batch smaller tiles make more programs; the contiguous axis keeps its length.
    while True:
        programs = layout.n * -(-layout.c // block_c)
        steps = -(-span // block_hw)
        if programs * min(steps, MAX_SPLITS) >= device.num_sms or block_c * block_hw <= MIN_TILE:
            break
        if _channels_innermost(layout) and block_hw > 1:
            block_hw //= 2
        elif block_c > 1:
            block_c //= 2
        else:
            break

    # Cut the spatial dims only when images and channels alone leave the SMs idle.
    splits = 1
    while programs * splits < PROGRAMS_PER_SM * device.num_sms and splits * 2 <= min(steps, MAX_SPLITS):
        splits *= 2
    # At least 8 elements, a vector of bf16, per thread.
    num_warps = max(1, min(THREADS, block_c * block_hw // 8) // device.warp_size)
    return Config(block_c, block_hw, splits, num_warps, vec_c, vec_hw, window)


def _channels_innermost(layout: Layout) -> bool:
    """Whether threads should run along channels: the first tensor is densest there, or has no other axis."""
    strides = layout.strides[0]
    return layout.hw == 1 or (layout.c > 1 and strides[1] < strides[4])
