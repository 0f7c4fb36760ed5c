"""What follows the gates in an eager call; in a compiled graph Inductor generates it."""

import triton
import triton.language as tl

from .elementwise import activate


@triton.jit
def store_with_tail(
    v, residual_ptr, out_ptr, image, offs, mask, ACTIVATION: tl.constexpr, EVICTION: tl.constexpr
):
    """Stores activation(v + residual) at image + offs of out; v is fp32, image a scalar. Returns the sum."""
    if residual_ptr is not None:
        residual = tl.load(residual_ptr + image + offs, mask=mask, other=0.0, eviction_policy=EVICTION)
        v += residual.to(tl.float32)
    out = activate(v, ACTIVATION).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + image + offs, out, mask=mask, eviction_policy=EVICTION)
    return v
