"""Efficient Channel Attention in plain torch: the truth for tests and the CPU implementation of the ops.

    xhat = pre_activation(batch_norm(x))        y[n,c] = mean over space of xhat[n,c,:]
    z[n,c] = bias + sum_j weight[j] * y[n, c+j-r], r = (k-1)//2        g = gate(z)
    out[n,c,:] = activation(gain * xhat[n,c,:] * g[n,c] + residual[n,c,:])

Everything between the load of x and the store of the result is float32 (float64 for float64 x), whatever the
dtypes of the parameters. Every function here is twice differentiable and works under the functorch
transforms.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from torch import Tensor

from ..activations import ACTIVATIONS, GATES, PRE_ACTIVATIONS
from .arguments import ProjectionArguments, RescaledArguments, SiteArguments, Vectors


def gate_from_pool(
    pooled: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    circular: bool = False,
    gate: str = "sigmoid",
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """Turns pooled channels [N, C] into gates [N, C] of `out_dtype` (None: the dtype of `pooled`)."""
    z = _convolve(pooled.to(compute_dtype(pooled)), weight, bias, circular)
    return GATES[gate].function(z).to(out_dtype or pooled.dtype)


def gate_from_pool_backward(
    grad: Tensor,
    pooled: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    circular: bool = False,
    gate: str = "sigmoid",
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `gate_from_pool` for `grad` [N, C].

    Returns:
        d_pooled [N, C] in the dtype of `pooled`; d_weight in the shape and dtype of `weight`; d_bias [1] in
        the dtype of `bias` (without one, of `weight`).
    """
    y = pooled.to(compute_dtype(pooled))
    z = _convolve(y, weight, bias, circular)
    dz = GATES[gate].gradient(grad.to(y.dtype), z)
    k = weight.shape[-1]
    taps = weight.reshape(-1).to(y.dtype)
    d_pooled = (_windows(dz, k, circular) * taps.flip(0)).sum(-1)
    d_weight = (_windows(y, k, circular) * rearrange(dz, "n c -> n c 1")).sum((0, 1))
    return (
        d_pooled.to(pooled.dtype),
        d_weight.reshape(weight.shape).to(weight.dtype),
        dz.sum().reshape(1).to((weight if bias is None else bias).dtype),
    )


GateFromPool = Callable[..., Tensor]


def gate(a: SiteArguments, gate_from_pool: GateFromPool = gate_from_pool) -> Tensor:
    """Gates [N, C] of a map, in `out_dtype` (None: the dtype of x).

    `gate_from_pool` may be replaced by an operator with the same arguments, which brings its own backward.
    """
    pooled = pool(normalize(a.x, a.bn, a.bn_eps, a.pre_activation))
    out_dtype = a.out_dtype or a.x.dtype
    return gate_from_pool(pooled, a.weight, a.bias, circular=a.circular, gate=a.gate, out_dtype=out_dtype)


def gate_from_projection(a: ProjectionArguments, gate_from_pool: GateFromPool = gate_from_pool) -> Tensor:
    """Gates [N, C] of the result of a 1x1 convolution, in `out_dtype` (None: the dtype of `pooled`).

    The mean of what the convolution makes is what it makes of the mean.
    """
    dtype = compute_dtype(a.pooled)
    with torch.autocast(a.pooled.device.type, enabled=False):
        y = a.pooled.to(dtype) @ a.projection.flatten(1).to(dtype).T
    if a.projection_bias is not None:
        y = y + a.projection_bias.to(dtype)
    y = normalize(y, a.bn, a.bn_eps, "identity")
    out_dtype = a.out_dtype or a.pooled.dtype
    return gate_from_pool(y, a.weight, a.bias, circular=a.circular, gate=a.gate, out_dtype=out_dtype)


def affine_from_projection(
    a: ProjectionArguments, gate_from_pool: GateFromPool = gate_from_pool
) -> tuple[Tensor, Tensor]:
    """Factor and summand [N, C]: gates * batch_norm(v + projection_bias) = factor * v + summand."""
    dtype = compute_dtype(a.pooled)
    factor = gate_from_projection(a._replace(out_dtype=dtype), gate_from_pool)
    shift = torch.zeros_like(factor)
    if a.projection_bias is not None:
        shift = shift + a.projection_bias.to(dtype)
    shift = factor * normalize(shift, a.bn, a.bn_eps, "identity")
    if a.bn_var is not None:
        scale = torch.rsqrt(a.bn_var.to(dtype) + a.bn_eps)
        factor = factor * (scale if a.bn_weight is None else scale * a.bn_weight.to(dtype))
    out_dtype = a.out_dtype or a.pooled.dtype
    return factor.to(out_dtype), shift.to(out_dtype)


def rescaled_projection(a: RescaledArguments) -> Tensor:
    """factor * (projection x) + summand [N, C, *spatial]: a 1x1 convolution, rescaled."""
    dtype = compute_dtype(a.x)
    spread = (..., *[None] * (a.x.ndim - 2))
    with torch.autocast(a.x.device.type, enabled=False):
        y = a.x.to(dtype).movedim(1, -1) @ a.projection.flatten(1).to(dtype).T
    y = y.movedim(-1, 1) * a.factor.to(dtype)[spread]
    if a.summand is not None:
        y = y + a.summand.to(dtype)[spread]
    return y.to(a.out_dtype or a.x.dtype)


def eca(a: SiteArguments, gate_from_pool: GateFromPool = gate_from_pool) -> Tensor:
    """The attended map [N, C, *spatial], rounded once to `out_dtype` (None: x's dtype)."""
    xhat = normalize(a.x, a.bn, a.bn_eps, a.pre_activation)
    pooled = pool(xhat)
    g = gate_from_pool(
        pooled, a.weight, a.bias, circular=a.circular, gate=a.gate, out_dtype=pooled.dtype
    )  # fmt: skip
    # The product promotes to g's wider dtype by itself: no float32 copy of x is made, or kept for backward.
    out = xhat * g.reshape(*g.shape, *[1] * (a.x.ndim - 2))
    if a.gain != 1.0:
        out = out * a.gain
    if a.residual is not None:
        out = out + a.residual.to(out.dtype)
    return ACTIVATIONS[a.activation].function(out).to(a.out_dtype or a.x.dtype)


def compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype of all arithmetic on x: float64 for float64, else float32."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def normalize(x: Tensor, bn: Vectors | None, bn_eps: float, pre_activation: str) -> Tensor:
    """pre_activation(batch_norm(x)); x itself, uncast, where there is nothing to do."""
    if bn is None and pre_activation == "identity":
        return x
    dtype = compute_dtype(x)
    xhat = x.to(dtype)
    if bn is not None:
        mean, var, weight, bias = (None if v is None else v.to(dtype) for v in bn)
        assert mean is not None
        assert var is not None
        scale = torch.rsqrt(var + bn_eps)
        if weight is not None:
            scale = scale * weight
        vector = (-1, *[1] * (x.ndim - 2))
        xhat = (xhat - mean.reshape(vector)) * scale.reshape(vector)
        if bias is not None:
            xhat = xhat + bias.reshape(vector)
    return PRE_ACTIVATIONS[pre_activation].function(xhat)


def pool(xhat: Tensor) -> Tensor:
    dtype = compute_dtype(xhat)
    return reduce(xhat, "n c ... -> n c", lambda t, axes: t.mean(axes, dtype=dtype))


def _convolve(y: Tensor, weight: Tensor, bias: Tensor | None, circular: bool) -> Tensor:
    """The band convolution over channels, y [N, C] -> z [N, C].

    Windows and a sum rather than F.conv1d: cuDNN would use TF32, autocast would use half precision.
    """
    z = (_windows(y, weight.shape[-1], circular) * weight.reshape(-1).to(y.dtype)).sum(-1)
    return z if bias is None else z + bias.to(y.dtype)


def _windows(y: Tensor, k: int, circular: bool) -> Tensor:
    """The k neighbours of each channel, [N, C] -> [N, C, k]: a NaN reaches the channels that see it only."""
    r = k // 2
    padded = torch.cat((y[:, y.shape[1] - r :], y, y[:, :r]), dim=1) if circular else F.pad(y, (r, r))
    # Not Tensor.unfold, whose backward has no batching rule.
    return torch.stack([padded[:, j : j + y.shape[1]] for j in range(k)], dim=-1)
