"""Backward of pooled values -> gates, in two launches without atomics: the same bits every run."""

import triton
import triton.language as tl

from .band import band_convolution, band_sum, neighbours, taps
from .elementwise import gate_gradient


@triton.jit
def gate_backward_kernel(
    grad_ptr, pooled_ptr, weight_ptr, bias_ptr, dz_ptr, partial_ptr,
    total, C, stride_gn, stride_gc, stride_pn, stride_pc, stride_w,
    K: tl.constexpr, CIRCULAR: tl.constexpr, GATE: tl.constexpr, BLOCK: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """dz[n, c] = grad[n, c] * gate'(z[n, c]), z recomputed from pooled.
    partial[p, j] = sum of dz * pooled[c + j - K // 2] over program p's entries; partial[p, K] = sum of dz.
    One program owns BLOCK of the `total` = N * C entries, in order.
    Reads grad and pooled (2K times, from cache), writes dz: [N, C] fp32. grad, pooled: [N, C] any strides.
    """
    pid = tl.program_id(0)
    offs = pid * BLOCK + tl.arange(0, BLOCK)
    mask = offs < total
    n = (offs // C).to(tl.int64)
    offs_c = offs % C
    row_ptr = (pooled_ptr + n * stride_pn)[:, None]
    z = band_convolution(
        row_ptr, weight_ptr, bias_ptr, offs_c, mask, C, 1.0, 0, stride_pc, stride_w,
        None, None, None, None, 0.0, 1, K, CIRCULAR, BLOCK_K,
    )  # fmt: skip
    grad = tl.load(grad_ptr + n * stride_gn + offs_c.to(tl.int64) * stride_gc, mask=mask, other=0.0)
    dz = tl.where(mask, gate_gradient(grad.to(tl.float32), z, GATE), 0.0)
    tl.store(dz_ptr + offs, dz, mask=mask)

    src, valid = neighbours(offs_c, mask, C, K, CIRCULAR, BLOCK_K)
    y = tl.load(row_ptr + src.to(tl.int64) * stride_pc, mask=valid, other=0.0).to(tl.float32)
    d_weight = tl.sum(tl.where(valid, dz[:, None] * y, 0.0), 0)
    offs_k = tl.arange(0, BLOCK_K)
    partial_row = partial_ptr + pid.to(tl.int64) * (K + 1)
    tl.store(partial_row + offs_k, d_weight, mask=offs_k < K)
    tl.store(partial_row + K, tl.sum(dz, 0))


@triton.jit
def gate_backward_finish_kernel(
    dz_ptr, partial_ptr, weight_ptr, d_pooled_ptr, d_weight_ptr, d_bias_ptr,
    total, C, stride_dn, stride_dc, stride_w, stride_dw,
    K: tl.constexpr, CIRCULAR: tl.constexpr, BLOCK: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """d_pooled[n, c] = sum_j w[j] * dz[n, c - j + K // 2]; d_weight, d_bias: column sums of partial.
    The first cdiv(total, BLOCK) programs own BLOCK entries of d_pooled each; the last K + 1 own one column of
    partial each and add it in a fixed order. dz, partial: fp32; d_pooled: [N, C] any strides.
    """
    pid = tl.program_id(0)
    rows = tl.cdiv(total, BLOCK)
    if pid < rows:
        offs = pid * BLOCK + tl.arange(0, BLOCK)
        mask = offs < total
        n = (offs // C).to(tl.int64)
        offs_c = offs % C
        # The band reversed: its tap j is w[K - 1 - j], and sits at channel c + j - K // 2.
        src, valid = neighbours(offs_c, mask, C, K, CIRCULAR, BLOCK_K)
        w = taps(weight_ptr + (K - 1) * stride_w, -stride_w, K, BLOCK_K)
        d_pooled = band_sum(w, tl.load(dz_ptr + (n * C)[:, None] + src, mask=valid, other=0.0), valid)
        ptrs = d_pooled_ptr + n * stride_dn + offs_c.to(tl.int64) * stride_dc
        tl.store(ptrs, d_pooled.to(d_pooled_ptr.dtype.element_ty), mask=mask)
    else:
        column = pid - rows
        partials = tl.zeros((BLOCK,), tl.float32)
        for start in range(0, rows, BLOCK):
            offs_p = start + tl.arange(0, BLOCK)
            ptrs = partial_ptr + offs_p.to(tl.int64) * (K + 1) + column
            partials += tl.load(ptrs, mask=offs_p < rows, other=0.0)
        value = tl.sum(partials, 0)
        if column < K:
            tl.store(d_weight_ptr + column * stride_dw, value.to(d_weight_ptr.dtype.element_ty))
        else:
            tl.store(d_bias_ptr, value.to(d_bias_ptr.dtype.element_ty))
