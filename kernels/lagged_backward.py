"""Backward of `lagged_kernel`: gradients summed, then spread a lag behind, when they come back from L2.

Tickets, arrivals and the order of sums are the forward's: kernels/tickets.py.

What is spread is p. With d_residual it is stored at first sight and comes back from there: S bytes of L2, and
nothing else has to stay in it. dy and the bits would be S / 16 more; for other activations x and the residual
would come back too. Without d_residual that is so: p has no other place, since who waits in vain may sum a
tile again whose d_x is written.
"""

import triton
import triton.language as tl

from .band import band_convolution, band_sum, neighbours, taps
from .bits import unpacked_bits
from .elementwise import activation_gradient, batch_norm_terms, dot_xhat, gate_gradient, gate_of
from .lagged_tile import element_offsets, load_tile, ordered_sum, tile_bytes, tile_place
from .tickets import arrives_last, complete, draw_ticket, wait


@triton.jit
def lagged_backward_kernel(
    dy_ptr, x_ptr, weight_ptr, bias_ptr, residual_ptr, pooled_ptr, mask_ptr,
    d_x_ptr, d_residual_ptr, d_gate_ptr, p_sum_ptr, p_dot_x_ptr, partial_ptr, dz_ptr, t_ptr, arrived_ptr,
    bn_mean_ptr, bn_var_ptr, bn_weight_ptr, bn_bias_ptr, bn_eps, gain, inv_hw,
    N, C, HW, lag, stride_c, stride_hw, stride_w,
    K: tl.constexpr, CIRCULAR: tl.constexpr, GATE: tl.constexpr, ACTIVATION: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_HW: tl.constexpr, BLOCK_P: tl.constexpr,
    BLOCK_G: tl.constexpr, VEC_C: tl.constexpr, VEC_HW: tl.constexpr, PATIENCE: tl.constexpr,
):  # fmt: skip
    """The gradients of `tile_channels_last_backward_kernel`, for maps of which no tile fits registers.
    One program draws ticket t, sums tile t (BLOCK_C x BLOCK_HW of an image), then spreads tile t - lag.
    Reads dy and x once from DRAM, p once from L2, writes d_x (3 S; d_residual S, bits S / 16, a residual S).
    Maps: [N, C, HW] dense, same strides; d_x and d_residual overlap no other. partial: [N, sums, chunks, C],
    dz, t: [N, C], fp32; arrived: [N + 1] zeros.
    """
    ticket = draw_ticket(arrived_ptr, N)
    tiles = tl.cdiv(C, BLOCK_C) * tl.cdiv(HW, BLOCK_HW)
    if ticket < N * tiles:
        n = sum_gradients(
            ticket, dy_ptr, x_ptr, weight_ptr, bias_ptr, residual_ptr, pooled_ptr, mask_ptr, d_residual_ptr,
            p_sum_ptr, partial_ptr, bn_mean_ptr, bn_var_ptr, bn_weight_ptr, bn_bias_ptr, bn_eps, gain,
            C, HW, stride_c, stride_hw, stride_w,
            K, CIRCULAR, GATE, ACTIVATION, BLOCK_K, BLOCK_C, BLOCK_HW, VEC_C, VEC_HW,
        )  # fmt: skip
        if arrives_last(arrived_ptr, n, tiles):
            form_spread(
                n, weight_ptr, bias_ptr, pooled_ptr, d_gate_ptr, p_sum_ptr, p_dot_x_ptr,
                partial_ptr, dz_ptr, t_ptr, bn_mean_ptr, bn_var_ptr, bn_weight_ptr, bn_bias_ptr, bn_eps,
                gain, inv_hw, C, HW, stride_w, K, CIRCULAR, GATE, BLOCK_K, BLOCK_HW, BLOCK_P, BLOCK_G,
            )  # fmt: skip
            complete(arrived_ptr, n)
    if (ticket >= lag) & (ticket < lag + N * tiles):
        task = ticket - lag
        n = task // tiles
        if wait(arrived_ptr, n, tiles, PATIENCE) <= tiles:
            for tile in range(tiles):
                sum_gradients(
                    n * tiles + tile,
                    dy_ptr, x_ptr, weight_ptr, bias_ptr, residual_ptr, pooled_ptr, mask_ptr, d_residual_ptr,
                    p_sum_ptr, partial_ptr, bn_mean_ptr, bn_var_ptr, bn_weight_ptr, bn_bias_ptr, bn_eps, gain,
                    C, HW, stride_c, stride_hw, stride_w,
                    K, CIRCULAR, GATE, ACTIVATION, BLOCK_K, BLOCK_C, BLOCK_HW, VEC_C, VEC_HW,
                )  # fmt: skip
            tl.debug_barrier()
            form_spread(
                n, weight_ptr, bias_ptr, pooled_ptr, d_gate_ptr, p_sum_ptr, p_dot_x_ptr,
                partial_ptr, dz_ptr, t_ptr, bn_mean_ptr, bn_var_ptr, bn_weight_ptr, bn_bias_ptr, bn_eps,
                gain, inv_hw, C, HW, stride_w, K, CIRCULAR, GATE, BLOCK_K, BLOCK_HW, BLOCK_P, BLOCK_G,
            )  # fmt: skip
            tl.debug_barrier()
        if d_residual_ptr is not None:
            # Nobody loads it before all of it is stored, so no line of L1 is older.
            _, _, offs_c, offs_hw, mask_c, mask, p = load_tile(
                task, d_residual_ptr, C, HW, stride_c, stride_hw,
                BLOCK_C, BLOCK_HW, VEC_C, VEC_HW, "evict_first",
            )  # fmt: skip
            factor = gain * gates(
                n, offs_c, mask_c, weight_ptr, bias_ptr, pooled_ptr,
                bn_mean_ptr, bn_var_ptr, bn_weight_ptr, bn_bias_ptr, bn_eps, C, stride_w,
                K, CIRCULAR, GATE, BLOCK_K,
            )  # fmt: skip
        else:
            _, offs_c, offs_hw, mask_c, mask, p, _, factor = tile_gradient(
                task, dy_ptr, x_ptr, weight_ptr, bias_ptr, residual_ptr, pooled_ptr, mask_ptr,
                bn_mean_ptr, bn_var_ptr, bn_weight_ptr, bn_bias_ptr, bn_eps, gain,
                C, HW, stride_c, stride_hw, stride_w,
                K, CIRCULAR, GATE, ACTIVATION, BLOCK_K, BLOCK_C, BLOCK_HW, VEC_C, VEC_HW, "evict_first",
            )  # fmt: skip
        t = tl.load(t_ptr + n.to(tl.int64) * C + offs_c, mask=mask_c, other=0.0, cache_modifier=".cg")
        if bn_mean_ptr is not None:
            _, scale, _ = batch_norm_terms(
                bn_mean_ptr, bn_var_ptr, bn_weight_ptr, bn_bias_ptr, bn_eps, offs_c, mask_c
            )
            factor *= scale
            t *= scale
        d_x = p.to(tl.float32) * factor[:, None] + t[:, None]
        ptrs = d_x_ptr + element_offsets(n, offs_c, offs_hw, C, HW, stride_c, stride_hw, VEC_C, VEC_HW)
        tl.store(ptrs, d_x.to(d_x_ptr.dtype.element_ty), mask=mask, eviction_policy="evict_first")


@triton.jit
def sum_gradients(
    index, dy_ptr, x_ptr, weight_ptr, bias_ptr, residual_ptr, pooled_ptr, mask_ptr, d_residual_ptr, p_sum_ptr,
    partial_ptr, bn_mean_ptr, bn_var_ptr, bn_weight_ptr, bn_bias_ptr, bn_eps, gain,
    C, HW, stride_c, stride_hw, stride_w,
    K: tl.constexpr, CIRCULAR: tl.constexpr, GATE: tl.constexpr, ACTIVATION: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_HW: tl.constexpr,
    VEC_C: tl.constexpr, VEC_HW: tl.constexpr,
):  # fmt: skip
    """Stores the partial sums of tile `index`, and p in d_residual; returns its image."""
    n, offs_c, offs_hw, mask_c, mask, p, x, _ = tile_gradient(
        index, dy_ptr, x_ptr, weight_ptr, bias_ptr, residual_ptr, pooled_ptr, mask_ptr,
        bn_mean_ptr, bn_var_ptr, bn_weight_ptr, bn_bias_ptr, bn_eps, gain,
        C, HW, stride_c, stride_hw, stride_w,
        K, CIRCULAR, GATE, ACTIVATION, BLOCK_K, BLOCK_C, BLOCK_HW, VEC_C, VEC_HW,
        "evict_last" if d_residual_ptr is None else "evict_first",
    )  # fmt: skip
    if d_residual_ptr is not None:
        ptrs = d_residual_ptr + element_offsets(n, offs_c, offs_hw, C, HW, stride_c, stride_hw, VEC_C, VEC_HW)
        tl.store(ptrs, p.to(d_residual_ptr.dtype.element_ty), mask=mask, eviction_policy="evict_last")
    p = p.to(tl.float32)
    SUMS: tl.constexpr = 1 if bn_mean_ptr is None and p_sum_ptr is None else 2
    chunks = tl.cdiv(HW, BLOCK_HW)
    _, chunk, _ = tile_place(index, C, HW, BLOCK_C, BLOCK_HW)
    ptrs = partial_ptr + (n.to(tl.int64) * SUMS * chunks + chunk) * C + offs_c
    tl.store(ptrs, tl.sum(p * x, 1), mask=mask_c)
    if SUMS == 2:
        tl.store(ptrs + chunks * C, tl.sum(p, 1), mask=mask_c)
    return n


@triton.jit
def tile_gradient(
    index, dy_ptr, x_ptr, weight_ptr, bias_ptr, residual_ptr, pooled_ptr, mask_ptr,
    bn_mean_ptr, bn_var_ptr, bn_weight_ptr, bn_bias_ptr, bn_eps, gain, C, HW, stride_c, stride_hw, stride_w,
    K: tl.constexpr, CIRCULAR: tl.constexpr, GATE: tl.constexpr, ACTIVATION: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_HW: tl.constexpr,
    VEC_C: tl.constexpr, VEC_HW: tl.constexpr, EVICTION: tl.constexpr,
):  # fmt: skip
    """Load tile `index`: image, channels, spatial indices, both masks, p, x less batch norm's mean, factor.

    p is in dy's dtype where that is exact, else fp32, as is x. factor: gain * gate of the channels.
    """
    n, _, offs_c, offs_hw, mask_c, mask, p = load_tile(
        index, dy_ptr, C, HW, stride_c, stride_hw, BLOCK_C, BLOCK_HW, VEC_C, VEC_HW, EVICTION
    )
    RECOMPUTED: tl.constexpr = ACTIVATION != "identity" and mask_ptr is None
    x = load_tile(
        index, x_ptr, C, HW, stride_c, stride_hw, BLOCK_C, BLOCK_HW, VEC_C, VEC_HW,
        EVICTION if RECOMPUTED else "evict_first",
    )[6].to(tl.float32)  # fmt: skip
    center, scale, shift = None, None, None
    if bn_mean_ptr is not None:
        center, scale, shift = batch_norm_terms(
            bn_mean_ptr, bn_var_ptr, bn_weight_ptr, bn_bias_ptr, bn_eps, offs_c, mask_c
        )
        x -= center[:, None]
    factor = gain * gates(
        n, offs_c, mask_c, weight_ptr, bias_ptr, pooled_ptr,
        bn_mean_ptr, bn_var_ptr, bn_weight_ptr, bn_bias_ptr, bn_eps, C, stride_w, K, CIRCULAR, GATE, BLOCK_K,
    )  # fmt: skip
    if mask_ptr is not None:
        offs, mask_bytes = tile_bytes(index, C, HW, BLOCK_C, BLOCK_HW, VEC_C)
        packed = tl.load(mask_ptr + offs, mask=mask_bytes, other=0, eviction_policy=EVICTION)
        passes = tl.trans(unpacked_bits(packed)) if VEC_C > 1 else unpacked_bits(packed)
        p = tl.where(passes, p, 0.0)
    elif RECOMPUTED:
        u = x
        if scale is not None:
            u = u * scale[:, None] + shift[:, None]
        u *= factor[:, None]
        if residual_ptr is not None:
            residual = load_tile(
                index, residual_ptr, C, HW, stride_c, stride_hw, BLOCK_C, BLOCK_HW, VEC_C, VEC_HW, EVICTION
            )[6]
            u += residual.to(tl.float32)
        p = activation_gradient(p, u, ACTIVATION)
    return n, offs_c, offs_hw, mask_c, mask, p, x, factor


@triton.jit
def gates(
    n, offs_c, mask_c, weight_ptr, bias_ptr, pooled_ptr,
    bn_mean_ptr, bn_var_ptr, bn_weight_ptr, bn_bias_ptr, bn_eps, C, stride_w,
    K: tl.constexpr, CIRCULAR: tl.constexpr, GATE: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Gates of channels offs_c of image n, from pooled."""
    z = band_convolution(
        pooled_ptr + n.to(tl.int64) * C, weight_ptr, bias_ptr, offs_c, mask_c, C, 1.0, 0, 1, stride_w,
        bn_mean_ptr, bn_var_ptr, bn_weight_ptr, bn_bias_ptr, bn_eps, 1, K, CIRCULAR, BLOCK_K,
    )  # fmt: skip
    return gate_of(z, GATE)


@triton.jit
def form_spread(
    n, weight_ptr, bias_ptr, pooled_ptr, d_gate_ptr, p_sum_ptr, p_dot_x_ptr, partial_ptr, dz_ptr, t_ptr,
    bn_mean_ptr, bn_var_ptr, bn_weight_ptr, bn_bias_ptr, bn_eps, gain, inv_hw, C, HW, stride_w,
    K: tl.constexpr, CIRCULAR: tl.constexpr, GATE: tl.constexpr, BLOCK_K: tl.constexpr,
    BLOCK_HW: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_G: tl.constexpr,
):  # fmt: skip
    """d_gate, the moments and t of image n, from its partial sums."""
    n = n.to(tl.int64)
    chunks = tl.cdiv(HW, BLOCK_HW)
    SUMS: tl.constexpr = 1 if bn_mean_ptr is None and p_sum_ptr is None else 2
    partial_ptr += n * SUMS * chunks * C
    for start in range(0, C, BLOCK_G):
        offs_c = start + tl.arange(0, BLOCK_G)
        mask_c = offs_c < C
        p_dot_x = ordered_sum(partial_ptr, chunks, offs_c, mask_c, C, BLOCK_P, BLOCK_G)
        p_sum, scale, shift = None, None, None
        if SUMS == 2:
            p_sum = ordered_sum(partial_ptr + chunks * C, chunks, offs_c, mask_c, C, BLOCK_P, BLOCK_G)
        if p_sum_ptr is not None:
            tl.store(p_sum_ptr + n * C + offs_c, p_sum, mask=mask_c)
            tl.store(p_dot_x_ptr + n * C + offs_c, p_dot_x, mask=mask_c)
        if bn_mean_ptr is not None:
            _, scale, shift = batch_norm_terms(
                bn_mean_ptr, bn_var_ptr, bn_weight_ptr, bn_bias_ptr, bn_eps, offs_c, mask_c
            )
        d_gate = gain * dot_xhat(p_sum, p_dot_x, scale, shift)
        tl.store(d_gate_ptr + n * C + offs_c, d_gate, mask=mask_c)
        z = band_convolution(
            pooled_ptr + n * C, weight_ptr, bias_ptr, offs_c, mask_c, C, 1.0, 0, 1, stride_w,
            bn_mean_ptr, bn_var_ptr, bn_weight_ptr, bn_bias_ptr, bn_eps, 1, K, CIRCULAR, BLOCK_K,
        )  # fmt: skip
        tl.store(dz_ptr + n * C + offs_c, gate_gradient(d_gate, z, GATE), mask=mask_c)
    tl.debug_barrier()
    # The band transposed is the band reversed.
    w = taps(weight_ptr + (K - 1) * stride_w, -stride_w, K, BLOCK_K)
    for start in range(0, C, BLOCK_G):
        offs_c = start + tl.arange(0, BLOCK_G)
        mask_c = offs_c < C
        src, valid = neighbours(offs_c, mask_c, C, K, CIRCULAR, BLOCK_K)
        t = inv_hw * band_sum(w, tl.load(dz_ptr + n * C + src, mask=valid, other=0.0), valid)
        tl.store(t_ptr + n * C + offs_c, t, mask=mask_c)
