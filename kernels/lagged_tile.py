"""Tiles of the lagged kernels: where they lie, their loads, and sums over all of an image.

Tile `index` is BLOCK_C channels by BLOCK_HW spatial elements, as [BLOCK_C, BLOCK_HW]; channels come first.
Maps are dense; VEC_C > 1 where channels are contiguous, VEC_HW > 1 where spatial elements are.
"""

import triton
import triton.language as tl

from .addressing import multiple_of


@triton.jit
def tile_place(index, C, HW, BLOCK_C: tl.constexpr, BLOCK_HW: tl.constexpr):
    """Image, chunk of hw, first channel."""
    blocks_c = tl.cdiv(C, BLOCK_C)
    chunks = tl.cdiv(HW, BLOCK_HW)
    return index // (blocks_c * chunks), index // blocks_c % chunks, index % blocks_c * BLOCK_C


@triton.jit
def load_tile(
    index, x_ptr, C, HW, stride_c, stride_hw,
    BLOCK_C: tl.constexpr, BLOCK_HW: tl.constexpr, VEC_C: tl.constexpr, VEC_HW: tl.constexpr,
    EVICTION: tl.constexpr,
):  # fmt: skip
    """Image, chunk of hw, channels, spatial indices, both masks, elements."""
    n, chunk, first_c = tile_place(index, C, HW, BLOCK_C, BLOCK_HW)
    offs_c = first_c + tl.arange(0, BLOCK_C)
    offs_hw = chunk * BLOCK_HW + tl.arange(0, BLOCK_HW)
    mask_c = offs_c < multiple_of(C, VEC_C)
    mask = mask_c[:, None] & (offs_hw < multiple_of(HW, VEC_HW))[None, :]
    ptrs = x_ptr + element_offsets(n, offs_c, offs_hw, C, HW, stride_c, stride_hw, VEC_C, VEC_HW)
    v = tl.load(ptrs, mask=mask, other=0.0, eviction_policy=EVICTION)
    return n, chunk, offs_c, offs_hw, mask_c, mask, v


@triton.jit
def element_offsets(
    n, offs_c, offs_hw, C, HW, stride_c, stride_hw, VEC_C: tl.constexpr, VEC_HW: tl.constexpr
):
    """int64 [BLOCK_C, BLOCK_HW]; inside an image int32."""
    rows = offs_c[:, None] * multiple_of(stride_c, VEC_HW)
    columns = offs_hw[None, :] * multiple_of(stride_hw, VEC_C)
    return n.to(tl.int64) * multiple_of(C, VEC_C) * multiple_of(HW, VEC_HW) + (rows + columns)


@triton.jit
def tile_bytes(index, C, HW, BLOCK_C: tl.constexpr, BLOCK_HW: tl.constexpr, VEC_C: tl.constexpr):
    """Offsets of a tile's bits, int64, and their mask: eight elements of the contiguous axis to a byte.

    [BLOCK_HW, BLOCK_C // 8] where channels are contiguous, else [BLOCK_C, BLOCK_HW // 8]; C or HW % 8 == 0.
    """
    n, chunk, first_c = tile_place(index, C, HW, BLOCK_C, BLOCK_HW)
    if VEC_C > 1:
        rows = chunk * BLOCK_HW + tl.arange(0, BLOCK_HW)[:, None]
        columns = first_c // 8 + tl.arange(0, BLOCK_C // 8)[None, :]
        width, mask = C // 8, (rows < HW) & (columns < C // 8)
    else:
        rows = first_c + tl.arange(0, BLOCK_C)[:, None]
        columns = chunk * (BLOCK_HW // 8) + tl.arange(0, BLOCK_HW // 8)[None, :]
        width, mask = HW // 8, (rows < C) & (columns < HW // 8)
    return n.to(tl.int64) * (C * HW // 8) + (rows * width + columns), mask


@triton.jit
def ordered_sum(row_ptr, chunks, offs_c, mask_c, C, BLOCK_P: tl.constexpr, BLOCK_G: tl.constexpr):
    """Sums [BLOCK_G] of partial sums [chunks, C] at row_ptr, which other programs stored, in their order."""
    total = tl.zeros((BLOCK_P, BLOCK_G), tl.float32)
    for first in range(0, chunks, BLOCK_P):
        offs_p = first + tl.arange(0, BLOCK_P)[:, None]
        mask = (offs_p < chunks) & mask_c[None, :]
        ptrs = row_ptr + offs_p * C + offs_c[None, :]
        total += tl.load(ptrs, mask=mask, other=0.0, cache_modifier=".cg")
    return tl.sum(total, 0)
