"""What follows the gates in an eager call; in a compiled graph Inductor generates it."""

import triton
import triton.language as tl

from .bits import packed_bits
from .elementwise import activate, activation_passes


@triton.jit
def store_with_tail(
    v, residual_ptr, out_ptr, image, offs, mask, ACTIVATION: tl.constexpr, EVICTION: tl.constexpr,
    mask_ptr=None, offs_bits=None, mask_bits=None,
):  # fmt: skip
    """Stores activation(v + residual) at image + offs of out; v is fp32, image a scalar.

    mask_ptr: where given, bit e % 8 of byte e // 8 says whether element e passes a gradient. offs_bits and
    mask_bits are offs // 8 and mask of every eighth column.
    """
    if residual_ptr is not None:
        residual = tl.load(residual_ptr + image + offs, mask=mask, other=0.0, eviction_policy=EVICTION)
        v += residual.to(tl.float32)
    if mask_ptr is not None:
        bits = packed_bits(activation_passes(v, ACTIVATION))
        tl.store(mask_ptr + image // 8 + offs_bits, bits, mask=mask_bits)
    v = activate(v, ACTIVATION).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + image + offs, v, mask=mask, eviction_policy=EVICTION)
