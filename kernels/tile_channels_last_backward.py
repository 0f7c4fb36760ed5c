"""Backward of `tile_channels_last_kernel`: an image's tile of gradients stays in registers, x passes by."""

import triton
import triton.language as tl

from .addressing import multiple_of
from .band import band_convolution
from .bits import unpacked_bits
from .elementwise import activation_gradient, batch_norm_terms, dot_xhat, gate_gradient, gate_of, unseen
from .tile_channels_last import HALO, band, byte_offsets, piece_offsets, side_start


@triton.jit
def tile_channels_last_backward_kernel(
    dy_ptr, x_ptr, weight_ptr, bias_ptr, residual_ptr, pooled_ptr, mask_ptr,
    d_x_ptr, d_residual_ptr, d_gate_ptr, p_sum_ptr, p_dot_x_ptr,
    bn_mean_ptr, bn_var_ptr, bn_weight_ptr, bn_bias_ptr, bn_eps, gain, inv_hw,
    C, HW, stride_w,
    K: tl.constexpr, CIRCULAR: tl.constexpr, GATE: tl.constexpr, ACTIVATION: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_HW: tl.constexpr, STEPS: tl.constexpr,
    BLOCK_HALO: tl.constexpr, HALO_STEPS: tl.constexpr,
):  # fmt: skip
    """p = dy * activation'(u); d_gate[n, c] = gain * sum_hw p * xhat; t = band^T(d_gate * gate'(z)) / HW;
    d_x = (gain * g * p + t) * xhat', d_residual = p. z, g are of pooled; u is known by bits, or recomputed.
    One program owns BLOCK_C channels of one image and keeps p in registers, as STEPS pieces of BLOCK_HW
    elements; of HALO channels on each side it only forms d_gate.
    Reads dy and x once from DRAM, writes d_x (3 S; d_residual 1 S, bits S / 16, a residual for u 1 S).
    Maps: [N, HW, C] dense, C % HALO == 0, fp16/bf16/fp32; pooled, d_gate, p_sum = sum_hw p and
    p_dot_x = sum_hw p * (x - bn_mean): fp32 [N, C]. K // 2 <= HALO.
    """
    C = multiple_of(C, HALO)
    blocks_c = tl.cdiv(C, BLOCK_C)
    n = (tl.program_id(0) // blocks_c).to(tl.int64)
    first = tl.program_id(0) % blocks_c * BLOCK_C
    image = n * HW * C
    row_ptr = pooled_ptr + n * C
    offs_c = first + tl.arange(0, BLOCK_C)
    mask_c = offs_c < C
    groups = first + tl.arange(0, BLOCK_C // 8) * 8

    tile = ()
    for step in tl.static_range(STEPS):
        offs, mask = piece_offsets(offs_c, mask_c, step, C, HW, BLOCK_HW)
        tile += (tl.load(dy_ptr + image + offs, mask=mask, other=0.0),)

    z = band_convolution(
        row_ptr, weight_ptr, bias_ptr, offs_c, mask_c, C, 1.0, 0, 1, stride_w,
        bn_mean_ptr, bn_var_ptr, bn_weight_ptr, bn_bias_ptr, bn_eps, 1, K, CIRCULAR, BLOCK_K,
    )  # fmt: skip
    factor = gain * gate_of(z, GATE)
    center, scale, shift = None, None, None
    if bn_mean_ptr is not None:
        center, scale, shift = batch_norm_terms(
            bn_mean_ptr, bn_var_ptr, bn_weight_ptr, bn_bias_ptr, bn_eps, offs_c, mask_c
        )

    gradients = ()
    p_sum = tl.zeros((BLOCK_HW, BLOCK_C), tl.float32)
    p_dot_x = tl.zeros((BLOCK_HW, BLOCK_C), tl.float32)
    for step in tl.static_range(STEPS):
        offs, mask = piece_offsets(offs_c, mask_c, step, C, HW, BLOCK_HW)
        p, x = piece_gradient(
            tile[step], x_ptr, residual_ptr, mask_ptr, image, offs, mask, groups, step * BLOCK_HW,
            factor, center, scale, shift, C, HW, ACTIVATION, BLOCK_HW, BLOCK_C,
        )  # fmt: skip
        if d_residual_ptr is not None:
            tl.store(d_residual_ptr + image + offs, p.to(d_residual_ptr.dtype.element_ty), mask=mask)
        gradients += (p.to(dy_ptr.dtype.element_ty),)
        p = p.to(tl.float32)
        p_sum += p
        p_dot_x += p * x
    p_sum, p_dot_x = tl.sum(p_sum, 0), tl.sum(p_dot_x, 0)
    d_gate = gain * dot_xhat(p_sum, p_dot_x, scale, shift)
    tl.store(d_gate_ptr + n * C + offs_c, d_gate, mask=mask_c)
    if p_sum_ptr is not None:
        tl.store(p_sum_ptr + n * C + offs_c, p_sum, mask=mask_c)
        tl.store(p_dot_x_ptr + n * C + offs_c, p_dot_x, mask=mask_c)

    # The band transposed is the band reversed.
    dz = gate_gradient(d_gate, z, GATE)
    if K == 1:
        t = dz * tl.load(weight_ptr).to(tl.float32)
    else:
        own = tl.minimum(C - first, BLOCK_C)
        halo = halo_dz(
            dy_ptr, x_ptr, weight_ptr, bias_ptr, residual_ptr, row_ptr, mask_ptr,
            bn_mean_ptr, bn_var_ptr, bn_weight_ptr, bn_bias_ptr, bn_eps, gain,
            image, first, own, C, HW, stride_w,
            K, CIRCULAR, GATE, ACTIVATION, BLOCK_K, BLOCK_HALO, HALO_STEPS,
        )  # fmt: skip
        last = weight_ptr + (K - 1) * stride_w
        t = band(dz, halo, last, -stride_w, first, own, C, K, CIRCULAR, BLOCK_K, BLOCK_C)
    t *= inv_hw
    if scale is not None:
        factor *= scale
        t *= scale
    for step in tl.static_range(STEPS):
        offs, mask = piece_offsets(offs_c, mask_c, step, C, HW, BLOCK_HW)
        d_x = unseen(gradients[step], HW).to(tl.float32) * factor[None, :] + t[None, :]
        tl.store(d_x_ptr + image + offs, d_x.to(d_x_ptr.dtype.element_ty), mask=mask)


@triton.jit
def piece_gradient(
    dy, x_ptr, residual_ptr, mask_ptr, image, offs, mask, groups, start, factor, center, scale, shift, C, HW,
    ACTIVATION: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Load p and x less batch norm's mean of a piece [hw from start, channels]; groups as for `byte_offsets`.

    p is in dy's dtype where that is exact, else fp32, as is x.
    """
    x = tl.load(x_ptr + image + offs, mask=mask, other=0.0).to(tl.float32)
    if center is not None:
        x -= center[None, :]
    p = dy
    if mask_ptr is not None:
        offs_bytes, mask_bytes = byte_offsets(groups, start, C, HW, ROWS)
        packed = tl.load(mask_ptr + image // 8 + offs_bytes, mask=mask_bytes, other=0)
        p = tl.where(unpacked_bits(packed), p, 0.0)
    elif ACTIVATION != "identity":
        u = x
        if scale is not None:
            u = u * scale[None, :] + shift[None, :]
        u *= factor[None, :]
        if residual_ptr is not None:
            u += tl.load(residual_ptr + image + offs, mask=mask, other=0.0).to(tl.float32)
        p = activation_gradient(dy, u, ACTIVATION)
    return p, x


@triton.jit
def halo_dz(
    dy_ptr, x_ptr, weight_ptr, bias_ptr, residual_ptr, row_ptr, mask_ptr,
    bn_mean_ptr, bn_var_ptr, bn_weight_ptr, bn_bias_ptr, bn_eps, gain, image, first, own, C, HW, stride_w,
    K: tl.constexpr, CIRCULAR: tl.constexpr, GATE: tl.constexpr, ACTIVATION: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_HALO: tl.constexpr, HALO_STEPS: tl.constexpr,
):  # fmt: skip
    """d_gate * gate'(z) [2 * HALO] of the HALO channels before `first` and of those from first + own on."""
    groups = side_start(tl.arange(0, 2), first, own, C, CIRCULAR)
    lane = tl.arange(0, 2 * HALO)
    start = side_start(lane // HALO, first, own, C, CIRCULAR)
    offs_c = start + lane % HALO
    mask_c = (start >= 0) & (start < C)
    z = band_convolution(
        row_ptr, weight_ptr, bias_ptr, offs_c, mask_c, C, 1.0, 0, 1, stride_w,
        bn_mean_ptr, bn_var_ptr, bn_weight_ptr, bn_bias_ptr, bn_eps, 1, K, CIRCULAR, BLOCK_K,
    )  # fmt: skip
    factor = gain * gate_of(z, GATE)
    center, scale, shift = None, None, None
    if bn_mean_ptr is not None:
        center, scale, shift = batch_norm_terms(
            bn_mean_ptr, bn_var_ptr, bn_weight_ptr, bn_bias_ptr, bn_eps, offs_c, mask_c
        )
    p_sum = tl.zeros((BLOCK_HALO, 2 * HALO), tl.float32)
    p_dot_x = tl.zeros((BLOCK_HALO, 2 * HALO), tl.float32)
    for step in tl.static_range(HALO_STEPS):
        offs_hw = step * BLOCK_HALO + tl.arange(0, BLOCK_HALO)[:, None]
        mask = mask_c[None, :] & (offs_hw < HW)
        offs = offs_hw * C + offs_c[None, :]
        p, x = piece_gradient(
            tl.load(dy_ptr + image + offs, mask=mask, other=0.0), x_ptr, residual_ptr, mask_ptr, image, offs,
            mask, groups, step * BLOCK_HALO, factor, center, scale, shift,
            C, HW, ACTIVATION, BLOCK_HALO, 2 * HALO,
        )  # fmt: skip
        p = p.to(tl.float32)
        p_sum += p
        p_dot_x += p * x
    return gate_gradient(gain * dot_xhat(tl.sum(p_sum, 0), tl.sum(p_dot_x, 0), scale, shift), z, GATE)
