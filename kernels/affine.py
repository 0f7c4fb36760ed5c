"""Second pass over the maps, element by element in the order of memory, with coefficients per channel.

The coefficients are of an image and a channel, [N, C], or of a channel, [C]: whatever came before the pass, a
batch norm with its own statistics too, fits in them.
"""

import triton
import triton.language as tl

from .addressing import multiple_of
from .bits import packed_bits, unpacked_bits
from .elementwise import activate, activation_gradient, activation_passes


@triton.jit
def affine_kernel(
    x_ptr, center_ptr, factor_ptr, offset_ptr, residual_ptr, out_ptr, mask_ptr, C, HW, size,
    ACTIVATION: tl.constexpr, CHANNELS_LAST: tl.constexpr, BLOCK: tl.constexpr, VEC: tl.constexpr,
):  # fmt: skip
    """out = activation(u), u = (x - center[c]) * factor[n, c] + offset[n, c] + residual; mask: u's bits.
    One program owns BLOCK of the `size` = C * HW elements of an image, as rows of VEC that share a channel
    or, if CHANNELS_LAST, are of neighbouring ones. Reads x, residual (2 S), writes out (S), mask (S / 16).
    x, residual, out: contiguous, [N, C, HW] or, if CHANNELS_LAST, [N, HW, C]; center: [C]; factor, offset:
    [N, C] fp32. All but x, factor and out may be None.
    """
    n, start, offs, mask, offs_c, mask_c = rows_of_image(C, HW, size, CHANNELS_LAST, BLOCK, VEC)
    image = multiple_of(n * size, VEC)
    u = before_activation(
        x_ptr, residual_ptr, center_ptr, factor_ptr, offset_ptr, n * C, image + offs, mask, offs_c, mask_c
    )
    tl.store(out_ptr + image + offs, activate(u, ACTIVATION).to(out_ptr.dtype.element_ty), mask=mask)
    if mask_ptr is not None:
        bits = tl.reshape(activation_passes(u, ACTIVATION), (BLOCK // 8, 8))
        octets, inside = octets_of_image(start, size, BLOCK)
        tl.store(mask_ptr + n * (size // 8) + octets, packed_bits(bits), mask=inside)


@triton.jit
def affine_backward_kernel(
    dy_ptr, x_ptr, residual_ptr, mask_ptr, center_ptr, factor_ptr, offset_ptr, beta_ptr, gamma_ptr,
    d_x_ptr, d_residual_ptr, C, HW, size,
    ACTIVATION: tl.constexpr, CHANNELS_LAST: tl.constexpr, BLOCK: tl.constexpr, VEC: tl.constexpr,
):  # fmt: skip
    """d_x = p * factor[n, c] + (x - center[c]) * beta[c] + gamma[n, c]; d_residual = p = dy * activation'(u).
    p by the bits of mask, or by u of `affine_kernel`; ACTIVATION "identity": p is dy, as an earlier pass may
    have stored it. Reads dy (S) and what p and beta need, writes d_x and d_residual (2 S). Programs and
    layouts are those of `affine_kernel`; beta: [C], gamma: [N, C] fp32. All but dy may be None.
    """
    n, start, offs, mask, offs_c, mask_c = rows_of_image(C, HW, size, CHANNELS_LAST, BLOCK, VEC)
    image = multiple_of(n * size, VEC)
    p = tl.load(dy_ptr + image + offs, mask=mask, other=0.0).to(tl.float32)
    if mask_ptr is not None:
        octets, inside = octets_of_image(start, size, BLOCK)
        bits = unpacked_bits(tl.load(mask_ptr + n * (size // 8) + octets, mask=inside, other=0))
        p = tl.where(tl.reshape(bits, (BLOCK // VEC, VEC)), p, 0.0)
    elif ACTIVATION != "identity":
        u = before_activation(
            x_ptr, residual_ptr, center_ptr, factor_ptr, offset_ptr, n * C, image + offs, mask, offs_c, mask_c
        )
        p = activation_gradient(p, u, ACTIVATION)
    if d_residual_ptr is not None:
        tl.store(d_residual_ptr + image + offs, p.to(d_residual_ptr.dtype.element_ty), mask=mask)
    if d_x_ptr is not None:
        d_x = p * tl.load(factor_ptr + n * C + offs_c, mask=mask_c, other=0.0)
        if beta_ptr is not None:
            x = tl.load(x_ptr + image + offs, mask=mask, other=0.0).to(tl.float32)
            if center_ptr is not None:
                x -= tl.load(center_ptr + offs_c, mask=mask_c, other=0.0).to(tl.float32)
            d_x += x * tl.load(beta_ptr + offs_c, mask=mask_c, other=0.0)
        d_x += tl.load(gamma_ptr + n * C + offs_c, mask=mask_c, other=0.0)
        tl.store(d_x_ptr + image + offs, d_x.to(d_x_ptr.dtype.element_ty), mask=mask)


@triton.jit
def rows_of_image(C, HW, size, CHANNELS_LAST: tl.constexpr, BLOCK: tl.constexpr, VEC: tl.constexpr):
    """This program's image, its first element there, its elements [BLOCK / VEC, VEC] and their channels.

    VEC divides HW, or if CHANNELS_LAST C: one division serves a row.
    """
    blocks = tl.cdiv(size, BLOCK)
    pid = tl.program_id(0)
    n = (pid // blocks).to(tl.int64)
    start = (pid % blocks).to(tl.int64) * BLOCK
    rows = tl.arange(0, BLOCK // VEC) * VEC
    lanes = tl.arange(0, VEC)[None, :]
    offs = start + (rows[:, None] + lanes)
    mask = offs < multiple_of(size, VEC)
    # 32-bit divisions: what is before the block's own row or column is divided once, as a scalar.
    if CHANNELS_LAST:
        offs_c = (((start % C).to(tl.int32) + rows) % C)[:, None] + lanes
    else:
        offs_c = ((start // HW).to(tl.int32) + ((start % HW).to(tl.int32) + rows) // HW)[:, None]
    return n, start, offs, mask, offs_c, offs_c < C


@triton.jit
def octets_of_image(start, size, BLOCK: tl.constexpr):
    """The bytes [BLOCK / 8, 1] of a mask that belong to a program's elements, and which of them exist."""
    octets = start // 8 + tl.arange(0, BLOCK // 8)[:, None]
    return octets, octets < size // 8


@triton.jit
def before_activation(
    x_ptr, residual_ptr, center_ptr, factor_ptr, offset_ptr, first, offs, mask, offs_c, mask_c
):
    """(x - center[c]) * factor[n, c] + offset[n, c] + residual, fp32; first: n * C."""
    u = tl.load(x_ptr + offs, mask=mask, other=0.0).to(tl.float32)
    if center_ptr is not None:
        u -= tl.load(center_ptr + offs_c, mask=mask_c, other=0.0).to(tl.float32)
    u *= tl.load(factor_ptr + first + offs_c, mask=mask_c, other=0.0)
    if offset_ptr is not None:
        u += tl.load(offset_ptr + first + offs_c, mask=mask_c, other=0.0)
    if residual_ptr is not None:
        u += tl.load(residual_ptr + offs, mask=mask, other=0.0).to(tl.float32)
    return u
