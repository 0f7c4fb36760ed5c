"""The map in one launch: a contiguous tile stays in registers between its sums and its rescaling."""

import triton
import triton.language as tl

from .addressing import multiple_of
from .bits import packed_bits
from .elementwise import activate, activation_passes, batch_norm_terms, gate_of, unseen
from .epilogue import store_with_tail


@triton.jit
def tile_kernel(
    x_ptr, weight_ptr, bias_ptr, residual_ptr, out_ptr, pooled_ptr, mask_ptr,
    bn_mean_ptr, bn_var_ptr, bn_weight_ptr, bn_bias_ptr, bn_eps, gain, C, stride_w,
    HW: tl.constexpr, K: tl.constexpr, CIRCULAR: tl.constexpr, GATE: tl.constexpr,
    PRE_ACTIVATION: tl.constexpr, ACTIVATION: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_HALO: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_HW: tl.constexpr, CHUNKS: tl.constexpr, BLOCK_TAIL: tl.constexpr,
    VEC: tl.constexpr, WINDOWED: tl.constexpr, PACKED: tl.constexpr,
):  # fmt: skip
    """out[n, c, :] = activation(gain * xhat * g[n, c] + residual), xhat = pre_activation(batch_norm(x)).
    One program owns BLOCK_C channels of one image, in registers as CHUNKS blocks of BLOCK_HW columns and one
    of BLOCK_TAIL. Of the K // 2 channels on either side, the halo, it only forms sums: no program waits.
    Reads x and residual once (2 S; the halo from L2), writes out (S); each: [N, C, HW] contiguous.
    VEC divides the elements of an image and of a block. WINDOWED: not those of a row. Then a row is read from
    the last vector that starts at or before it, and each vector is stored by the row of its first lane.
    For a backward pass also pooled, the means of x, and mask, a bit per element (VEC is 8): None, or written.
    """
    n, offs_c, mask_c, tile, terms, next_terms = gated_tile(
        tl.program_id(0), x_ptr, weight_ptr, bias_ptr, bn_mean_ptr, bn_var_ptr, bn_weight_ptr, bn_bias_ptr,
        bn_eps, gain, C, stride_w, HW, K, CIRCULAR, GATE, PRE_ACTIVATION, BLOCK_K, BLOCK_HALO,
        BLOCK_C, BLOCK_HW, CHUNKS, BLOCK_TAIL, VEC, WINDOWED, pooled_ptr,
    )  # fmt: skip
    image = multiple_of(n.to(tl.int64) * C * HW, VEC)
    for i in tl.static_range(CHUNKS + (BLOCK_TAIL > 0)):
        offs, mask, v = rescaled_chunk(
            tile[i], i, offs_c, mask_c, terms, next_terms, C, HW, bn_mean_ptr is not None, PRE_ACTIVATION,
            BLOCK_HW, CHUNKS, BLOCK_TAIL, VEC, WINDOWED, PACKED,
        )  # fmt: skip
        u = store_with_tail(v, residual_ptr, out_ptr, image, offs, mask, ACTIVATION, "")
        if mask_ptr is not None:
            offs, _, mask = octet_offsets(
                offs_c, mask_c, i * BLOCK_HW, HW, BLOCK_HW if i < CHUNKS else BLOCK_TAIL, VEC, WINDOWED
            )
            bits = packed_bits(activation_passes(u, ACTIVATION))
            tl.store(mask_ptr + image // 8 + offs, bits, mask=mask)


@triton.jit
def gated_tile(
    pid, x_ptr, weight_ptr, bias_ptr, bn_mean_ptr, bn_var_ptr, bn_weight_ptr, bn_bias_ptr, bn_eps, gain,
    C, stride_w, HW: tl.constexpr, K: tl.constexpr, CIRCULAR: tl.constexpr, GATE: tl.constexpr,
    PRE_ACTIVATION: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_HALO: tl.constexpr, BLOCK_C: tl.constexpr,
    BLOCK_HW: tl.constexpr, CHUNKS: tl.constexpr, BLOCK_TAIL: tl.constexpr,
    VEC: tl.constexpr, WINDOWED: tl.constexpr, pooled_ptr=None,
):  # fmt: skip
    """Load what program `pid` rescales: its image, channels and their mask, its tile as loaded, and per
    channel the terms (gain * gate, then batch norm's), WINDOWED also those of the channel after.
    The means of x go to pooled where there is one; then nothing but batch norm comes before pooling.
    """
    blocks_c = tl.cdiv(C, BLOCK_C)
    n = pid // blocks_c
    first_c = pid % blocks_c * BLOCK_C
    count = tl.minimum(BLOCK_C, C - first_c)
    rows = tl.arange(0, BLOCK_C)
    offs_c = first_c + rows
    mask_c = rows < count
    x_ptr += multiple_of(n.to(tl.int64) * C * HW, VEC)

    # The halo first: its sums take few registers while the tile arrives.
    halo_y = None
    if K > 1:
        halo_c, mask_halo = halo_channels(first_c, count, C, K, CIRCULAR, BLOCK_HALO)
        halo_center, halo_scale, halo_shift = None, None, None
        if bn_mean_ptr is not None:
            halo_center, halo_scale, halo_shift = batch_norm_terms(
                bn_mean_ptr, bn_var_ptr, bn_weight_ptr, bn_bias_ptr, bn_eps, halo_c, mask_halo
            )
        _, halo_mean = row_means(
            x_ptr, halo_c, mask_halo, halo_center, halo_scale, halo_shift,
            HW, PRE_ACTIVATION, False, BLOCK_HALO, BLOCK_HW, CHUNKS, BLOCK_TAIL, VEC, WINDOWED,
        )  # fmt: skip
        halo_y = normalised_mean(halo_mean, halo_center, halo_scale, halo_shift, PRE_ACTIVATION)
    center, scale, shift = None, None, None
    if bn_mean_ptr is not None:
        center, scale, shift = batch_norm_terms(
            bn_mean_ptr, bn_var_ptr, bn_weight_ptr, bn_bias_ptr, bn_eps, offs_c, mask_c
        )
    tile, mean = row_means(
        x_ptr, offs_c, mask_c, center, scale, shift,
        HW, PRE_ACTIVATION, True, BLOCK_C, BLOCK_HW, CHUNKS, BLOCK_TAIL, VEC, WINDOWED,
    )  # fmt: skip
    if pooled_ptr is not None:
        tl.static_assert(PRE_ACTIVATION == "identity", "the means are not of x")
        tl.store(pooled_ptr + n.to(tl.int64) * C + offs_c, mean, mask=mask_c)
    y = normalised_mean(mean, center, scale, shift, PRE_ACTIVATION)

    z = banded(y, halo_y, weight_ptr, stride_w, first_c, count, C, K, CIRCULAR, BLOCK_K, BLOCK_HALO, BLOCK_C)
    if bias_ptr is not None:
        z += tl.load(bias_ptr).to(tl.float32)
    factor = gain * gate_of(z, GATE)

    terms = (factor,)
    if bn_mean_ptr is not None:
        terms = factor, center, scale, shift
    next_terms = ()
    if WINDOWED:
        # A vector may run into the next row, which is in the same block.
        next_c = tl.minimum(rows + 1, BLOCK_C - 1)
        next_terms = (tl.gather(factor, next_c, 0),)
        if bn_mean_ptr is not None:
            next_terms += batch_norm_terms(
                bn_mean_ptr, bn_var_ptr, bn_weight_ptr, bn_bias_ptr, bn_eps, first_c + next_c, next_c < count
            )
    return n, offs_c, mask_c, tile, terms, next_terms


@triton.jit
def rescaled_chunk(
    chunk, i: tl.constexpr, offs_c, mask_c, terms, next_terms, number, HW: tl.constexpr,
    BATCH_NORM: tl.constexpr, PRE_ACTIVATION: tl.constexpr, BLOCK_HW: tl.constexpr, CHUNKS: tl.constexpr,
    BLOCK_TAIL: tl.constexpr, VEC: tl.constexpr, WINDOWED: tl.constexpr, PACKED: tl.constexpr,
):  # fmt: skip
    """Chunk i of the tile: its offsets in the image, which of them the rows store, and gain * gate * xhat.

    number: as for `unseen`.
    """
    offs, _, mask, element = chunk_offsets(
        offs_c, mask_c, i * BLOCK_HW, HW, BLOCK_HW if i < CHUNKS else BLOCK_TAIL,
        i * BLOCK_HW + (BLOCK_HW if i < CHUNKS else BLOCK_TAIL) > HW, VEC, WINDOWED,
    )  # fmt: skip
    v = (unseen(chunk, number) if PACKED else chunk).to(tl.float32)
    if BATCH_NORM:
        v -= spread(terms, next_terms, 1, element, HW, WINDOWED)
        v *= spread(terms, next_terms, 2, element, HW, WINDOWED)
        v += spread(terms, next_terms, 3, element, HW, WINDOWED)
    return offs, mask, activate(v, PRE_ACTIVATION) * spread(terms, next_terms, 0, element, HW, WINDOWED)


@triton.jit
def spread(terms, next_terms, which: tl.constexpr, element, HW: tl.constexpr, WINDOWED: tl.constexpr):
    """A term of the channel that each element is in: past the end of a row, of the next one."""
    term = terms[which][:, None]
    if WINDOWED:
        term = tl.where(element < HW, term, next_terms[which][:, None])
    return term


@triton.jit
def chunk_offsets(
    offs_c, mask_c, start, HW: tl.constexpr, BLOCK: tl.constexpr, MASKED: tl.constexpr, VEC: tl.constexpr,
    WINDOWED: tl.constexpr,
):  # fmt: skip
    """BLOCK columns from start of rows offs_c: offsets in the image, whether a vector there holds anything
    of its row, whether the row stores it, and the element of the row (below 0, from HW: another row's).
    """
    lane = start + tl.arange(0, BLOCK)[None, :]
    row = multiple_of(offs_c * HW, VEC)
    if WINDOWED:
        lead = (offs_c * HW - row)[:, None]
        vector = multiple_of(lane, VEC)
        loaded = mask_c[:, None] & (vector < lead + HW)
        stored = loaded & (vector >= lead)
        element = lane - lead
    else:
        loaded = mask_c[:, None] & (multiple_of(lane, VEC) < HW) if MASKED else mask_c[:, None]
        stored = loaded
        element = lane
    return row[:, None] + lane, loaded, stored, element


@triton.jit
def octet_offsets(
    offs_c, mask_c, start, HW: tl.constexpr, BLOCK: tl.constexpr, VEC: tl.constexpr, WINDOWED: tl.constexpr
):
    """Offsets // 8 of every eighth column of `chunk_offsets`, loaded and stored. VEC is 8."""
    tl.static_assert(VEC == 8, "a vector is a byte")
    octet = start // 8 + tl.arange(0, BLOCK // 8)[None, :]
    row = offs_c * HW // 8
    lead = (offs_c * HW - row * 8)[:, None]
    loaded = mask_c[:, None] & (octet * 8 < lead + HW)
    return row[:, None] + octet, loaded, loaded & (octet * 8 >= lead)


@triton.jit
def load_chunk(
    image_ptr, offs_c, mask_c, start, center, scale, shift, HW: tl.constexpr, PRE_ACTIVATION: tl.constexpr,
    BLOCK: tl.constexpr, MASKED: tl.constexpr, VEC: tl.constexpr, WINDOWED: tl.constexpr,
):  # fmt: skip
    """[rows, BLOCK] of x as loaded, and what it adds to the sum over its rows."""
    offs, loaded, _, element = chunk_offsets(offs_c, mask_c, start, HW, BLOCK, MASKED, VEC, WINDOWED)
    v = tl.load(image_ptr + offs, mask=loaded, other=0.0)
    summand = v.to(tl.float32)
    if PRE_ACTIVATION != "identity":
        if center is not None:
            summand = (summand - center[:, None]) * scale[:, None] + shift[:, None]
        summand = activate(summand, PRE_ACTIVATION)
    if WINDOWED or MASKED:
        summand = tl.where((element >= 0) & (element < HW), summand, 0.0)
    return v, summand


@triton.jit
def row_means(
    image_ptr, offs_c, mask_c, center, scale, shift, HW: tl.constexpr, PRE_ACTIVATION: tl.constexpr,
    KEEP: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_HW: tl.constexpr, CHUNKS: tl.constexpr,
    BLOCK_TAIL: tl.constexpr, VEC: tl.constexpr, WINDOWED: tl.constexpr,
):  # fmt: skip
    """The rows offs_c of an image as a tuple of chunks (empty unless KEEP), and their means of xhat."""
    tile = ()
    total = tl.zeros((BLOCK_C, BLOCK_HW), tl.float32)
    if KEEP:
        for i in tl.static_range(CHUNKS):
            v, summand = load_chunk(
                image_ptr, offs_c, mask_c, i * BLOCK_HW, center, scale, shift,
                HW, PRE_ACTIVATION, BLOCK_HW, (i + 1) * BLOCK_HW > HW, VEC, WINDOWED,
            )  # fmt: skip
            total += summand
            tile += (v,)
    else:
        for start in tl.range(0, CHUNKS * BLOCK_HW, BLOCK_HW):
            _, summand = load_chunk(
                image_ptr, offs_c, mask_c, start, center, scale, shift,
                HW, PRE_ACTIVATION, BLOCK_HW, CHUNKS * BLOCK_HW > HW, VEC, WINDOWED,
            )  # fmt: skip
            total += summand
    y = tl.sum(total, 1)
    if BLOCK_TAIL > 0:
        v, summand = load_chunk(
            image_ptr, offs_c, mask_c, CHUNKS * BLOCK_HW, center, scale, shift,
            HW, PRE_ACTIVATION, BLOCK_TAIL, CHUNKS * BLOCK_HW + BLOCK_TAIL > HW, VEC, WINDOWED,
        )  # fmt: skip
        y += tl.sum(summand, 1)
        tile += (v,)
    return tile, y * (1.0 / HW)


@triton.jit
def normalised_mean(y, center, scale, shift, PRE_ACTIVATION: tl.constexpr):
    """The mean of xhat from what `row_means` returns: without an activation batch norm commutes with it."""
    if PRE_ACTIVATION == "identity" and center is not None:
        y = (y - center) * scale + shift
    return y


@triton.jit
def halo_channels(first_c, count, C, K: tl.constexpr, CIRCULAR: tl.constexpr, BLOCK_HALO: tl.constexpr):
    """The K // 2 channels before first_c, then those from first_c + count on, and which of them exist."""
    sides = tl.arange(0, BLOCK_HALO)
    halo_c = first_c - K // 2 + sides + tl.where(sides < K // 2, 0, count)
    if CIRCULAR:
        halo_c = (halo_c + C) % C
    return halo_c, (sides < K - 1) & (halo_c >= 0) & (halo_c < C)


@triton.jit
def banded(
    y, halo_y, weight_ptr, stride_w, first_c, count, C, K: tl.constexpr, CIRCULAR: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_HALO: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """sum_j w[j] * y[c + j - K // 2] for the tile's channels; halo_y: of `halo_channels`."""
    # All neighbours as one vector: entry i is tap i % BLOCK_K of row i // BLOCK_K.
    entry = tl.arange(0, BLOCK_C * BLOCK_K)
    offs_k = entry % BLOCK_K
    src = entry // BLOCK_K + offs_k - K // 2
    valid = offs_k < K
    neighbour_y = gathered(y, src, BLOCK_C)
    if K > 1:
        outside = gathered(halo_y, src + K // 2 - tl.where(src < 0, 0, count), BLOCK_HALO)
        neighbour_y = tl.where((src >= 0) & (src < count), neighbour_y, outside)
        if not CIRCULAR:
            valid &= (first_c + src >= 0) & (first_c + src < C)
    # Selected away, never multiplied by zero: 0 * NaN would poison channels out of reach.
    w = tl.load(weight_ptr + offs_k * stride_w, mask=offs_k < K, other=0.0).to(tl.float32)
    return tl.sum(tl.reshape(tl.where(valid, w * neighbour_y, 0.0), (BLOCK_C, BLOCK_K)), 1)


@triton.jit
def gathered(y, index, LENGTH: tl.constexpr):
    """y[index], y: [LENGTH]; index may point anywhere."""
    return tl.gather(y, tl.minimum(tl.maximum(index, 0), LENGTH - 1), 0)
