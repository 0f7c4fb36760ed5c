"""Backward of the map in one launch: the gradient stays in registers between its sums and its rescaling."""

import triton
import triton.language as tl

from .addressing import multiple_of
from .band import band_convolution
from .bits import unpacked_bits
from .elementwise import activation_gradient, batch_norm_terms, gate_gradient, gate_of, unseen
from .tile import banded, chunk_offsets, halo_channels, octet_offsets, spread


@triton.jit
def tile_backward_kernel(
    dy_ptr, x_ptr, weight_ptr, bias_ptr, residual_ptr, pooled_ptr, mask_ptr,
    d_x_ptr, d_residual_ptr, d_gate_ptr, p_sum_ptr, p_dot_x_ptr,
    bn_mean_ptr, bn_var_ptr, bn_weight_ptr, bn_bias_ptr, bn_eps, gain, C, stride_w,
    HW: tl.constexpr, K: tl.constexpr, CIRCULAR: tl.constexpr, GATE: tl.constexpr,
    ACTIVATION: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_HALO: tl.constexpr, BLOCK_HALO_HW: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_HW: tl.constexpr, CHUNKS: tl.constexpr, BLOCK_TAIL: tl.constexpr,
    VEC: tl.constexpr, WINDOWED: tl.constexpr, PACKED: tl.constexpr,
):  # fmt: skip
    """p = dy * activation'(u), d_residual = p, d_gate = gain * sum_hw p * xhat, dz = d_gate * gate'(z),
    d_x = (gain * g * p + conv^T(dz) / HW) * batch norm's scale; p_sum, p_dot_x: sums of p, p * (x - mean).
    One program owns BLOCK_C channels of one image, p in registers; of the halo it only forms dz.
    Reads dy and x once (2 S; the halo from L2), writes d_x (S). After a residual also writes d_residual (S)
    and reads mask (S/16 in 16 bits) or, where u is recomputed, the residual (S).
    Maps: [N, C, HW] contiguous, cut as by `tile_kernel`; pooled and all sums: [N, C] fp32.
    """
    blocks_c = tl.cdiv(C, BLOCK_C)
    n = (tl.program_id(0) // blocks_c).to(tl.int64)
    first_c = tl.program_id(0) % blocks_c * BLOCK_C
    count = tl.minimum(BLOCK_C, C - first_c)
    rows = tl.arange(0, BLOCK_C)
    offs_c = first_c + rows
    mask_c = rows < count
    image = multiple_of(n * C * HW, VEC)
    dy_ptr += image
    x_ptr += image
    pooled_ptr += n * C
    if residual_ptr is not None:
        residual_ptr += image
    if mask_ptr is not None:
        mask_ptr += image // 8

    halo_dz = None
    if K > 1:
        halo_c, mask_halo = halo_channels(first_c, count, C, K, CIRCULAR, BLOCK_HALO)
        halo_z, halo_terms = channel_terms(
            pooled_ptr, weight_ptr, bias_ptr, bn_mean_ptr, bn_var_ptr, bn_weight_ptr, bn_bias_ptr, bn_eps,
            gain, halo_c, mask_halo, C, stride_w, K, CIRCULAR, GATE, BLOCK_K,
        )  # fmt: skip
        halo_sum, halo_dot = halo_sums(
            dy_ptr, x_ptr, residual_ptr, mask_ptr, halo_c, mask_halo, halo_terms,
            HW, ACTIVATION, BLOCK_HALO, BLOCK_HALO_HW, CHUNKS * BLOCK_HW + BLOCK_TAIL, VEC, WINDOWED,
        )  # fmt: skip
        halo_d_gate = gate_dot(halo_sum, halo_dot, halo_terms, gain)
        halo_dz = gate_gradient(halo_d_gate, halo_z, GATE)

    z, terms = channel_terms(
        pooled_ptr, weight_ptr, bias_ptr, bn_mean_ptr, bn_var_ptr, bn_weight_ptr, bn_bias_ptr, bn_eps,
        gain, offs_c, mask_c, C, stride_w, K, CIRCULAR, GATE, BLOCK_K,
    )  # fmt: skip
    next_c = tl.minimum(rows + 1, BLOCK_C - 1)
    next_terms = ()
    if WINDOWED and ACTIVATION != "identity" and mask_ptr is None:
        for i in tl.static_range(len(terms)):
            next_terms += (tl.gather(terms[i], next_c, 0),)
    tile, p_sum, p_dot = row_sums(
        dy_ptr, x_ptr, residual_ptr, mask_ptr, offs_c, mask_c, terms, next_terms,
        HW, ACTIVATION, BLOCK_C, BLOCK_HW, CHUNKS, BLOCK_TAIL, VEC, WINDOWED,
    )  # fmt: skip
    d_gate = gate_dot(p_sum, p_dot, terms, gain)
    tl.store(d_gate_ptr + n * C + offs_c, d_gate, mask=mask_c)
    if p_sum_ptr is not None:
        tl.store(p_sum_ptr + n * C + offs_c, p_sum, mask=mask_c)
        tl.store(p_dot_x_ptr + n * C + offs_c, p_dot, mask=mask_c)

    # The band reversed: its tap j is w[K - 1 - j].
    dz = gate_gradient(d_gate, z, GATE)
    t = banded(
        dz, halo_dz, weight_ptr + (K - 1) * stride_w, -stride_w, first_c, count, C,
        K, CIRCULAR, BLOCK_K, BLOCK_HALO, BLOCK_C,
    ) * (1.0 / HW)  # fmt: skip
    factor = terms[0]
    if bn_mean_ptr is not None:
        factor *= terms[2]
        t *= terms[2]
    next_line = ()
    if WINDOWED:
        next_line = (tl.gather(factor, next_c, 0), tl.gather(t, next_c, 0))
    for i in tl.static_range(CHUNKS + (BLOCK_TAIL > 0)):
        offs, _, mask, element = chunk_offsets(
            offs_c, mask_c, i * BLOCK_HW, HW, BLOCK_HW if i < CHUNKS else BLOCK_TAIL,
            i * BLOCK_HW + (BLOCK_HW if i < CHUNKS else BLOCK_TAIL) > HW, VEC, WINDOWED,
        )  # fmt: skip
        p = unseen(tile[i], C) if PACKED else tile[i]
        if d_residual_ptr is not None:
            tl.store(d_residual_ptr + image + offs, p.to(d_residual_ptr.dtype.element_ty), mask=mask)
        v = p.to(tl.float32) * spread((factor, t), next_line, 0, element, HW, WINDOWED)
        v += spread((factor, t), next_line, 1, element, HW, WINDOWED)
        tl.store(d_x_ptr + image + offs, v.to(d_x_ptr.dtype.element_ty), mask=mask)


@triton.jit
def channel_terms(
    pooled_ptr, weight_ptr, bias_ptr, bn_mean_ptr, bn_var_ptr, bn_weight_ptr, bn_bias_ptr, bn_eps, gain,
    offs_c, mask_c, C, stride_w, K: tl.constexpr, CIRCULAR: tl.constexpr, GATE: tl.constexpr,
    BLOCK_K: tl.constexpr,
):  # fmt: skip
    """z of channels offs_c, and their terms: gain * gate, then batch norm's. pooled_ptr: of the image."""
    z = band_convolution(
        pooled_ptr, weight_ptr, bias_ptr, offs_c, mask_c, C, 1.0, 0, 1, stride_w,
        bn_mean_ptr, bn_var_ptr, bn_weight_ptr, bn_bias_ptr, bn_eps, 1, K, CIRCULAR, BLOCK_K,
    )  # fmt: skip
    terms = (gain * gate_of(z, GATE),)
    if bn_mean_ptr is not None:
        terms += batch_norm_terms(bn_mean_ptr, bn_var_ptr, bn_weight_ptr, bn_bias_ptr, bn_eps, offs_c, mask_c)
    return z, terms


@triton.jit
def gate_dot(p_sum, p_dot, terms, gain):
    """gain * sum_hw p * xhat."""
    if len(terms) > 1:
        p_dot = p_dot * terms[2] + p_sum * terms[3]
    return gain * p_dot


@triton.jit
def halo_sums(
    dy_ptr, x_ptr, residual_ptr, mask_ptr, offs_c, mask_c, terms,
    HW: tl.constexpr, ACTIVATION: tl.constexpr, BLOCK_HALO: tl.constexpr, BLOCK_HALO_HW: tl.constexpr,
    SPAN: tl.constexpr, VEC: tl.constexpr, WINDOWED: tl.constexpr,
):  # fmt: skip
    """Over SPAN columns of the rows offs_c of an image, the sums of p and of p * (x - center)."""
    total = tl.zeros((BLOCK_HALO, BLOCK_HALO_HW), tl.float32)
    total_dot = tl.zeros((BLOCK_HALO, BLOCK_HALO_HW), tl.float32)
    if (ACTIVATION == "identity" or mask_ptr is not None) and SPAN <= 16 * BLOCK_HALO_HW:
        # Unrolled, so that all blocks are on their way together; what is recomputed makes long code.
        for start in tl.static_range(0, SPAN, BLOCK_HALO_HW):
            _, summand, dot = gradient_chunk(
                dy_ptr, x_ptr, residual_ptr, mask_ptr, offs_c, mask_c, terms, terms, start,
                HW, ACTIVATION, BLOCK_HALO_HW, start + BLOCK_HALO_HW > HW, VEC, WINDOWED, "",
            )  # fmt: skip
            total += summand
            total_dot += dot
    else:
        for start in tl.range(0, SPAN, BLOCK_HALO_HW):
            _, summand, dot = gradient_chunk(
                dy_ptr, x_ptr, residual_ptr, mask_ptr, offs_c, mask_c, terms, terms, start,
                HW, ACTIVATION, BLOCK_HALO_HW, HW % BLOCK_HALO_HW != 0, VEC, WINDOWED, "",
            )  # fmt: skip
            total += summand
            total_dot += dot
    return tl.sum(total, 1), tl.sum(total_dot, 1)


@triton.jit
def row_sums(
    dy_ptr, x_ptr, residual_ptr, mask_ptr, offs_c, mask_c, terms, next_terms,
    HW: tl.constexpr, ACTIVATION: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_HW: tl.constexpr,
    CHUNKS: tl.constexpr, BLOCK_TAIL: tl.constexpr, VEC: tl.constexpr, WINDOWED: tl.constexpr,
):  # fmt: skip
    """p of the rows offs_c of an image as a tuple of chunks, and the sums of p and of p * (x - center)."""
    tile = ()
    total = tl.zeros((BLOCK_C, BLOCK_HW), tl.float32)
    total_dot = tl.zeros((BLOCK_C, BLOCK_HW), tl.float32)
    for i in tl.static_range(CHUNKS):
        p, summand, dot = gradient_chunk(
            dy_ptr, x_ptr, residual_ptr, mask_ptr, offs_c, mask_c, terms, next_terms, i * BLOCK_HW,
            HW, ACTIVATION, BLOCK_HW, (i + 1) * BLOCK_HW > HW, VEC, WINDOWED, "evict_first",
        )  # fmt: skip
        tile += (p,)
        total += summand
        total_dot += dot
    p_sum = tl.sum(total, 1)
    p_dot = tl.sum(total_dot, 1)
    if BLOCK_TAIL > 0:
        p, summand, dot = gradient_chunk(
            dy_ptr, x_ptr, residual_ptr, mask_ptr, offs_c, mask_c, terms, next_terms, CHUNKS * BLOCK_HW,
            HW, ACTIVATION, BLOCK_TAIL, CHUNKS * BLOCK_HW + BLOCK_TAIL > HW, VEC, WINDOWED, "evict_first",
        )  # fmt: skip
        tile += (p,)
        p_sum += tl.sum(summand, 1)
        p_dot += tl.sum(dot, 1)
    return tile, p_sum, p_dot


@triton.jit
def gradient_chunk(
    dy_ptr, x_ptr, residual_ptr, mask_ptr, offs_c, mask_c, terms, next_terms, start, HW: tl.constexpr,
    ACTIVATION: tl.constexpr, BLOCK: tl.constexpr, MASKED: tl.constexpr, VEC: tl.constexpr,
    WINDOWED: tl.constexpr, EVICTION: tl.constexpr,
):  # fmt: skip
    """[rows, BLOCK] of p in dy's dtype, and what it adds to the sums of p and of p * (x - center)."""
    offs, loaded, _, element = chunk_offsets(offs_c, mask_c, start, HW, BLOCK, MASKED, VEC, WINDOWED)
    dy = tl.load(dy_ptr + offs, mask=loaded, other=0.0)
    x = tl.load(x_ptr + offs, mask=loaded, other=0.0, eviction_policy=EVICTION).to(tl.float32)
    p = dy.to(tl.float32)
    if mask_ptr is not None:
        offs_bits, loaded_bits, _ = octet_offsets(offs_c, mask_c, start, HW, BLOCK, VEC, WINDOWED)
        bits = unpacked_bits(tl.load(mask_ptr + offs_bits, mask=loaded_bits, other=0))
        p = tl.where(bits, p, 0.0)
    elif ACTIVATION != "identity":
        u = x
        if len(terms) > 1:
            u -= spread(terms, next_terms, 1, element, HW, WINDOWED)
            u *= spread(terms, next_terms, 2, element, HW, WINDOWED)
            u += spread(terms, next_terms, 3, element, HW, WINDOWED)
        u *= spread(terms, next_terms, 0, element, HW, WINDOWED)
        if residual_ptr is not None:
            residual = tl.load(residual_ptr + offs, mask=loaded, other=0.0, eviction_policy=EVICTION)
            u += residual.to(tl.float32)
        p = activation_gradient(p, u, ACTIVATION)
    if len(terms) > 1:
        x -= terms[1][:, None]
    summand, dot = p, p * x
    if WINDOWED or MASKED:
        inside = (element >= 0) & (element < HW)
        summand = tl.where(inside, summand, 0.0)
        dot = tl.where(inside, dot, 0.0)
    return p.to(dy.dtype), summand, dot
