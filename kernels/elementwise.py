"""Functions of one element, in fp32. NaN goes through all of them, as in torch."""

import triton
import triton.language as tl


@triton.jit
def clamp_0_6(v):
    v = tl.maximum(v, 0.0, propagate_nan=tl.PropagateNan.ALL)
    return tl.minimum(v, 6.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def activate(v, ACTIVATION: tl.constexpr):
    """The activation of v: identity, relu, relu6, silu, gelu (erf form) or hardswish."""
    if ACTIVATION == "relu":
        v = tl.maximum(v, 0.0, propagate_nan=tl.PropagateNan.ALL)
    elif ACTIVATION == "relu6":
        v = clamp_0_6(v)
    elif ACTIVATION == "silu":
        v = v / (1.0 + tl.exp(-v))
    elif ACTIVATION == "gelu":
        v = 0.5 * v * (1.0 + tl.erf(v * 0.7071067811865476))
    elif ACTIVATION == "hardswish":
        v = v * clamp_0_6(v + 3.0) * (1.0 / 6.0)
    else:
        tl.static_assert(ACTIVATION == "identity", "unknown activation")
    return v


@triton.jit
def activation_passes(u, ACTIVATION: tl.constexpr):
    """Return where relu or relu6 lets the gradient at u through: at NaN, but at no corner, as in torch."""
    tl.static_assert(ACTIVATION == "relu" or ACTIVATION == "relu6", "its slope is no bit")
    stopped = u <= 0.0
    if ACTIVATION == "relu6":
        stopped |= u >= 6.0
    return ~stopped


@triton.jit
def activation_slope(u, ACTIVATION: tl.constexpr):
    """Derivative of `activate` at u."""
    slope = tl.full(u.shape, 1.0, tl.float32)
    if ACTIVATION == "relu" or ACTIVATION == "relu6":
        slope = tl.where(activation_passes(u, ACTIVATION), 1.0, 0.0)
    elif ACTIVATION == "silu":
        s = 1.0 / (1.0 + tl.exp(-u))
        slope = s * (1.0 + u * (1.0 - s))
    elif ACTIVATION == "gelu":
        # Phi(u) + u * phi(u), of the normal distribution.
        slope = 0.5 * (1.0 + tl.erf(u * 0.7071067811865476)) + u * tl.exp(-0.5 * u * u) * 0.3989422804014327
    elif ACTIVATION == "hardswish":
        slope = tl.where(u <= -3.0, 0.0, tl.where(u < 3.0, u * (1.0 / 3.0) + 0.5, 1.0))
    else:
        tl.static_assert(ACTIVATION == "identity", "unknown activation")
    return slope


@triton.jit
def activation_gradient(dy, u, ACTIVATION: tl.constexpr):
    """dy * activation_slope(u) in fp32. Flat parts are selected, as in torch: 0 * Inf would be NaN."""
    dy = dy.to(tl.float32)
    if ACTIVATION == "relu" or ACTIVATION == "relu6":
        return tl.where(activation_passes(u, ACTIVATION), dy, 0.0)
    p = dy * activation_slope(u, ACTIVATION)
    if ACTIVATION == "hardswish":
        p = tl.where(u <= -3.0, 0.0, p)
    return p


@triton.jit
def gate_of(z, GATE: tl.constexpr):
    """The gate of z: sigmoid or hard_sigmoid."""
    tl.static_assert(GATE == "sigmoid" or GATE == "hard_sigmoid", "unknown gate")
    if GATE == "sigmoid":
        return 1.0 / (1.0 + tl.exp(-z))
    return clamp_0_6(z + 3.0) * (1.0 / 6.0)


@triton.jit
def gate_slope(z, GATE: tl.constexpr):
    """Derivative of `gate_of` at z."""
    tl.static_assert(GATE == "sigmoid" or GATE == "hard_sigmoid", "unknown gate")
    if GATE == "sigmoid":
        g = gate_of(z, GATE)
        return g * (1.0 - g)
    return tl.where((z > -3.0) & (z < 3.0), 1.0 / 6.0, 0.0)


@triton.jit
def gate_gradient(d_gate, z, GATE: tl.constexpr):
    """d_gate * gate_slope(z). Flat parts are selected, as in torch: 0 * NaN would be NaN."""
    dz = d_gate * gate_slope(z, GATE)
    if GATE == "hard_sigmoid":
        dz = tl.where((z > -3.0) & (z < 3.0), dz, 0.0)
    return dz


@triton.jit
def batch_norm_terms(mean_ptr, var_ptr, weight_ptr, bias_ptr, eps, offs_c, mask_c):
    """Per channel (center, scale, shift) such that batch_norm(v) = (v - center) * scale + shift.

    Centred first: v * scale + (shift - center * scale) cancels where the mean is large.
    """
    center = tl.load(mean_ptr + offs_c, mask=mask_c, other=0.0).to(tl.float32)
    var = tl.load(var_ptr + offs_c, mask=mask_c, other=1.0).to(tl.float32)
    scale = tl.rsqrt(var + eps)
    shift = tl.zeros_like(center)
    if weight_ptr is not None:
        scale *= tl.load(weight_ptr + offs_c, mask=mask_c, other=0.0).to(tl.float32)
    if bias_ptr is not None:
        shift = tl.load(bias_ptr + offs_c, mask=mask_c, other=0.0).to(tl.float32)
    return center, scale, shift


@triton.jit
def dot_xhat(p_sum, p_dot_x, scale, shift):
    """sum p * xhat of sum p and sum p * (x - center): without batch norm the latter, where center is 0.

    Two sums and one vector of terms take fewer registers than one sum and three.
    """
    if scale is not None:
        p_dot_x = p_dot_x * scale + p_sum * shift
    return p_dot_x


@triton.jit
def unseen(v, number):
    """v, which the compiler takes for a new value, and so converts to fp32 once more.

    It would keep the fp32 elements of the sums, in twice the registers of the 16-bit ones, to spare that.
    number: any run-time integer from 0 to 2**30 - 1. Where it is 1, a constant, the compiler sees it all.
    """
    if v.dtype.primitive_bitwidth == 16:
        bits = v.to(tl.int16, bitcast=True) ^ tl.cast(number >> 30, tl.int16)
        v = bits.to(v.dtype, bitcast=True)
    return v
