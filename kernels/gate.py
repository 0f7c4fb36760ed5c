"""Gates from pooled values."""

import triton
import triton.language as tl

from .band import band_convolution
from .elementwise import gate_of


@triton.jit
def gate_kernel(
    pooled_ptr, weight_ptr, bias_ptr, bn_mean_ptr, bn_var_ptr, bn_weight_ptr, bn_bias_ptr, bn_eps, out_ptr,
    total, C, inv_hw, stride_pn, stride_ps, stride_pc, stride_w,
    SPLITS: tl.constexpr, K: tl.constexpr, CIRCULAR: tl.constexpr, GATE: tl.constexpr,
    BLOCK: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """out[n, c] = gate(bias + sum_j w[j] * y[n, c + j - K // 2]), y = batch_norm(sum_s pooled[n, s] / HW).
    One program owns BLOCK of the `total` = N * C entries, in order.
    Reads N * SPLITS * C pooled values (K times, from cache), writes N * C.
    pooled: [N, SPLITS, C] any strides, w: [K]; out: [N, C] contiguous; fp16/bf16/fp32, fp32 inside.
    """
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offs < total
    z = band_convolution(
        (pooled_ptr + (offs // C).to(tl.int64) * stride_pn)[:, None], weight_ptr, bias_ptr, offs % C, mask,
        C, inv_hw, stride_ps, stride_pc, stride_w,
        bn_mean_ptr, bn_var_ptr, bn_weight_ptr, bn_bias_ptr, bn_eps, SPLITS, K, CIRCULAR, BLOCK_K,
    )  # fmt: skip
    tl.store(out_ptr + offs, gate_of(z, GATE).to(out_ptr.dtype.element_ty), mask=mask)
