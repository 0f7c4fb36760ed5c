"""Gates of the result of a 1x1 convolution, from its pooled input."""

import triton
import triton.language as tl

from .elementwise import batch_norm_terms, gate_of


@triton.jit
def projection_kernel(
    pooled_ptr, projection_ptr, projection_bias_ptr, weight_ptr, bias_ptr,
    bn_mean_ptr, bn_var_ptr, bn_weight_ptr, bn_bias_ptr, bn_eps, out_ptr, shift_ptr,
    N, C, REDUCED, stride_pn, stride_pi, stride_jc, stride_ji, stride_w,
    K: tl.constexpr, CIRCULAR: tl.constexpr, GATE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_I: tl.constexpr,
):  # fmt: skip
    """out[n, c] = gate(bias + sum_j w[j] * y[n, c + j - K // 2]), y = scale * projection @ pooled + shift.
    With shift_ptr out[n] is the gate times scale, and what is stored there the gate times shift, [N, C] too.
    One program owns BLOCK_C - K + 1 channels of BLOCK_N images; it projects K // 2 on each side beside them.
    Reads the projection N / BLOCK_N times, from L2, and writes N * C. No product mixes images.
    pooled: [N, REDUCED], projection: [C, REDUCED], w: [K], any strides; out: [N, C] contiguous; fp32 sums.
    """
    OWN: tl.constexpr = BLOCK_C - K + 1
    blocks_c = tl.cdiv(C, OWN)
    first = tl.program_id(0) % blocks_c * OWN
    offs_n = tl.program_id(0) // blocks_c * BLOCK_N + tl.arange(0, BLOCK_N)
    offs = tl.arange(0, BLOCK_C)
    offs_c = first - K // 2 + offs
    if CIRCULAR:
        offs_c = (offs_c + C) % C
    mask_n, mask_c = offs_n < N, (offs_c >= 0) & (offs_c < C)

    y = tl.zeros((BLOCK_C, BLOCK_N), tl.float32)
    rows = projection_ptr + offs_c.to(tl.int64)[:, None] * stride_jc
    columns = pooled_ptr + offs_n.to(tl.int64)[None, :] * stride_pn
    for start in range(0, REDUCED, BLOCK_I):
        offs_i = start + tl.arange(0, BLOCK_I)
        mask_i = offs_i < REDUCED
        matrix = tl.load(
            rows + offs_i.to(tl.int64)[None, :] * stride_ji, mask=mask_c[:, None] & mask_i[None, :], other=0.0
        )
        pooled = tl.load(
            columns + offs_i.to(tl.int64)[:, None] * stride_pi,
            mask=mask_i[:, None] & mask_n[None, :],
            other=0.0,
        )
        y = tl.dot(matrix.to(tl.float32), pooled.to(tl.float32), y, input_precision=PRECISION)
    if projection_bias_ptr is not None:
        projection_bias = tl.load(projection_bias_ptr + offs_c, mask=mask_c, other=0.0).to(tl.float32)
        y += projection_bias[:, None]
    if bn_mean_ptr is not None:
        center, scale, shift = batch_norm_terms(
            bn_mean_ptr, bn_var_ptr, bn_weight_ptr, bn_bias_ptr, bn_eps, offs_c, mask_c
        )
        y = (y - center[:, None]) * scale[:, None] + shift[:, None]
    # What is beyond the ends is zero, not what batch norm makes of zero.
    y = tl.where(mask_c[:, None], y, 0.0)

    z = tl.zeros((BLOCK_C, BLOCK_N), tl.float32)
    for j in tl.static_range(K):
        near = tl.broadcast_to(tl.minimum(offs + j, BLOCK_C - 1)[:, None], (BLOCK_C, BLOCK_N))
        z += tl.load(weight_ptr + j * stride_w).to(tl.float32) * tl.gather(y, near, 0)
    if bias_ptr is not None:
        z += tl.load(bias_ptr).to(tl.float32)
    owned = first + offs
    mask_own = (offs < OWN) & (owned < C)
    mask = mask_own[:, None] & mask_n[None, :]
    places = offs_n.to(tl.int64)[None, :] * C + owned[:, None]
    out = gate_of(z, GATE)
    if shift_ptr is not None:
        # The terms of the channels themselves, which their halo stands before.
        constant = tl.zeros((BLOCK_C,), tl.float32)
        if projection_bias_ptr is not None:
            constant += tl.load(projection_bias_ptr + owned, mask=mask_own, other=0.0).to(tl.float32)
        if bn_mean_ptr is not None:
            center, scale, shift = batch_norm_terms(
                bn_mean_ptr, bn_var_ptr, bn_weight_ptr, bn_bias_ptr, bn_eps, owned, mask_own
            )
            constant = (constant - center) * scale + shift
        tl.store(shift_ptr + places, (out * constant[:, None]).to(shift_ptr.dtype.element_ty), mask=mask)
        if bn_mean_ptr is not None:
            out *= scale[:, None]
    tl.store(out_ptr + places, out.to(out_ptr.dtype.element_ty), mask=mask)
