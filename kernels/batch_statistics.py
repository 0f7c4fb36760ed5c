"""Statistics of a batch: mean and spread per image and channel from one read, then of all images.

A spread is a sum of squared distances from the mean of what it covers. Two of them are combined by Chan's
formula (https://doi.org/10.2307/2683386); sums of squares would cancel where the mean is large. Until the end
all means count from the channel's first element, so that they are rounded like deviations.
"""

import triton
import triton.language as tl

from .addressing import multiple_of


@triton.jit
def image_statistics_kernel(
    x_ptr, mean_ptr, spread_ptr, C, HW, chunk, stride_c, stride_hw,
    SPLITS: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_HW: tl.constexpr,
    VEC_C: tl.constexpr, VEC_HW: tl.constexpr,
):  # fmt: skip
    """mean[n, s, c], spread[n, s, c] of x - x[0, c, 0] over the s-th range of hw, `chunk` long; fp32.
    One program owns BLOCK_C channels of one image and one of SPLITS ranges. Every place of its tile follows
    a mean and a spread of its own (Welford), which are combined behind the loop.
    Reads x (S), [N, C, HW] with the strides stride_c and stride_hw, one of which is 1; chunk: whole blocks.
    """
    pid = tl.program_id(0)
    blocks_c = tl.cdiv(C, BLOCK_C)
    n = (pid // (blocks_c * SPLITS)).to(tl.int64)
    split = pid // blocks_c % SPLITS
    offs_c = pid % blocks_c * BLOCK_C + tl.arange(0, BLOCK_C)
    mask_c = offs_c < multiple_of(C, VEC_C)
    image = multiple_of(n * C * HW, VEC_C * VEC_HW)
    row = offs_c.to(tl.int64)[:, None] * multiple_of(stride_c, VEC_HW)
    origin = tl.load(x_ptr + row, mask=mask_c[:, None], other=0.0).to(tl.float32)
    row += image

    begin = split * chunk
    length = range_length(split, chunk, HW)
    means = tl.zeros((BLOCK_C, BLOCK_HW), tl.float32)
    spreads = tl.zeros((BLOCK_C, BLOCK_HW), tl.float32)
    seen = 0.0
    for start in range(begin, begin + length, BLOCK_HW):
        offs_hw = start + tl.arange(0, BLOCK_HW)
        mask = mask_c[:, None] & (offs_hw < multiple_of(HW, VEC_HW))[None, :]
        offs = row + offs_hw.to(tl.int64)[None, :] * multiple_of(stride_hw, VEC_C)
        x = tl.load(x_ptr + offs, mask=mask, other=0.0).to(tl.float32) - origin
        seen += 1.0
        step = tl.where(mask, x - means, 0.0)
        means += step * (1.0 / seen)
        spreads += step * (x - means)

    # The last block may end early: places behind that saw one element less.
    counts = tl.maximum(length - tl.arange(0, BLOCK_HW) + (BLOCK_HW - 1), 0) // BLOCK_HW
    counts = counts.to(tl.float32)[None, :]
    scale = 1.0 / tl.maximum(length, 1).to(tl.float32)
    mean = tl.sum(means * counts, 1) * scale
    mean += tl.sum((means - mean[:, None]) * counts, 1) * scale  # what the rounding of the first sum left
    away = means - mean[:, None]
    out = (n * SPLITS + split) * C + offs_c
    tl.store(mean_ptr + out, mean, mask=mask_c)
    tl.store(spread_ptr + out, tl.sum(spreads + away * away * counts, 1), mask=mask_c)


@triton.jit
def batch_statistics_kernel(
    x_ptr, partial_mean_ptr, partial_spread_ptr, means_ptr, mean_ptr, var_ptr, unbiased_ptr,
    N, C, HW, chunk, stride_c, inv_count, correction,
    SPLITS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """means[n, c] of every image; mean[c], var[c] = spread * inv_count of all; unbiased = var * correction.
    One program owns BLOCK_C channels of all images, BLOCK_N at a time, in a fixed order.
    Reads what `image_statistics_kernel` wrote, [N, SPLITS, C] (means twice, from cache); all fp32, sums fp64.
    """
    offs_c = (tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C))[None, :]
    mask_c = offs_c < C
    origin = tl.load(x_ptr + offs_c.to(tl.int64) * stride_c, mask=mask_c, other=0.0).to(tl.float32)
    total = tl.zeros((BLOCK_N, BLOCK_C), tl.float64)
    for start in range(0, N, BLOCK_N):
        offs_n = (start + tl.arange(0, BLOCK_N)).to(tl.int64)[:, None]
        mask = mask_c & (offs_n < N)
        partial = offs_n * (SPLITS * C) + offs_c
        of_image = tl.load(partial_mean_ptr + partial, mask=mask, other=0.0)
        rest = tl.zeros((BLOCK_N, BLOCK_C), tl.float32)
        for split in tl.static_range(1, SPLITS):
            mean = tl.load(partial_mean_ptr + partial + split * C, mask=mask, other=0.0)
            rest += (mean - of_image) * range_length(split, chunk, HW).to(tl.float32)
        of_image += rest * (1.0 / HW)
        tl.store(means_ptr + offs_n * C + offs_c, origin + of_image, mask=mask)
        total += of_image
    center = (tl.sum(total, 0) / N).to(tl.float32)[None, :]

    spread = tl.zeros((BLOCK_N, BLOCK_C), tl.float64)
    for start in range(0, N, BLOCK_N):
        offs_n = (start + tl.arange(0, BLOCK_N)).to(tl.int64)[:, None]
        mask = mask_c & (offs_n < N)
        partial = offs_n * (SPLITS * C) + offs_c
        for split in tl.static_range(SPLITS):
            away = tl.load(partial_mean_ptr + partial + split * C, mask=mask, other=0.0) - center
            own = tl.load(partial_spread_ptr + partial + split * C, mask=mask, other=0.0)
            own += away * away * range_length(split, chunk, HW).to(tl.float32)
            spread += tl.where(mask, own, 0.0)
    var = (tl.sum(spread, 0) * inv_count).to(tl.float32)[None, :]
    tl.store(mean_ptr + offs_c, origin + center, mask=mask_c)
    tl.store(var_ptr + offs_c, var, mask=mask_c)
    tl.store(unbiased_ptr + offs_c, var * correction, mask=mask_c)


@triton.jit
def range_length(split, chunk, HW):
    """Elements of the split-th range of hw; the last ones may be short or empty."""
    return tl.minimum(tl.maximum(HW - split * chunk, 0), chunk)
