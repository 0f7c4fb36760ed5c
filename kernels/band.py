"""The convolution over channels: one shared band of K taps, fp32, by shifted loads."""

import triton
import triton.language as tl

from .elementwise import batch_norm_terms


@triton.jit
def neighbour(offs_c, shift, mask, C, CIRCULAR: tl.constexpr):
    """Channel index `offs_c + shift` and whether it exists; |shift| <= C."""
    src = offs_c + shift
    if CIRCULAR:
        src = (src + C) % C
    return src, mask & (src >= 0) & (src < C)


@triton.jit
def pooled_mean(
    row_ptr, src, valid, HW, stride_ps, stride_pc,
    bn_mean_ptr, bn_var_ptr, bn_weight_ptr, bn_bias_ptr, bn_eps,
    SPLITS: tl.constexpr,
):  # fmt: skip
    """Mean of channels `src`: the SPLITS partial sums at row_ptr, added in a fixed order; then batch norm."""
    ptrs = row_ptr + src.to(tl.int64) * stride_pc
    if SPLITS == 1:
        y = tl.load(ptrs, mask=valid, other=0.0).to(tl.float32)
    else:
        offs_s = tl.arange(0, SPLITS).to(tl.int64) * stride_ps
        y = tl.sum(tl.load(ptrs[:, None] + offs_s[None, :], mask=valid[:, None], other=0.0).to(tl.float32), 1)
    y = tl.div_rn(y, tl.zeros_like(y) + HW)
    if bn_mean_ptr is not None:
        center, scale, shift = batch_norm_terms(
            bn_mean_ptr, bn_var_ptr, bn_weight_ptr, bn_bias_ptr, bn_eps, src, valid
        )
        y = (y - center) * scale + shift
    return y


@triton.jit
def band_convolution(
    row_ptr, weight_ptr, bias_ptr, offs_c, mask, C, HW, stride_ps, stride_pc, stride_w,
    bn_mean_ptr, bn_var_ptr, bn_weight_ptr, bn_bias_ptr, bn_eps,
    SPLITS: tl.constexpr, K: tl.constexpr, CIRCULAR: tl.constexpr,
):  # fmt: skip
    """z[c] = bias + sum_j w[j] * y[c + j - K // 2].

    Absent neighbours are selected away, never multiplied by zero: 0 * NaN would poison channels out of reach.
    """
    z = tl.zeros(offs_c.shape, tl.float32)
    for j in tl.static_range(K):
        src, valid = neighbour(offs_c, j - K // 2, mask, C, CIRCULAR)
        y = pooled_mean(
            row_ptr, src, valid, HW, stride_ps, stride_pc,
            bn_mean_ptr, bn_var_ptr, bn_weight_ptr, bn_bias_ptr, bn_eps, SPLITS,
        )  # fmt: skip
        z += tl.where(valid, tl.load(weight_ptr + j * stride_w).to(tl.float32) * y, 0.0)
    if bias_ptr is not None:
        z += tl.load(bias_ptr).to(tl.float32)
    return z
