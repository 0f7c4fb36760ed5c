"""The two directions of a training step of ECA in plain torch: the truth for tests, the ops on the CPU.

With u what is activated, p = dy * activation'(u), y the pooled xhat, z its convolution and s the scale of an
eval-mode batch norm before (else 1):

    d_gate[n,c] = gain * sum over space of p * xhat       t = transposed convolution of d_gate * gate'(z)
    d_x = s * (gain * g * p + t / HW)                     d_residual = p

In float32 (float64 for float64 x), as in `reference`; and differentiable in turn.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..activations import ACTIVATIONS, SELECTING
from . import inference
from .arguments import BackwardArguments, SiteArguments, Vectors
from .inference import compute_dtype

MASK_ORDERS = ("none", "contiguous", "channels_last")
"""Orders of the bits of a mask: no bits, as [N, C, *spatial], as [N, *spatial, C]; eight to a byte."""


class Gradients(NamedTuple):
    """Gradients of the inputs of `eca`; None where not wanted, or where there is no such input."""

    x: Tensor | None
    residual: Tensor | None
    weight: Tensor | None
    bias: Tensor | None
    bn_weight: Tensor | None
    bn_bias: Tensor | None


def eca_forward(a: SiteArguments) -> tuple[Tensor, Tensor, Tensor]:
    """The attended map; the means of x [N, C]; a bit per element where u passes, in `mask_order`."""
    pooled = inference.pool(a.x)
    u = before_activation(a, gates(a, _normalized(a, pooled)))
    mask = a.x.new_empty(0, dtype=torch.uint8)
    if a.mask_order != "none":
        mask = pack(SELECTING[a.activation](u), a.mask_order)
    return ACTIVATIONS[a.activation].function(u).to(a.out_dtype or a.x.dtype), pooled, mask


def eca_backward(a: BackwardArguments, pools: bool = False) -> tuple[Tensor, ...]:
    """`gradients` in the dtypes of their inputs; [0] where one is not wanted."""
    return a.outputs(gradients(a, pools))


def gradients(a: BackwardArguments, pools: bool = False) -> Gradients:
    """Gradients of the inputs of `eca`, in the dtype of the arithmetic. Band: weight and bias.

    The mask is that of `eca_forward`; where it is None u is recomputed, from `residual` too.
    pools: whether the means of x are computed, so that they are differentiated by x too, and not `pooled`.
    """
    x, dtype = a.x, compute_dtype(a.x)
    pooled = inference.pool(x) if pools else a.pooled
    y = _normalized(a, pooled)
    g = gates(a, y)
    p = a.grad.to(dtype)
    if a.mask is not None:
        p = torch.where(unpack(a.mask, x.shape, a.mask_order), p, 0.0)
    elif a.activation != "identity":
        p = ACTIVATIONS[a.activation].gradient(p, before_activation(a, g))
    d_residual = p if a.wants_residual else None
    if not (a.wants_x or a.wants_band or a.wants_bn):
        return Gradients(None, d_residual, None, None, None, None)

    space = tuple(range(2, x.ndim))
    d_gate = a.gain * (p * _normalized(a, x)).sum(space)
    d_y, d_weight, d_bias = inference.gate_from_pool_backward(
        d_gate, y, a.weight, a.bias, circular=a.circular, gate=a.gate
    )
    d_x = d_bn_weight = d_bn_bias = None
    factor = a.gain * g
    if a.wants_x:
        d_x = p * _over_space(factor, x) + _over_space(d_y / math.prod(x.shape[2:]), x)
        if a.bn is not None:
            d_x = d_x * _over_space(_scale(a.bn, a.bn_eps, dtype)[None], x)
    if a.wants_bn and a.bn is not None:
        mean, var, bn_weight, bn_bias = a.bn
        d_bn_bias = (factor * p.sum(space) + d_y).sum(0)
        centred = (p * (x.to(dtype) - _over_space(mean.to(dtype)[None], x))).sum(space)
        d_scale = (factor * centred + d_y * (pooled - mean)).sum(0)
        d_bn_weight = d_scale * torch.rsqrt(var.to(dtype) + a.bn_eps)
        d_bn_weight, d_bn_bias = _as(d_bn_weight, bn_weight), _as(d_bn_bias, bn_bias)
    if not a.wants_band:
        return Gradients(d_x, d_residual, None, None, d_bn_weight, d_bn_bias)
    return Gradients(d_x, d_residual, d_weight, _as(d_bias, a.bias), d_bn_weight, d_bn_bias)


def gates(a: SiteArguments | BackwardArguments, y: Tensor) -> Tensor:
    """Gates [N, C] of the means of xhat."""
    return inference.gate_from_pool(y, a.weight, a.bias, circular=a.circular, gate=a.gate)


def before_activation(a: SiteArguments | BackwardArguments, g: Tensor) -> Tensor:
    """u, by the gates [N, C]."""
    u = _normalized(a, a.x) * _over_space(g, a.x)
    if a.gain != 1.0:
        u = u * a.gain
    return u if a.residual is None else u + a.residual.to(u.dtype)


def pack(passes: Tensor, order: str) -> Tensor:
    """Booleans [N, C, *spatial] -> uint8 [N, C * HW / 8]; bit e % 8 of byte e // 8 is element e in order."""
    passes = passes.movedim(1, -1) if _is_channels_last(order) else passes
    n, *image = passes.shape
    # Summed in int32, which Inductor does in the kernel of the elements, in uint8 in one more.
    octets = passes.reshape(n, math.prod(image) // 8, 8).to(torch.int32)
    return (octets << _places(octets)).sum(-1, dtype=torch.int32).to(torch.uint8)


def unpack(mask: Tensor, shape: torch.Size, order: str) -> Tensor:
    """The booleans [N, C, *spatial] that `pack` packed."""
    octets = mask[..., None].to(torch.int32)
    bits = (octets >> _places(octets)) & 1
    if _is_channels_last(order):
        return bits.reshape(shape[0], *shape[2:], shape[1]).movedim(-1, 1) != 0
    return bits.reshape(shape) != 0


def _is_channels_last(order: str) -> bool:
    if order not in MASK_ORDERS[1:]:
        raise ValueError(f"the order of bits must be one of {', '.join(MASK_ORDERS[1:])}, got {order!r}")
    return order == "channels_last"


def _places(octets: Tensor) -> Tensor:
    return torch.arange(8, dtype=octets.dtype, device=octets.device)


def _normalized(a: SiteArguments | BackwardArguments, x: Tensor) -> Tensor:
    return inference.normalize(x, a.bn, a.bn_eps, "identity")


def _scale(bn: Vectors, eps: float, dtype: torch.dtype) -> Tensor:
    _, var, weight, _ = bn
    scale = torch.rsqrt(var.to(dtype) + eps)
    return scale if weight is None else scale * weight.to(dtype)


def _over_space(v: Tensor, x: Tensor) -> Tensor:
    """v [N, C] or [1, C] with dims for the spatial ones of x."""
    return v.reshape(*v.shape, *[1] * (x.ndim - 2))


def _as(value: Tensor, parameter: Tensor | None) -> Tensor | None:
    return None if parameter is None else value.to(parameter.dtype)
