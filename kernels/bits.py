"""One bit per element, eight consecutive elements in a byte: the first in the lowest bit."""

import triton
import triton.language as tl


@triton.jit
def packed_bits(flags):
    """[rows, columns] of booleans -> [rows, columns / 8] bytes."""
    grouped = tl.reshape(flags.to(tl.int32), (flags.shape[0], flags.shape[1] // 8, 8))
    return tl.sum(grouped << tl.arange(0, 8)[None, None, :], 2).to(tl.uint8)


@triton.jit
def unpacked_bits(octets):
    """[rows, columns] of bytes -> [rows, 8 * columns] booleans."""
    grouped = (octets.to(tl.int32)[:, :, None] >> tl.arange(0, 8)[None, None, :]) & 1
    return tl.reshape(grouped, (octets.shape[0], octets.shape[1] * 8)) != 0
