"""A 1x1 convolution whose result is rescaled before it leaves the registers."""

import triton
import triton.language as tl


@triton.jit
def projected_tile(
    pid, x_ptr, projection_ptr, factor_ptr, summand_ptr, C, HW: tl.constexpr,
    REDUCED: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_HW: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_I: tl.constexpr,
):  # fmt: skip
    """One program's part of y[n, p, c] = factor[n, c] * sum_i projection[c, i] * x[n, p, i] + summand[n, c].

    It stays within an image, so that factor and summand are one row. Those that share positions follow
    each other: x comes from memory once, the matrix stays in L2.
    x: [N, HW, REDUCED], projection: [C, REDUCED], factor, summand: [N, C], all contiguous.

    Returns: image, positions [BLOCK_HW], channels [BLOCK_C], mask and fp32 values [BLOCK_HW, BLOCK_C].
    """
    blocks_c = tl.cdiv(C, BLOCK_C)
    blocks_hw: tl.constexpr = (HW + BLOCK_HW - 1) // BLOCK_HW
    n = (pid // (blocks_c * blocks_hw)).to(tl.int64)
    offs_hw = pid // blocks_c % blocks_hw * BLOCK_HW + tl.arange(0, BLOCK_HW)
    first = pid % blocks_c * BLOCK_C
    offs_c = tl.max_contiguous(tl.multiple_of(first + tl.arange(0, BLOCK_C), BLOCK_C), BLOCK_C)
    mask_hw, mask_c = offs_hw < HW, offs_c < C

    rows = x_ptr + (n * HW + offs_hw)[:, None] * REDUCED
    columns = projection_ptr + offs_c[None, :] * REDUCED
    value = tl.zeros((BLOCK_HW, BLOCK_C), tl.float32)
    for start in range(0, REDUCED, BLOCK_I):
        offs_i = start + tl.arange(0, BLOCK_I)
        mask_i = offs_i < REDUCED
        x = tl.load(rows + offs_i[None, :], mask=mask_hw[:, None] & mask_i[None, :], other=0.0)
        matrix = tl.load(columns + offs_i[:, None], mask=mask_i[:, None] & mask_c[None, :], other=0.0)
        value = tl.dot(x, matrix, value, input_precision=PRECISION)

    factor = tl.load(factor_ptr + n * C + offs_c, mask=mask_c, other=0.0).to(tl.float32)
    value *= factor[None, :]
    if summand_ptr is not None:
        summand = tl.load(summand_ptr + n * C + offs_c, mask=mask_c, other=0.0).to(tl.float32)
        value += summand[None, :]
    return n, offs_hw, offs_c, mask_hw[:, None] & mask_c[None, :], value


@triton.jit
def product_kernel(
    x_ptr, projection_ptr, factor_ptr, summand_ptr, out_ptr, C, HW: tl.constexpr,
    REDUCED: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_HW: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_I: tl.constexpr,
):  # fmt: skip
    """out[n, p, c] = `projected_tile`: [N, HW, C], contiguous."""
    n, offs_hw, offs_c, mask, value = projected_tile(
        tl.program_id(0), x_ptr, projection_ptr, factor_ptr, summand_ptr, C, HW, REDUCED, PRECISION,
        BLOCK_HW, BLOCK_C, BLOCK_I,
    )  # fmt: skip
    at = n * C * HW + offs_hw.to(tl.int64)[:, None] * C + offs_c[None, :]
    tl.store(out_ptr + at, value.to(out_ptr.dtype.element_ty), mask=mask)
