"""Where an element lives: spatial offsets and the alignment that the compiler may rely on."""

import triton
import triton.language as tl


@triton.jit
def multiple_of(value, VEC: tl.constexpr):
    """`value`, which the launcher knows to be a multiple of VEC, in a form from which the compiler sees it.

    Triton itself only distinguishes multiples of 16; 24 channels of bf16 are three aligned vectors too.
    """
    return value // VEC * VEC


@triton.jit
def spatial_offsets(offs_hw, H, W, stride_d, stride_h, stride_w, VEC: tl.constexpr, FLAT: tl.constexpr):
    """Element offsets [1, BLOCK_HW] of flat spatial indices; FLAT when stride_w serves all spatial dims.

    VEC: what all strides are known to be a multiple of.
    """
    if FLAT:
        offs = offs_hw.to(tl.int64) * multiple_of(stride_w, VEC)
    else:
        offs = (offs_hw // (H * W)).to(tl.int64) * multiple_of(stride_d, VEC)
        offs += (offs_hw // W % H).to(tl.int64) * multiple_of(stride_h, VEC)
        offs += (offs_hw % W).to(tl.int64) * multiple_of(stride_w, VEC)
    return offs[None, :]
