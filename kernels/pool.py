"""First pass over the map: partial sums over the spatial dims."""

import triton
import triton.language as tl

from .addressing import multiple_of, spatial_offsets
from .elementwise import activate, batch_norm_terms


@triton.jit
def pool_kernel(
    x_ptr, partial_ptr, bn_mean_ptr, bn_var_ptr, bn_weight_ptr, bn_bias_ptr, bn_eps,
    C, HW, H, W, stride_xn, stride_xc, stride_xd, stride_xh, stride_xw,
    PRE_ACTIVATION: tl.constexpr, SPLITS: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_HW: tl.constexpr,
    VEC_C: tl.constexpr, VEC_HW: tl.constexpr, WINDOW: tl.constexpr, FLAT: tl.constexpr,
):  # fmt: skip
    """partial[n, s, c] = sum over the s-th range of hw of pre_activation(batch_norm(x[n, c, hw])).
    One program owns BLOCK_C channels of one image and one of SPLITS ranges of hw.
    Reads x once (S bytes), writes N * SPLITS * C fp32. x: [N, C, HW] fp16/bf16/fp32, any strides.
    VEC_C (VEC_HW): along the axis of stride 1, its extent and the other strides are multiples of this.
    WINDOW > 1: rows of a contiguous x start anywhere. Each is read in vectors of WINDOW from the aligned one
    that holds its first element, and the lanes of other rows are dropped from the sum.
    """
    pid = tl.program_id(0)
    blocks_c = tl.cdiv(C, BLOCK_C)
    n = (pid // (blocks_c * SPLITS)).to(tl.int64)
    split = pid // blocks_c % SPLITS
    offs_c = pid % blocks_c * BLOCK_C + tl.arange(0, BLOCK_C)
    mask_c = offs_c < multiple_of(C, VEC_C)
    first = multiple_of(n * stride_xn, VEC_C * VEC_HW) + offs_c.to(tl.int64) * multiple_of(stride_xc, VEC_HW)
    row = multiple_of(first, WINDOW)
    lead = (first - row).to(tl.int32)[:, None]
    if bn_mean_ptr is not None:
        center, scale, shift = batch_norm_terms(
            bn_mean_ptr, bn_var_ptr, bn_weight_ptr, bn_bias_ptr, bn_eps, offs_c, mask_c
        )

    span = HW + WINDOW - 1
    chunk = tl.cdiv(tl.cdiv(span, SPLITS), BLOCK_HW) * BLOCK_HW
    begin = split * chunk
    total = tl.zeros((BLOCK_C, BLOCK_HW), tl.float32)
    for start in range(begin, tl.minimum(begin + chunk, span), BLOCK_HW):
        offs_hw = start + tl.arange(0, BLOCK_HW)
        if WINDOW > 1:
            lane = offs_hw[None, :]
            loaded = mask_c[:, None] & (multiple_of(lane, WINDOW) < lead + HW)
            used = mask_c[:, None] & (lane >= lead) & (lane < lead + HW)
        else:
            loaded = mask_c[:, None] & (offs_hw < multiple_of(HW, VEC_HW))[None, :]
            used = loaded
        offs = spatial_offsets(offs_hw, H, W, stride_xd, stride_xh, stride_xw, VEC_C, FLAT)
        v = tl.load(x_ptr + row[:, None] + offs, mask=loaded, other=0.0).to(tl.float32)
        if bn_mean_ptr is not None:
            v = (v - center[:, None]) * scale[:, None] + shift[:, None]
        total += tl.where(used, activate(v, PRE_ACTIVATION), 0.0)

    out_ptrs = partial_ptr + (n * SPLITS + split) * C + offs_c
    tl.store(out_ptrs, tl.sum(total, 1), mask=mask_c)
