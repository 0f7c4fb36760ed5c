"""The whole tail in one launch for maps too large for registers: rescaled from L2, a lag behind the sums.

`draw_ticket`, `sum_task` and `rescaled` are the kernel up to what follows the gates; `lagged_kernel` adds the
residual, the activation and the store. Their sizes and strides may be run-time values or constants.

Why every program sees the gates, in whatever order programs are dispatched and run:
- A ticket is only a number (relaxed). A program waits for sums of tickets before its own: their programs have
  started, and sum without waiting.
- An arrival releases a tile's sums and acquires those of the arrivals before it, at GPU scope. One thread
  performs it: a barrier puts the stores of all threads before it, another one the loads of all after it. So
  the last of an image reads all sums. It releases the gates in the same way, and a poll acquires them.
- What other programs stored is loaded past L1 (.cg), where a line may be older.
- No progress of others is needed: after PATIENCE polls a program sums its image and forms the gates itself.
  The same tiles in the same order give the same bits, so it does not matter who stores them, or how often.
"""

import triton
import triton.language as tl

from .addressing import multiple_of
from .band import band_convolution
from .elementwise import activate, batch_norm_terms, gate_of
from .epilogue import store_with_tail


@triton.jit
def lagged_kernel(
    x_ptr, weight_ptr, bias_ptr, residual_ptr, out_ptr, partial_ptr, mean_ptr, gate_ptr, arrived_ptr,
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
    partial: [N, chunks, C], mean, gate: [N, C], fp32; arrived: [N + 1] zeros: sums per image, then tickets.
    """
    ticket = draw_ticket(arrived_ptr, N)
    sum_task(
        ticket, x_ptr, weight_ptr, bias_ptr, partial_ptr, mean_ptr, gate_ptr, arrived_ptr,
        bn_mean_ptr, bn_var_ptr, bn_weight_ptr, bn_bias_ptr, bn_eps, inv_hw,
        N, C, HW, stride_c, stride_hw, stride_w,
        K, CIRCULAR, GATE, PRE_ACTIVATION, BLOCK_K, BLOCK_C, BLOCK_HW, BLOCK_P, BLOCK_G, VEC_C, VEC_HW,
    )  # fmt: skip
    if ticket >= lag:
        n, offs_c, offs_hw, mask, v = rescaled(
            ticket - lag, x_ptr, weight_ptr, bias_ptr, partial_ptr, mean_ptr, gate_ptr, arrived_ptr,
            bn_mean_ptr, bn_var_ptr, bn_weight_ptr, bn_bias_ptr, bn_eps, gain, inv_hw,
            C, HW, stride_c, stride_hw, stride_w,
            K, CIRCULAR, GATE, PRE_ACTIVATION, BLOCK_K, BLOCK_C, BLOCK_HW, BLOCK_P, BLOCK_G, VEC_C, VEC_HW,
            PATIENCE,
        )  # fmt: skip
        offs = element_offsets(n, offs_c, offs_hw, C, HW, stride_c, stride_hw, VEC_C, VEC_HW)
        store_with_tail(v, residual_ptr, out_ptr, 0, offs, mask, ACTIVATION, "evict_first")


@triton.jit
def draw_ticket(arrived_ptr, N):
    """The next of 0, 1, 2, ...: all programs with tickets before it have started."""
    return tl.atomic_add(arrived_ptr + N, 1, sem="relaxed")


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
        tl.debug_barrier()
        if tl.atomic_add(arrived_ptr + n, 1, sem="acq_rel") == tiles - 1:
            form_gates(
                n, partial_ptr, mean_ptr, gate_ptr, weight_ptr, bias_ptr,
                bn_mean_ptr, bn_var_ptr, bn_weight_ptr, bn_bias_ptr, bn_eps, inv_hw, C, HW, stride_w,
                K, CIRCULAR, GATE, PRE_ACTIVATION, BLOCK_K, BLOCK_HW, BLOCK_P, BLOCK_G,
            )  # fmt: skip
            tl.debug_barrier()
            tl.atomic_add(arrived_ptr + n, 1, sem="release")


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
    arrived = tl.atomic_add(arrived_ptr + n, 0, sem="acquire")
    polls = 0
    while (arrived <= tiles) & (polls < PATIENCE):
        arrived = tl.atomic_add(arrived_ptr + n, 0, sem="acquire")
        polls += 1
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
        # not know that counts are never negative.
        v = load_tile(
            task + tl.minimum(arrived, 0), x_ptr, C, HW, stride_c, stride_hw,
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
def load_tile(
    index, x_ptr, C, HW, stride_c, stride_hw,
    BLOCK_C: tl.constexpr, BLOCK_HW: tl.constexpr, VEC_C: tl.constexpr, VEC_HW: tl.constexpr,
    EVICTION: tl.constexpr,
):  # fmt: skip
    """Tile `index`, channels first: image, chunk of hw, channels, spatial indices, both masks, elements."""
    blocks_c = tl.cdiv(C, BLOCK_C)
    chunks = tl.cdiv(HW, BLOCK_HW)
    n = index // (blocks_c * chunks)
    chunk = index // blocks_c % chunks
    offs_c = index % blocks_c * BLOCK_C + tl.arange(0, BLOCK_C)
    offs_hw = chunk * BLOCK_HW + tl.arange(0, BLOCK_HW)
    mask_c = offs_c < multiple_of(C, VEC_C)
    mask = mask_c[:, None] & (offs_hw < multiple_of(HW, VEC_HW))[None, :]
    ptrs = x_ptr + element_offsets(n, offs_c, offs_hw, C, HW, stride_c, stride_hw, VEC_C, VEC_HW)
    v = tl.load(ptrs, mask=mask, other=0.0, eviction_policy=EVICTION)
    return n, chunk, offs_c, offs_hw, mask_c, mask, v


@triton.jit
def element_offsets(
    n, offs_c, offs_hw, C, HW, stride_c, stride_hw, VEC_C: tl.constexpr, VEC_HW: tl.constexpr
):
    """int64 [BLOCK_C, BLOCK_HW]; inside an image int32."""
    rows = offs_c[:, None] * multiple_of(stride_c, VEC_HW)
    columns = offs_hw[None, :] * multiple_of(stride_hw, VEC_C)
    return n.to(tl.int64) * multiple_of(C, VEC_C) * multiple_of(HW, VEC_HW) + (rows + columns)


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
        total = tl.zeros((BLOCK_P, BLOCK_G), tl.float32)
        for first in range(0, chunks, BLOCK_P):
            offs_p = first + tl.arange(0, BLOCK_P)[:, None]
            mask = (offs_p < chunks) & mask_c[None, :]
            ptrs = partial_ptr + (n * chunks + offs_p) * C + offs_c[None, :]
            total += tl.load(ptrs, mask=mask, other=0.0, cache_modifier=".cg")
        tl.store(mean_ptr + n * C + offs_c, tl.sum(total, 0), mask=mask_c)
    tl.debug_barrier()
    for start in range(0, C, BLOCK_G):
        offs_c = start + tl.arange(0, BLOCK_G)
        mask_c = offs_c < C
        z = band_convolution(
            mean_ptr + n * C, weight_ptr, bias_ptr, offs_c, mask_c, C, inv_hw, 0, 1, stride_w,
            bn_mean_ptr if PRE_ACTIVATION == "identity" else None,
            bn_var_ptr, bn_weight_ptr, bn_bias_ptr, bn_eps, 1, K, CIRCULAR, BLOCK_K,
        )  # fmt: skip
        tl.store(gate_ptr + n * C + offs_c, gate_of(z, GATE), mask=mask_c)
