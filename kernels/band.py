"""The convolution over channels: one shared band of K taps, fp32.

A program works on a tile [channels, taps], every neighbour loaded in place: the taps run in parallel, and the
final sum over taps leaves one value per channel however the caller spreads its own tile over threads.
"""

import triton
import triton.language as tl

from .elementwise import batch_norm_terms


@triton.jit
def neighbours(offs_c, mask, C, K: tl.constexpr, CIRCULAR: tl.constexpr, BLOCK_K: tl.constexpr):
    """Channels offs_c[:, None] + j - K // 2 of taps j, and whether they exist. Circular: K // 2 <= C."""
    offs_k = tl.arange(0, BLOCK_K)[None, :]
    src = offs_c[:, None] + (offs_k - K // 2)
    if CIRCULAR:
        src = (src + C) % C
    return src, mask[:, None] & (offs_k < K) & (src >= 0) & (src < C)


@triton.jit
def taps(weight_ptr, stride_w, K: tl.constexpr, BLOCK_K: tl.constexpr):
    """The band [1, BLOCK_K]."""
    offs_k = tl.arange(0, BLOCK_K)
    return tl.load(weight_ptr + offs_k * stride_w, mask=offs_k < K, other=0.0).to(tl.float32)[None, :]


@triton.jit
def pooled_mean(
    row_ptr, src, valid, inv_hw, stride_ps, stride_pc,
    bn_mean_ptr, bn_var_ptr, bn_weight_ptr, bn_bias_ptr, bn_eps,
    SPLITS: tl.constexpr,
):  # fmt: skip
    """Mean of channels `src`: the SPLITS partial sums at row_ptr, added in order, / HW; then batch norm."""
    ptrs = row_ptr + src.to(tl.int64) * stride_pc
    y = tl.load(ptrs, mask=valid, other=0.0).to(tl.float32)
    for _ in tl.static_range(SPLITS - 1):
        ptrs += stride_ps
        y += tl.load(ptrs, mask=valid, other=0.0).to(tl.float32)
    y *= inv_hw
    if bn_mean_ptr is not None:
        center, scale, shift = batch_norm_terms(
            bn_mean_ptr, bn_var_ptr, bn_weight_ptr, bn_bias_ptr, bn_eps, src, valid
        )
        y = (y - center) * scale + shift
    return y


@triton.jit
def band_sum(w, y, valid):
    """sum_j w[j] * y[c, j] over the neighbours that exist.

    The others are selected away, never multiplied by zero: 0 * NaN would poison channels out of reach.
    """
    return tl.sum(tl.where(valid, w * y, 0.0), 1)


@triton.jit
def band_convolution(
    row_ptr, weight_ptr, bias_ptr, offs_c, mask, C, inv_hw, stride_ps, stride_pc, stride_w,
    bn_mean_ptr, bn_var_ptr, bn_weight_ptr, bn_bias_ptr, bn_eps,
    SPLITS: tl.constexpr, K: tl.constexpr, CIRCULAR: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """z[c] = bias + sum_j w[j] * y[c + j - K // 2] for channels offs_c of row_ptr: one row, or [:, None]."""
    src, valid = neighbours(offs_c, mask, C, K, CIRCULAR, BLOCK_K)
    y = pooled_mean(
        row_ptr, src, valid, inv_hw, stride_ps, stride_pc,
        bn_mean_ptr, bn_var_ptr, bn_weight_ptr, bn_bias_ptr, bn_eps, SPLITS,
    )  # fmt: skip
    z = band_sum(taps(weight_ptr, stride_w, K, BLOCK_K), y, valid)
    if bias_ptr is not None:
        z += tl.load(bias_ptr).to(tl.float32)
    return z
