"""From shape, layout and device to a Config, with the reason beside each rule."""

from __future__ import annotations

from .config import Config
from .layout import Layout

VECTOR_BYTES = 16  # the widest load or store of a thread
TILE = 4096  # elements in flight per program: 4 vectors of bf16 or 8 of fp32 in each of 128 threads
MIN_TILE = 1024  # below this the loop and the final reduction cost more than the loads
MAX_SPLITS = 32  # every gate adds this many partial sums
PROGRAMS_PER_SM = 8  # resident programs that hide the latency of memory: 64 KB of bf16 in flight per SM


def pool_config(layout: Layout, itemsize: int, num_sms: int) -> Config:
    """Config of the pool kernel for one tensor."""
    vector = VECTOR_BYTES // itemsize
    vec_hw = layout.vector(2, vector)
    # Rows that start off a vector boundary would be read element by element. Aligned windows read whole vectors
    # instead; the last one ends inside the tensor only if the tensor is a whole number of vectors. Rows shorter
    # than a vector gain nothing.
    windowed = (
        vec_hw < vector <= layout.hw and layout.contiguous and layout.n * layout.c * layout.hw % vector == 0
    )
    return _tile(layout, vector, num_sms, window=vector if windowed else 1)


def rescale_config(layout: Layout, itemsize: int, num_sms: int) -> Config:
    """Config of the rescale kernel; `layout` covers x, out and the residual, `itemsize` is the largest of theirs."""
    return _tile(layout, VECTOR_BYTES // itemsize, num_sms, window=1)


def gate_block(splits: int) -> int:
    """Entries of [N, C] per program of the gate kernel.

    One per thread of 4 warps; fewer when each adds many partial sums, which only happens when N * C is small.
    """
    return max(32, min(128, 1024 // splits))


def backward_block(total: int) -> int:
    """Entries of [N, C] per program of the backward kernels.

    Small, to spread over the SMs; larger for large inputs, since one program per tap adds all partial sums.
    """
    return 256 if total <= 1 << 20 else 1024


def _tile(layout: Layout, vector: int, num_sms: int, window: int) -> Config:
    vec_c, vec_hw = layout.vector(1, vector), layout.vector(2, vector)
    span = layout.hw + window - 1
    if _channels_innermost(layout):
        # 64 channels are whole 128-byte lines of bf16. Short maps take more channels, to fill the tile.
        block_hw = min(TILE // 64, _power_of_2(span))
        block_c = min(TILE // block_hw, _power_of_2(layout.c))
        block_hw = min(TILE // block_c, _power_of_2(span))
    else:
        # Long runs along hw; of 256, 512 and 1024 the one that pads least, the longest of equals.
        block_hw = min(_power_of_2(span), min((1024, 512, 256), key=lambda block: -span % block))
        block_c = min(TILE // block_hw, _power_of_2(layout.c))

    # At small batch smaller tiles make more programs; the contiguous axis keeps its length.
    while True:
        programs = layout.n * -(-layout.c // block_c)
        steps = -(-span // block_hw)
        if programs * min(steps, MAX_SPLITS) >= num_sms or block_c * block_hw <= MIN_TILE:
            break
        if _channels_innermost(layout) and block_hw > 1:
            block_hw //= 2
        elif block_c > 1:
            block_c //= 2
        else:
            break

    # Cut the spatial dims only when images and channels alone leave the SMs idle.
    splits = 1
    while programs * splits < PROGRAMS_PER_SM * num_sms and splits * 2 <= min(steps, MAX_SPLITS):
        splits *= 2
    # 8 elements (a vector of bf16) per thread at least, and 4 warps at most: more programs beat wider ones.
    num_warps = max(1, min(4, block_c * block_hw // 256))
    return Config(block_c, block_hw, splits, num_warps, vec_c, vec_hw, window)


def _channels_innermost(layout: Layout) -> bool:
    """Whether threads should run along channels: the first tensor is densest there, or has one element per channel."""
    strides = layout.strides[0]
    return layout.hw == 1 or (layout.c > 1 and strides[1] < strides[4])


def _power_of_2(size: int) -> int:
    """Smallest power of two that is at least `size`."""
    return 1 << (size - 1).bit_length()
