"""The whole tail in one launch for maps too large for registers: rescaled from L2, a lag behind the sums."""

import triton
import triton.language as tl

from .addressing import multiple_of
from .band import band_convolution
from .elementwise import activate, batch_norm_terms, gate_of


@triton.jit
def lagged_kernel(
    x_ptr, weight_ptr, bias_ptr, residual_ptr, out_ptr, partial_ptr, mean_ptr, gate_ptr, arrived_ptr,
    bn_mean_ptr, bn_var_ptr, bn_weight_ptr, bn_bias_ptr, bn_eps, gain, inv_hw,
    N, C, HW, lag, stride_c, stride_hw, stride_w,
    K: tl.constexpr, CIRCULAR: tl.constexpr, GATE: tl.constexpr,
    PRE_ACTIVATION: tl.constexpr, ACTIVATION: tl.constexpr, BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_HW: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_G: tl.constexpr,
    VEC_C: tl.constexpr, VEC_HW: tl.constexpr,
):  # fmt: skip
    """out[n, c, :] = activation(gain * xhat * g[n, c] + residual), xhat = pre_activation(batch_norm(x)).
    One program draws ticket t, sums tile t (BLOCK_C x BLOCK_HW of an image), then rescales tile t - lag.
    It waits only for sums of tickets before its own, and those never wait: no dispatch order deadlocks.
    Reads x once from DRAM and once from L2, residual once, writes out (2 S; 3 S with a residual).
    x, residual, out: [N, C, HW] dense, same strides, fp16/bf16/fp32; fp32 inside. lag >= tiles per image.
    partial: [N, chunks, C], mean, gate: [N, C], fp32; arrived: [N + 1] zeros: sums per image, then tickets.
    """
    ticket = tl.atomic_add(arrived_ptr + N, 1, sem="relaxed")
    chunks = tl.cdiv(HW, BLOCK_HW)
    tiles = tl.cdiv(C, BLOCK_C) * chunks

    if ticket < N * tiles:
        n, chunk, offs_c, mask_c, offs, mask = tile_of(
            ticket, C, HW, stride_c, stride_hw, BLOCK_C, BLOCK_HW, VEC_C, VEC_HW
        )
        # Kept in L2 until it is rescaled.
        v = tl.load(x_ptr + offs, mask=mask, other=0.0, eviction_policy="evict_last").to(tl.float32)
        if PRE_ACTIVATION != "identity":
            if bn_mean_ptr is not None:
                center, scale, shift = batch_norm_terms(
                    bn_mean_ptr, bn_var_ptr, bn_weight_ptr, bn_bias_ptr, bn_eps, offs_c, mask_c
                )
                v = (v - center[:, None]) * scale[:, None] + shift[:, None]
            v = tl.where(mask, activate(v, PRE_ACTIVATION), 0.0)
        tl.store(partial_ptr + (n.to(tl.int64) * chunks + chunk) * C + offs_c, tl.sum(v, 1), mask=mask_c)
        # The atomic of one thread publishes the stores of all: a barrier first.
        tl.debug_barrier()
        if tl.atomic_add(arrived_ptr + n, 1, sem="acq_rel") == tiles - 1:
            form_gates(
                partial_ptr, mean_ptr, gate_ptr, weight_ptr, bias_ptr,
                bn_mean_ptr if PRE_ACTIVATION == "identity" else None,
                bn_var_ptr, bn_weight_ptr, bn_bias_ptr, bn_eps, inv_hw, n.to(tl.int64), C, chunks, stride_w,
                K, CIRCULAR, GATE, BLOCK_K, BLOCK_P, BLOCK_G,
            )  # fmt: skip
            tl.debug_barrier()
            tl.atomic_add(arrived_ptr + n, 1, sem="release")

    if ticket >= lag:
        n, chunk, offs_c, mask_c, offs, mask = tile_of(
            ticket - lag, C, HW, stride_c, stride_hw, BLOCK_C, BLOCK_HW, VEC_C, VEC_HW
        )
        v = tl.load(x_ptr + offs, mask=mask, other=0.0, eviction_policy="evict_first").to(tl.float32)
        while tl.atomic_add(arrived_ptr + n, 0, sem="acquire") <= tiles:
            pass
        # Not from L1, where a line may be older than the gates.
        ptrs = gate_ptr + n.to(tl.int64) * C + offs_c
        factor = gain * tl.load(ptrs, mask=mask_c, other=0.0, cache_modifier=".cg")
        if bn_mean_ptr is not None:
            center, scale, shift = batch_norm_terms(
                bn_mean_ptr, bn_var_ptr, bn_weight_ptr, bn_bias_ptr, bn_eps, offs_c, mask_c
            )
            v = (v - center[:, None]) * scale[:, None] + shift[:, None]
        v = activate(v, PRE_ACTIVATION) * factor[:, None]
        if residual_ptr is not None:
            residual = tl.load(residual_ptr + offs, mask=mask, other=0.0, eviction_policy="evict_first")
            v += residual.to(tl.float32)
        v = activate(v, ACTIVATION).to(out_ptr.dtype.element_ty)
        tl.store(out_ptr + offs, v, mask=mask, eviction_policy="evict_first")


@triton.jit
def tile_of(
    index, C, HW, stride_c, stride_hw,
    BLOCK_C: tl.constexpr, BLOCK_HW: tl.constexpr, VEC_C: tl.constexpr, VEC_HW: tl.constexpr,
):  # fmt: skip
    """Image, chunk of hw, channels, element offsets (each with its mask) of tile `index`, channels first."""
    C = multiple_of(C, VEC_C)
    HW = multiple_of(HW, VEC_HW)
    blocks_c = tl.cdiv(C, BLOCK_C)
    chunks = tl.cdiv(HW, BLOCK_HW)
    n = index // (blocks_c * chunks)
    chunk = index // blocks_c % chunks
    offs_c = index % blocks_c * BLOCK_C + tl.arange(0, BLOCK_C)
    offs_hw = chunk * BLOCK_HW + tl.arange(0, BLOCK_HW)
    mask_c = offs_c < C
    rows = offs_c[:, None] * multiple_of(stride_c, VEC_HW)
    offs = n.to(tl.int64) * C * HW + (rows + offs_hw[None, :] * multiple_of(stride_hw, VEC_C))
    return n, chunk, offs_c, mask_c, offs, mask_c[:, None] & (offs_hw < HW)[None, :]


@triton.jit
def form_gates(
    partial_ptr, mean_ptr, gate_ptr, weight_ptr, bias_ptr,
    bn_mean_ptr, bn_var_ptr, bn_weight_ptr, bn_bias_ptr, bn_eps, inv_hw, n, C, chunks, stride_w,
    K: tl.constexpr, CIRCULAR: tl.constexpr, GATE: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_G: tl.constexpr,
):  # fmt: skip
    """gate[n] of the partial sums of image n, which are added in the order of chunks, whoever comes last."""
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
            bn_mean_ptr, bn_var_ptr, bn_weight_ptr, bn_bias_ptr, bn_eps, 1, K, CIRCULAR, BLOCK_K,
        )  # fmt: skip
        tl.store(gate_ptr + n * C + offs_c, gate_of(z, GATE), mask=mask_c)
