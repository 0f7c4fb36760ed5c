"""The whole tail in one launch for channels-last maps of which an image's tile fits registers."""

import triton
import triton.language as tl

from .addressing import multiple_of
from .bits import packed_bits
from .elementwise import activate, activation_passes, batch_norm_terms, gate_of, unseen
from .epilogue import store_with_tail

HALO = tl.constexpr(8)  # channels beside the tile, per side: a vector of 16 bits each; C is a multiple


@triton.jit
def tile_channels_last_kernel(
    x_ptr, weight_ptr, bias_ptr, residual_ptr, out_ptr, pooled_ptr, mask_ptr,
    bn_mean_ptr, bn_var_ptr, bn_weight_ptr, bn_bias_ptr, bn_eps, gain, inv_hw,
    C, HW, stride_w,
    K: tl.constexpr, CIRCULAR: tl.constexpr, GATE: tl.constexpr,
    PRE_ACTIVATION: tl.constexpr, ACTIVATION: tl.constexpr, BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_HW: tl.constexpr, STEPS: tl.constexpr,
    BLOCK_HALO: tl.constexpr, HALO_STEPS: tl.constexpr,
):  # fmt: skip
    """out[n, :, c] = activation(gain * xhat * g[n, c] + residual), xhat = pre_activation(batch_norm(x)).
    One program owns BLOCK_C channels of one image and keeps them in registers, as STEPS pieces of BLOCK_HW
    elements; of HALO channels on each side it only forms the mean.
    Reads x and residual once from DRAM (2 S; the halo from L2), writes out (S).
    x, residual, out: [N, HW, C] dense, C % HALO == 0, fp16/bf16/fp32; fp32 inside. K // 2 <= HALO.
    For the backward, where given: pooled: fp32 [N, C], the mean of x; mask: [N, HW, C // 8] bits (S / 16).
    """
    n, offs_c, mask_c, tile, terms = gated_tile(
        tl.program_id(0), x_ptr, weight_ptr, bias_ptr, bn_mean_ptr, bn_var_ptr, bn_weight_ptr, bn_bias_ptr,
        bn_eps, gain, inv_hw, C, HW, stride_w,
        K, CIRCULAR, GATE, PRE_ACTIVATION, BLOCK_K, BLOCK_C, BLOCK_HW, STEPS, BLOCK_HALO, HALO_STEPS,
        pooled_ptr,
    )  # fmt: skip
    image = n.to(tl.int64) * HW * multiple_of(C, HALO)
    for step in tl.static_range(STEPS):
        offs, mask = piece_offsets(offs_c, mask_c, step, C, HW, BLOCK_HW)
        v = rescaled_piece(tile[step], terms, HW, bn_mean_ptr is not None, PRE_ACTIVATION)
        u = store_with_tail(v, residual_ptr, out_ptr, image, offs, mask, ACTIVATION, "")
        if mask_ptr is not None:
            first = tl.program_id(0) % tl.cdiv(C, BLOCK_C) * BLOCK_C
            offs, mask = byte_offsets(
                first + tl.arange(0, BLOCK_C // 8) * 8, step * BLOCK_HW, C, HW, BLOCK_HW
            )
            bits = packed_bits(activation_passes(u, ACTIVATION))
            tl.store(mask_ptr + image // 8 + offs, bits, mask=mask)


@triton.jit
def gated_tile(
    pid, x_ptr, weight_ptr, bias_ptr, bn_mean_ptr, bn_var_ptr, bn_weight_ptr, bn_bias_ptr, bn_eps, gain,
    inv_hw, C, HW, stride_w,
    K: tl.constexpr, CIRCULAR: tl.constexpr, GATE: tl.constexpr, PRE_ACTIVATION: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_HW: tl.constexpr, STEPS: tl.constexpr,
    BLOCK_HALO: tl.constexpr, HALO_STEPS: tl.constexpr, pooled_ptr=None,
):  # fmt: skip
    """Load what program `pid` rescales: its image, channels and their mask, the STEPS pieces of its tile
    as loaded, and per channel the terms (gain * gate, then batch norm's). Its means go to pooled_ptr, if any.
    """
    C = multiple_of(C, HALO)
    blocks_c = tl.cdiv(C, BLOCK_C)
    n = pid // blocks_c
    image = n.to(tl.int64) * HW * C
    first = pid % blocks_c * BLOCK_C
    offs_c = first + tl.arange(0, BLOCK_C)
    mask_c = offs_c < C

    tile = ()
    for step in tl.static_range(STEPS):
        offs, mask = piece_offsets(offs_c, mask_c, step, C, HW, BLOCK_HW)
        tile += (tl.load(x_ptr + image + offs, mask=mask, other=0.0),)

    center, scale, shift = None, None, None
    if bn_mean_ptr is not None:
        center, scale, shift = batch_norm_terms(
            bn_mean_ptr, bn_var_ptr, bn_weight_ptr, bn_bias_ptr, bn_eps, offs_c, mask_c
        )
    total = tl.zeros((BLOCK_HW, BLOCK_C), tl.float32)
    for step in tl.static_range(STEPS):
        v = tile[step].to(tl.float32)
        if PRE_ACTIVATION != "identity":
            v = activate(normalised(v, center, scale, shift), PRE_ACTIVATION)
            v = tl.where(step * BLOCK_HW + tl.arange(0, BLOCK_HW)[:, None] < HW, v, 0.0)
        total += v
    y = pooled(total, center, scale, shift, inv_hw, PRE_ACTIVATION)
    if pooled_ptr is not None:
        tl.store(pooled_ptr + n.to(tl.int64) * C + offs_c, tl.sum(total, 0) * inv_hw, mask=mask_c)

    if K == 1:
        z = y * tl.load(weight_ptr).to(tl.float32)
    else:
        own = tl.minimum(C - first, BLOCK_C)
        halo = halo_mean(
            x_ptr + image, bn_mean_ptr, bn_var_ptr, bn_weight_ptr, bn_bias_ptr, bn_eps,
            inv_hw, first, own, C, HW, CIRCULAR, PRE_ACTIVATION, BLOCK_HALO, HALO_STEPS,
        )  # fmt: skip
        z = band(y, halo, weight_ptr, stride_w, first, own, C, K, CIRCULAR, BLOCK_K, BLOCK_C)
    if bias_ptr is not None:
        z += tl.load(bias_ptr).to(tl.float32)
    terms = (gain * gate_of(z, GATE),)
    if bn_mean_ptr is not None:
        terms += (center, scale, shift)
    return n, offs_c, mask_c, tile, terms


@triton.jit
def piece_offsets(offs_c, mask_c, step, C, HW, BLOCK_HW: tl.constexpr):
    """Offsets in the image of piece `step` of channels offs_c, and their mask: [hw, channels]."""
    C = multiple_of(C, HALO)
    offs_hw = tl.arange(0, BLOCK_HW)[:, None]
    return offs_hw * C + offs_c[None, :] + step * BLOCK_HW * C, mask_c[None, :] & (
        offs_hw + step * BLOCK_HW < HW
    )


@triton.jit
def byte_offsets(groups, start, C, HW, BLOCK_HW: tl.constexpr):
    """Offsets of an image's bits, and their mask: [hw from start, groups of 8 channels].

    groups: first channel of each; those that no image has are masked.
    """
    offs_hw = start + tl.arange(0, BLOCK_HW)[:, None]
    groups = groups[None, :]
    return offs_hw * (C // 8) + groups // 8, (offs_hw < HW) & (groups >= 0) & (groups < C)


@triton.jit
def rescaled_piece(v, terms, number, BATCH_NORM: tl.constexpr, PRE_ACTIVATION: tl.constexpr):
    """gain * gate * xhat of a piece of the tile, fp32; number: as for `unseen`."""
    if BATCH_NORM:
        v = normalised(unseen(v, number).to(tl.float32), terms[1], terms[2], terms[3])
    return activate(v.to(tl.float32), PRE_ACTIVATION) * terms[0][None, :]


@triton.jit
def normalised(v, center, scale, shift):
    """Batch norm of a tile [hw, channels]; v itself where there are no terms."""
    if center is not None:
        v = (v - center[None, :]) * scale[None, :] + shift[None, :]
    return v


@triton.jit
def pooled(total, center, scale, shift, inv_hw, PRE_ACTIVATION: tl.constexpr):
    """Mean per channel of what `total` sums, batch norm included: without an activation it commutes."""
    y = tl.sum(total, 0) * inv_hw
    if PRE_ACTIVATION == "identity" and center is not None:
        y = (y - center) * scale + shift
    return y


@triton.jit
def halo_mean(
    image_ptr, bn_mean_ptr, bn_var_ptr, bn_weight_ptr, bn_bias_ptr, bn_eps, inv_hw, first, own, C, HW,
    CIRCULAR: tl.constexpr, PRE_ACTIVATION: tl.constexpr, BLOCK_HALO: tl.constexpr, HALO_STEPS: tl.constexpr,
):  # fmt: skip
    """Means [2 * HALO] of the HALO channels before `first` and of those from first + own on.

    Two whole vectors of every element: anything narrower would cost as many sectors.
    """
    lane = tl.arange(0, 2 * HALO)
    start = side_start(lane // HALO, first, own, C, CIRCULAR)
    offs_c = start + lane % HALO
    mask_c = (start >= 0) & (start < C)
    offs_hw = tl.arange(0, BLOCK_HALO)[:, None]
    center, scale, shift = None, None, None
    if bn_mean_ptr is not None:
        center, scale, shift = batch_norm_terms(
            bn_mean_ptr, bn_var_ptr, bn_weight_ptr, bn_bias_ptr, bn_eps, offs_c, mask_c
        )
    total = tl.zeros((BLOCK_HALO, 2 * HALO), tl.float32)
    for step in tl.static_range(HALO_STEPS):
        mask = mask_c[None, :] & (offs_hw + step * BLOCK_HALO < HW)
        ptrs = image_ptr + ((offs_hw + step * BLOCK_HALO) * C + offs_c[None, :])
        v = tl.load(ptrs, mask=mask, other=0.0).to(tl.float32)
        if PRE_ACTIVATION != "identity":
            v = tl.where(mask, activate(normalised(v, center, scale, shift), PRE_ACTIVATION), 0.0)
        total += v
    return pooled(total, center, scale, shift, inv_hw, PRE_ACTIVATION)


@triton.jit
def side_start(side, first, own, C, CIRCULAR: tl.constexpr):
    """First of the HALO channels before `first` (side 0), or of those from first + own on (side 1)."""
    start = tl.where(side == 0, first - HALO, first + own)
    if CIRCULAR:
        start = tl.where(start < 0, start + C, tl.where(start >= C, start - C, start))
    return multiple_of(start, HALO)


@triton.jit
def band(
    y, halo, weight_ptr, stride_w, first, own, C,
    K: tl.constexpr, CIRCULAR: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """sum_j w[j] * y[c + j - K // 2] of the tile's channels; taps in parallel, absent ones selected away."""
    entry = tl.arange(0, BLOCK_C * BLOCK_K)
    tap = entry % BLOCK_K
    place = entry // BLOCK_K + tap - K // 2
    inside = (place >= 0) & (place < own)
    valid = tap < K
    if not CIRCULAR:
        valid = valid & (first + place >= 0) & (first + place < C)
    beside = tl.where(place < 0, HALO + place, HALO + place - own)
    near = tl.gather(y, tl.where(inside, place, 0), 0)
    far = tl.gather(halo, tl.minimum(tl.maximum(beside, 0), 2 * HALO - 1), 0)
    w = tl.load(weight_ptr + tap * stride_w, mask=tap < K, other=0.0).to(tl.float32)
    terms = tl.where(valid, w * tl.where(inside, near, far), 0.0)
    return tl.sum(tl.reshape(terms, (BLOCK_C, BLOCK_K)), 1)
