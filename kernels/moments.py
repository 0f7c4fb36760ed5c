"""First pass of the backward over the maps: partial sums over the spatial dims, per image and channel."""

import triton
import triton.language as tl

from .addressing import multiple_of
from .bits import unpacked_bits
from .elementwise import activation_gradient


@triton.jit
def moments_kernel(
    dy_ptr, x_ptr, residual_ptr, mask_ptr, center_ptr, factor_ptr, offset_ptr, d_residual_ptr,
    sum_ptr, dot_ptr, C, HW, stride_c, stride_hw,
    ACTIVATION: tl.constexpr, BITS_ALONG: tl.constexpr, SPLITS: tl.constexpr, BLOCK_C: tl.constexpr,
    BLOCK_HW: tl.constexpr, VEC_C: tl.constexpr, VEC_HW: tl.constexpr,
):  # fmt: skip
    """sum[n, s, c] = sum of p over the s-th range of hw, dot[n, s, c] of p * (x - center[c]); d_residual = p.
    p = dy * activation'(u), by mask or u = (x - center[c]) * factor[n, c] + offset[n, c] + residual.
    One program owns BLOCK_C channels of one image and one of SPLITS ranges of hw.
    Reads dy and x (2 S; residual S or mask S / 16), writes d_residual (S); each [N, C, HW] with the strides
    stride_c and stride_hw, of which one is 1. center: [C], factor, offset: [N, C] fp32; all may be None.
    BITS_ALONG: "hw" or "c", the axis of stride 1, if its extent and block are whole bytes of mask; else "".
    """
    pid = tl.program_id(0)
    blocks_c = tl.cdiv(C, BLOCK_C)
    n = (pid // (blocks_c * SPLITS)).to(tl.int64)
    split = pid // blocks_c % SPLITS
    first_c = pid % blocks_c * BLOCK_C
    offs_c = first_c + tl.arange(0, BLOCK_C)
    mask_c = offs_c < multiple_of(C, VEC_C)
    image = multiple_of(n * C * HW, VEC_C * VEC_HW)
    row = offs_c.to(tl.int64)[:, None] * multiple_of(stride_c, VEC_HW)
    if center_ptr is not None:
        center = tl.load(center_ptr + offs_c, mask=mask_c, other=0.0).to(tl.float32)[:, None]
    if factor_ptr is not None:
        factor = tl.load(factor_ptr + n * C + offs_c, mask=mask_c, other=0.0)[:, None]
    if offset_ptr is not None:
        offset = tl.load(offset_ptr + n * C + offs_c, mask=mask_c, other=0.0)[:, None]

    chunk = tl.cdiv(tl.cdiv(HW, SPLITS), BLOCK_HW) * BLOCK_HW
    begin = split * chunk
    p_sum = tl.zeros((BLOCK_C, BLOCK_HW), tl.float32)
    p_dot_x = tl.zeros((BLOCK_C, BLOCK_HW), tl.float32)
    for start in range(begin, tl.minimum(begin + chunk, HW), BLOCK_HW):
        offs_hw = start + tl.arange(0, BLOCK_HW)
        mask = mask_c[:, None] & (offs_hw < multiple_of(HW, VEC_HW))[None, :]
        element = row + offs_hw.to(tl.int64)[None, :] * multiple_of(stride_hw, VEC_C)
        offs = image + element
        x = tl.load(x_ptr + offs, mask=mask, other=0.0).to(tl.float32)
        if center_ptr is not None:
            x -= center
        p = tl.load(dy_ptr + offs, mask=mask, other=0.0).to(tl.float32)
        if mask_ptr is not None:
            octet_ptr = mask_ptr + n * C * HW // 8
            if BITS_ALONG == "hw":
                octets_hw = start // 8 + tl.arange(0, BLOCK_HW // 8)
                octets = offs_c.to(tl.int64)[:, None] * (HW // 8) + octets_hw[None, :]
                inside = mask_c[:, None] & (octets_hw < HW // 8)[None, :]
                bits = unpacked_bits(tl.load(octet_ptr + octets, mask=inside, other=0))
            elif BITS_ALONG == "c":
                octets_c = first_c // 8 + tl.arange(0, BLOCK_C // 8)
                octets = offs_hw.to(tl.int64)[:, None] * (C // 8) + octets_c[None, :]
                inside = (offs_hw < HW)[:, None] & (octets_c < C // 8)[None, :]
                bits = tl.trans(unpacked_bits(tl.load(octet_ptr + octets, mask=inside, other=0)))
            else:
                tl.static_assert(BITS_ALONG == "", "unknown order of bits")
                octets = tl.load(octet_ptr + (element >> 3), mask=mask, other=0).to(tl.int32)
                bits = (octets >> (element & 7).to(tl.int32)) & 1 != 0
            p = tl.where(bits, p, 0.0)
        elif ACTIVATION != "identity":
            u = x * factor
            if offset_ptr is not None:
                u += offset
            if residual_ptr is not None:
                u += tl.load(residual_ptr + offs, mask=mask, other=0.0).to(tl.float32)
            p = tl.where(mask, activation_gradient(p, u, ACTIVATION), 0.0)
        if d_residual_ptr is not None:
            tl.store(d_residual_ptr + offs, p.to(d_residual_ptr.dtype.element_ty), mask=mask)
        p_sum += p
        p_dot_x += tl.where(mask, p * x, 0.0)

    out = (n * SPLITS + split) * C + offs_c
    tl.store(sum_ptr + out, tl.sum(p_sum, 1), mask=mask_c)
    tl.store(dot_ptr + out, tl.sum(p_dot_x, 1), mask=mask_c)
