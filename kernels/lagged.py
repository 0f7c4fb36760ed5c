"""The whole tail in one launch for maps too large for registers: rescaled from L2, a lag behind the sums.

`draw_ticket`, `sum_task` and `rescaled` are the kernel up to what follows the gates; `lagged_kernel` adds the
residual, the activation and the store. Their sizes and strides may be run-time values or constants.
Why every program sees the gates, in whatever order programs are dispatched and run: kernels/tickets.py.
"""

import triton
import triton.language as tl

from .band import band_convolution
from .bits import packed_bits
from .elementwise import activate, activation_passes, batch_norm_terms, gate_of
from .epilogue import store_with_tail
from .lagged_tile import element_offsets, load_tile, ordered_sum, tile_bytes
from .tickets import arrives_last, complete, draw_ticket, wait


@triton.jit
def lagged_kernel(
    x_ptr, weight_ptr, bias_ptr, residual_ptr, out_ptr, mask_ptr,
    partial_ptr, mean_ptr, gate_ptr, arrived_ptr,
    bn_mean_ptr, bn_var_ptr, bn_weight_ptr, bn_bias_ptr, bn_eps, gain, inv_hw,
    N, C, HW, lag, stride_c, stride_hw, stride_w,
    K: tl.constexpr, CIRCULAR: tl.constexpr, GATE: tl.constexpr,
    PRE_ACTIVATION: tl.constexpr, ACTIVATION: tl.constexpr, BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_HW: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_G: tl.constexpr,
    VEC_C: tl.constexpr, VEC_HW: tl.constexpr, PATIENCE: tl.constexpr,
):  # fmt: skip
    """out[n, c, :] = activation(gain * xhat * g[n, c] + residual), xhat = pre_activation(batch_norm(x)).
    One program draws ticket t, sums tile t (BLOCK_C x BLOCK_HW of an image), then rescales tile t - lag.
    With a lag of fewer tiles than an image has, it would wait in vain; out must not overlap x.
    Reads x once from DRAM and once from L2, residual once, writes out (2 S; 3 S with a residual).
    x, residual, out: [N, C, HW] dense, same strides, fp16/bf16/fp32; fp32 inside.
    partial: [N, chunks, C], mean (of xhat, or of x before batch norm alone), gate: [N, C], fp32;
    arrived: [N + 1] zeros. mask, for the backward, where given: bits of `tile_bytes`, S / 16.
    """
    ticket = draw_ticket(arrived_ptr, N)
    sum_task(
        ticket, x_ptr, weight_ptr, bias_ptr, partial_ptr, mean_ptr, gate_ptr, arrived_ptr,
        bn_mean_ptr, bn_var_ptr, bn_weight_ptr, bn_bias_ptr, bn_eps, inv_hw,
        N, C, HW, stride_c, stride_hw, stride_w,
        K, CIRCULAR, GATE, PRE_ACTIVATION, BLOCK_K, BLOCK_C, BLOCK_HW, BLOCK_P, BLOCK_G, VEC_C, VEC_HW,
    )  # fmt: skip
    tasks = N * tl.cdiv(C, BLOCK_C) * tl.cdiv(HW, BLOCK_HW)
    if (ticket >= lag) & (ticket < lag + tasks):
        n, offs_c, offs_hw, mask, v = rescaled(
            ticket - lag, x_ptr, weight_ptr, bias_ptr, partial_ptr, mean_ptr, gate_ptr, arrived_ptr,
            bn_mean_ptr, bn_var_ptr, bn_weight_ptr, bn_bias_ptr, bn_eps, gain, inv_hw,
            C, HW, stride_c, stride_hw, stride_w,
            K, CIRCULAR, GATE, PRE_ACTIVATION, BLOCK_K, BLOCK_C, BLOCK_HW, BLOCK_P, BLOCK_G, VEC_C, VEC_HW,
            PATIENCE,
        )  # fmt: skip
        offs = element_offsets(n, offs_c, offs_hw, C, HW, stride_c, stride_hw, VEC_C, VEC_HW)
        u = store_with_tail(v, residual_ptr, out_ptr, 0, offs, mask, ACTIVATION, "evict_first")
        if mask_ptr is not None:
            offs, mask = tile_bytes(ticket - lag, C, HW, BLOCK_C, BLOCK_HW, VEC_C)
            if VEC_C > 1:
                bits = packed_bits(activation_passes(tl.trans(u), ACTIVATION))
            else:
                bits = packed_bits(activation_passes(u, ACTIVATION))
            tl.store(mask_ptr + offs, bits, mask=mask, eviction_policy="evict_first")


@triton.jit
def sum_task(
    ticket, x_ptr, weight_ptr, bias_ptr, partial_ptr, mean_ptr, gate_ptr, arrived_ptr,
    bn_mean_ptr, bn_var_ptr, bn_weight_ptr, bn_bias_ptr, bn_eps, inv_hw,
    N, C, HW, stride_c, stride_hw, stride_w,
    K: tl.constexpr, CIRCULAR: tl.constexpr, GATE: tl.constexpr,
    PRE_ACTIVATION: tl.constexpr, BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_HW: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_G: tl.constexpr,
    VEC_C: tl.constexpr, VEC_HW: tl.constexpr,
):  # fmt: skip
    """Sums tile `ticket` if there is one; the last to arrive at an image forms its gates. Never waits."""
    tiles = tl.cdiv(C, BLOCK_C) * tl.cdiv(HW, BLOCK_HW)
    if ticket < N * tiles:
        n = sum_tile(
            ticket, x_ptr, partial_ptr, bn_mean_ptr, bn_var_ptr, bn_weight_ptr, bn_bias_ptr, bn_eps,
            C, HW, stride_c, stride_hw, PRE_ACTIVATION, BLOCK_C, BLOCK_HW, VEC_C, VEC_HW,
        )  # fmt: skip
        if arrives_last(arrived_ptr, n, tiles):
            form_gates(
                n, partial_ptr, mean_ptr, gate_ptr, weight_ptr, bias_ptr,
                bn_mean_ptr, bn_var_ptr, bn_weight_ptr, bn_bias_ptr, bn_eps, inv_hw, C, HW, stride_w,
                K, CIRCULAR, GATE, PRE_ACTIVATION, BLOCK_K, BLOCK_HW, BLOCK_P, BLOCK_G,
            )  # fmt: skip
            complete(arrived_ptr, n)


@triton.jit
def rescaled(
    task, x_ptr, weight_ptr, bias_ptr, partial_ptr, mean_ptr, gate_ptr, arrived_ptr,
    bn_mean_ptr, bn_var_ptr, bn_weight_ptr, bn_bias_ptr, bn_eps, gain, inv_hw,
    C, HW, stride_c, stride_hw, stride_w,
    K: tl.constexpr, CIRCULAR: tl.constexpr, GATE: tl.constexpr,
    PRE_ACTIVATION: tl.constexpr, BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_HW: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_G: tl.constexpr,
    VEC_C: tl.constexpr, VEC_HW: tl.constexpr, PATIENCE: tl.constexpr,
):  # fmt: skip
    """gain * xhat * g of tile `task`, once the gates of its image are there.

    Returns:
        n, offs_c [BLOCK_C], offs_hw [BLOCK_HW], mask [BLOCK_C, BLOCK_HW], v fp32 [BLOCK_C, BLOCK_HW].
    """
    n, _, offs_c, offs_hw, mask_c, mask, v = load_tile(
        task, x_ptr, C, HW, stride_c, stride_hw, BLOCK_C, BLOCK_HW, VEC_C, VEC_HW, "evict_first"
    )
    tiles = tl.cdiv(C, BLOCK_C) * tl.cdiv(HW, BLOCK_HW)
    arrived = wait(arrived_ptr, n, tiles, PATIENCE)
    if arrived <= tiles:
        for tile in range(tiles):
            sum_tile(
                n * tiles + tile, x_ptr, partial_ptr,
                bn_mean_ptr, bn_var_ptr, bn_weight_ptr, bn_bias_ptr, bn_eps,
                C, HW, stride_c, stride_hw, PRE_ACTIVATION, BLOCK_C, BLOCK_HW, VEC_C, VEC_HW,
            )  # fmt: skip
        tl.debug_barrier()
        form_gates(
            n, partial_ptr, mean_ptr, gate_ptr, weight_ptr, bias_ptr,
            bn_mean_ptr, bn_var_ptr, bn_weight_ptr, bn_bias_ptr, bn_eps, inv_hw, C, HW, stride_w,
            K, CIRCULAR, GATE, PRE_ACTIVATION, BLOCK_K, BLOCK_HW, BLOCK_P, BLOCK_G,
        )  # fmt: skip
        tl.debug_barrier()
        # Loaded again, so that it took no registers meanwhile; nor do its addresses, since the compiler does
        # not know that counts are not negative.
        v = load_tile(
            tl.maximum(task + tl.minimum(arrived, 0), 0), x_ptr, C, HW, stride_c, stride_hw,
            BLOCK_C, BLOCK_HW, VEC_C, VEC_HW, "evict_first",
        )[6]  # fmt: skip

    v = v.to(tl.float32)
    ptrs = gate_ptr + n.to(tl.int64) * C + offs_c
    factor = gain * tl.load(ptrs, mask=mask_c, other=0.0, cache_modifier=".cg")
    if bn_mean_ptr is not None:
        center, scale, shift = batch_norm_terms(
            bn_mean_ptr, bn_var_ptr, bn_weight_ptr, bn_bias_ptr, bn_eps, offs_c, mask_c
        )
        if PRE_ACTIVATION == "identity":
            scale *= factor
            shift *= factor
        v = (v - center[:, None]) * scale[:, None] + shift[:, None]
    if PRE_ACTIVATION != "identity" or bn_mean_ptr is None:
        v = activate(v, PRE_ACTIVATION) * factor[:, None]
    return n, offs_c, offs_hw, mask, v


@triton.jit
def sum_tile(
    index, x_ptr, partial_ptr, bn_mean_ptr, bn_var_ptr, bn_weight_ptr, bn_bias_ptr, bn_eps,
    C, HW, stride_c, stride_hw,
    PRE_ACTIVATION: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_HW: tl.constexpr,
    VEC_C: tl.constexpr, VEC_HW: tl.constexpr,
):  # fmt: skip
    """Stores the partial sums of tile `index`, and keeps the tile in L2; returns its image."""
    n, chunk, offs_c, _, mask_c, mask, v = load_tile(
        index, x_ptr, C, HW, stride_c, stride_hw, BLOCK_C, BLOCK_HW, VEC_C, VEC_HW, "evict_last"
    )
    v = v.to(tl.float32)
    if PRE_ACTIVATION != "identity":
        if bn_mean_ptr is not None:
            center, scale, shift = batch_norm_terms(
                bn_mean_ptr, bn_var_ptr, bn_weight_ptr, bn_bias_ptr, bn_eps, offs_c, mask_c
            )
            v = (v - center[:, None]) * scale[:, None] + shift[:, None]
        v = tl.where(mask, activate(v, PRE_ACTIVATION), 0.0)
    row = n.to(tl.int64) * tl.cdiv(HW, BLOCK_HW) + chunk
    tl.store(partial_ptr + row * C + offs_c, tl.sum(v, 1), mask=mask_c)
    return n


@triton.jit
def form_gates(
    n, partial_ptr, mean_ptr, gate_ptr, weight_ptr, bias_ptr,
    bn_mean_ptr, bn_var_ptr, bn_weight_ptr, bn_bias_ptr, bn_eps, inv_hw, C, HW, stride_w,
    K: tl.constexpr, CIRCULAR: tl.constexpr, GATE: tl.constexpr, PRE_ACTIVATION: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_HW: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_G: tl.constexpr,
):  # fmt: skip
    """gate[n] of the partial sums of image n, which are added in the order of chunks, whoever comes last.

    Batch norm that an activation follows is in the sums already.
    """
    n = n.to(tl.int64)
    chunks = tl.cdiv(HW, BLOCK_HW)
    for start in range(0, C, BLOCK_G):
        offs_c = start + tl.arange(0, BLOCK_G)
        mask_c = offs_c < C
        total = ordered_sum(partial_ptr + n * chunks * C, chunks, offs_c, mask_c, C, BLOCK_P, BLOCK_G)
        tl.store(mean_ptr + n * C + offs_c, total * inv_hw, mask=mask_c)
    tl.debug_barrier()
    for start in range(0, C, BLOCK_G):
        offs_c = start + tl.arange(0, BLOCK_G)
        mask_c = offs_c < C
        z = band_convolution(
            mean_ptr + n * C, weight_ptr, bias_ptr, offs_c, mask_c, C, 1.0, 0, 1, stride_w,
            bn_mean_ptr if PRE_ACTIVATION == "identity" else None,
            bn_var_ptr, bn_weight_ptr, bn_bias_ptr, bn_eps, 1, K, CIRCULAR, BLOCK_K,
        )  # fmt: skip
        tl.store(gate_ptr + n * C + offs_c, gate_of(z, GATE), mask=mask_c)
