"""Between the passes over a map: from sums per image and channel to the coefficients of the next pass."""

import triton
import triton.language as tl

from .band import band_convolution, band_sum, neighbours, pooled_mean, taps
from .elementwise import batch_norm_terms, gate_gradient, gate_of


@triton.jit
def forward_terms_kernel(
    partial_ptr, weight_ptr, bias_ptr, bn_mean_ptr, bn_var_ptr, bn_weight_ptr, bn_bias_ptr, bn_eps, gain,
    pooled_ptr, factor_ptr, offset_ptr, total, C, inv_hw, stride_w,
    SPLITS: tl.constexpr, K: tl.constexpr, CIRCULAR: tl.constexpr, GATE: tl.constexpr,
    BLOCK: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """factor, offset [N, C] such that gain * g * xhat = (x - bn_mean) * factor + offset; pooled: means of x.
    One program owns BLOCK of the `total` = N * C entries, in order.
    Reads N * SPLITS * C partial sums of x (K times, from cache), writes up to 3 N * C.
    partial: [N, SPLITS, C], pooled, factor, offset: [N, C], all fp32 and contiguous; w: [K].
    """
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offs < total
    offs_c = offs % C
    row_ptr = partial_ptr + (offs // C).to(tl.int64) * (SPLITS * C)
    z = band_convolution(
        row_ptr[:, None], weight_ptr, bias_ptr, offs_c, mask, C, inv_hw, C, 1, stride_w,
        bn_mean_ptr, bn_var_ptr, bn_weight_ptr, bn_bias_ptr, bn_eps, SPLITS, K, CIRCULAR, BLOCK_K,
    )  # fmt: skip
    factor = gain * gate_of(z, GATE)
    if pooled_ptr is not None:
        mean = pooled_mean(row_ptr, offs_c, mask, inv_hw, C, 1, None, None, None, None, 0.0, SPLITS)
        tl.store(pooled_ptr + offs, mean, mask=mask)
    if bn_mean_ptr is not None:
        _, scale, shift = batch_norm_terms(
            bn_mean_ptr, bn_var_ptr, bn_weight_ptr, bn_bias_ptr, bn_eps, offs_c, mask
        )
        if offset_ptr is not None:
            tl.store(offset_ptr + offs, factor * shift, mask=mask)
        factor *= scale
    tl.store(factor_ptr + offs, factor, mask=mask)


@triton.jit
def backward_terms_kernel(
    sum_ptr, dot_ptr, pooled_ptr, weight_ptr, bias_ptr,
    bn_mean_ptr, bn_var_ptr, bn_weight_ptr, bn_bias_ptr, bn_eps, gain,
    p_sum_ptr, p_dot_x_ptr, d_gate_ptr, gamma_ptr, total, C, inv_hw, stride_w,
    SPLITS: tl.constexpr, K: tl.constexpr, CIRCULAR: tl.constexpr, GATE: tl.constexpr,
    BLOCK: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """p_sum, p_dot_x: the partial sums of `moments_kernel`, added in order; d_gate = gain * sum of p * xhat.
    gamma[n, c] = scale[c] / HW * sum_j w[j] * dz[n, c - j + K // 2], dz = d_gate * gate'(z).
    One program owns BLOCK of the `total` = N * C entries, in order; it forms dz of its neighbours itself.
    sum, dot: [N, SPLITS, C], the others [N, C], all fp32 and contiguous; w: [K].
    """
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offs < total
    n = (offs // C).to(tl.int64)
    offs_c = offs % C
    p_sum, p_dot_x, d_gate = gate_moments(
        sum_ptr, dot_ptr, n, offs_c, mask, C,
        bn_mean_ptr, bn_var_ptr, bn_weight_ptr, bn_bias_ptr, bn_eps, gain, SPLITS,
    )  # fmt: skip
    tl.store(d_gate_ptr + offs, d_gate, mask=mask)
    if p_sum_ptr is not None:
        tl.store(p_sum_ptr + offs, p_sum, mask=mask)
        tl.store(p_dot_x_ptr + offs, p_dot_x, mask=mask)
    if gamma_ptr is not None:
        # Neighbours as one vector: each needs a convolution of its own.
        src, valid = neighbours(offs_c, mask, C, K, CIRCULAR, BLOCK_K)
        image = tl.reshape(tl.broadcast_to(n[:, None], (BLOCK, BLOCK_K)), (BLOCK * BLOCK_K,))
        near_c = tl.reshape(src, (BLOCK * BLOCK_K,))
        near = tl.reshape(valid, (BLOCK * BLOCK_K,))
        _, _, near_d_gate = gate_moments(
            sum_ptr, dot_ptr, image, near_c, near, C,
            bn_mean_ptr, bn_var_ptr, bn_weight_ptr, bn_bias_ptr, bn_eps, gain, SPLITS,
        )  # fmt: skip
        z = band_convolution(
            (pooled_ptr + image * C)[:, None], weight_ptr, bias_ptr, near_c, near, C, 1.0, 0, 1, stride_w,
            bn_mean_ptr, bn_var_ptr, bn_weight_ptr, bn_bias_ptr, bn_eps, 1, K, CIRCULAR, BLOCK_K,
        )  # fmt: skip
        dz = tl.reshape(gate_gradient(near_d_gate, z, GATE), (BLOCK, BLOCK_K))
        # The band reversed: its tap j is w[K - 1 - j], and sits at channel c + j - K // 2.
        gamma = band_sum(taps(weight_ptr + (K - 1) * stride_w, -stride_w, K, BLOCK_K), dz, valid) * inv_hw
        if bn_mean_ptr is not None:
            _, scale, _ = batch_norm_terms(
                bn_mean_ptr, bn_var_ptr, bn_weight_ptr, bn_bias_ptr, bn_eps, offs_c, mask
            )
            gamma *= scale
        tl.store(gamma_ptr + offs, gamma, mask=mask)


@triton.jit
def gate_moments(
    sum_ptr, dot_ptr, n, offs_c, mask, C,
    bn_mean_ptr, bn_var_ptr, bn_weight_ptr, bn_bias_ptr, bn_eps, gain, SPLITS: tl.constexpr,
):  # fmt: skip
    """Moments of channels offs_c of images n: sum of p, of p * (x - bn_mean), gain * sum of p * xhat."""
    row = n * (SPLITS * C)
    p_sum = pooled_mean(sum_ptr + row, offs_c, mask, 1.0, C, 1, None, None, None, None, 0.0, SPLITS)
    p_dot_x = pooled_mean(dot_ptr + row, offs_c, mask, 1.0, C, 1, None, None, None, None, 0.0, SPLITS)
    d_gate = p_dot_x
    if bn_mean_ptr is not None:
        _, scale, shift = batch_norm_terms(
            bn_mean_ptr, bn_var_ptr, bn_weight_ptr, bn_bias_ptr, bn_eps, offs_c, mask
        )
        d_gate = p_dot_x * scale + p_sum * shift
    return p_sum, p_dot_x, gain * d_gate
