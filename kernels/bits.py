"""One bit per element of a map: whether the gradient passes its activation."""

import triton
import triton.language as tl

from .elementwise import activation_slope


@triton.jit
def packed_bits(u, ACTIVATION: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """uint8 [ROWS, COLUMNS // 8] of fp32 u [ROWS, COLUMNS]: bit i is 1 where the gradient passes column i."""
    bits = tl.where(activation_slope(u, ACTIVATION) != 0.0, 1, 0)
    bits = tl.reshape(bits, (ROWS, COLUMNS // 8, 8)) << tl.arange(0, 8)[None, None, :]
    return tl.sum(bits, 2).to(tl.uint8)


@triton.jit
def unpacked_bits(packed, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Whether the gradient passes, [ROWS, COLUMNS], from `packed_bits`."""
    bits = (packed.to(tl.int32)[:, :, None] >> tl.arange(0, 8)[None, None, :]) & 1
    return tl.reshape(bits, (ROWS, COLUMNS)) != 0
