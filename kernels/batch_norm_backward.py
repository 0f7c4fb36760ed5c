"""Gradients of the weight and bias of a batch norm before the site, and of its own statistics."""

import triton
import triton.language as tl

from .band import band_convolution
from .elementwise import batch_norm_terms, gate_of


@triton.jit
def batch_norm_backward_kernel(
    p_sum_ptr, p_dot_x_ptr, pooled_ptr, d_pooled_ptr, weight_ptr, bias_ptr,
    bn_mean_ptr, bn_var_ptr, bn_weight_ptr, bn_bias_ptr, bn_eps, gain, d_bn_weight_ptr, d_bn_bias_ptr,
    beta_ptr, gamma_ptr, N, C, inv_hw, inv_count, stride_w,
    K: tl.constexpr, CIRCULAR: tl.constexpr, GATE: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """d_bn_bias[c] = sum_n of gain * g * p_sum + d_pooled,
    d_bn_weight[c] = rsqrt(bn_var + bn_eps) * sum_n of gain * g * p_dot_x + d_pooled * (pooled - bn_mean).
    One program owns BLOCK_C channels of all images, BLOCK_N at a time, in a fixed order.
    Reads the four [N, C] fp32 arrays (pooled K times, from cache); d_pooled is the gradient of pooled xhat by
    way of the gates. beta, gamma: where the statistics are those of x, of 1 / inv_count elements, such that
    d_x = p * factor + (x - bn_mean) * beta[c] + gamma[n, c].
    """
    entry = tl.arange(0, BLOCK_N * BLOCK_C)
    offs_c = tl.program_id(0) * BLOCK_C + entry % BLOCK_C
    mask_c = offs_c < C
    center, rstd, _ = batch_norm_terms(bn_mean_ptr, bn_var_ptr, None, None, bn_eps, offs_c, mask_c)
    # In fp64, in which the products are exact: what images have of a gradient mostly cancels in its sum.
    d_weight = tl.zeros((BLOCK_N * BLOCK_C,), tl.float64)
    d_bias = tl.zeros((BLOCK_N * BLOCK_C,), tl.float64)
    for start in range(0, N, BLOCK_N):
        offs_n = (start + entry // BLOCK_C).to(tl.int64)
        mask = mask_c & (offs_n < N)
        row = offs_n * C
        z = band_convolution(
            (pooled_ptr + row)[:, None], weight_ptr, bias_ptr, offs_c, mask, C, 1.0, 0, 1, stride_w,
            bn_mean_ptr, bn_var_ptr, bn_weight_ptr, bn_bias_ptr, bn_eps, 1, K, CIRCULAR, BLOCK_K,
        )  # fmt: skip
        factor = (gain * gate_of(z, GATE)).to(tl.float64)
        d_pooled = tl.load(d_pooled_ptr + row + offs_c, mask=mask, other=0.0).to(tl.float64)
        p_sum = tl.load(p_sum_ptr + row + offs_c, mask=mask, other=0.0)
        p_dot_x = tl.load(p_dot_x_ptr + row + offs_c, mask=mask, other=0.0)
        pooled = tl.load(pooled_ptr + row + offs_c, mask=mask, other=0.0) - center
        d_bias += tl.where(mask, factor * p_sum + d_pooled, 0.0)
        d_weight += tl.where(mask, factor * p_dot_x + d_pooled * pooled, 0.0)
    offs_c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    mask_c = offs_c < C
    d_weight = tl.sum(tl.reshape(d_weight * rstd, (BLOCK_N, BLOCK_C)), 0).to(tl.float32)
    d_bias = tl.sum(tl.reshape(d_bias, (BLOCK_N, BLOCK_C)), 0).to(tl.float32)
    if d_bn_weight_ptr is not None:
        tl.store(d_bn_weight_ptr + offs_c, d_weight.to(d_bn_weight_ptr.dtype.element_ty), mask=mask_c)
    if d_bn_bias_ptr is not None:
        tl.store(d_bn_bias_ptr + offs_c, d_bias.to(d_bn_bias_ptr.dtype.element_ty), mask=mask_c)
    if beta_ptr is not None:
        _, rstd, _ = batch_norm_terms(bn_mean_ptr, bn_var_ptr, None, None, bn_eps, offs_c, mask_c)
        _, scale, _ = batch_norm_terms(bn_mean_ptr, bn_var_ptr, bn_weight_ptr, None, bn_eps, offs_c, mask_c)
        tl.store(beta_ptr + offs_c, -scale * rstd * d_weight * inv_count, mask=mask_c)
        for start in range(0, N, BLOCK_N):
            offs_n = (start + tl.arange(0, BLOCK_N)).to(tl.int64)
            mask = (offs_n < N)[:, None] & mask_c[None, :]
            offs = (offs_n * C)[:, None] + offs_c[None, :]
            d_pooled = tl.load(d_pooled_ptr + offs, mask=mask, other=0.0)
            gamma = scale[None, :] * (d_pooled * inv_hw - (d_bias * inv_count)[None, :])
            tl.store(gamma_ptr + offs, gamma, mask=mask)
