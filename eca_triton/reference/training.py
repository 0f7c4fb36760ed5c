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
from .inference import BatchNorm, compute_dtype

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


def eca_forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    bn: BatchNorm | None,
    bn_eps: float,
    circular: bool,
    gate: str,
    gain: float,
    residual: Tensor | None,
    activation: str,
    mask_order: str,
    out_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """The attended map of x [N, C, *spatial]; the means of x [N, C]; a bit per element where u passes."""
    pooled = inference.pool(x)
    y = inference.normalize(pooled, bn, bn_eps, "identity")
    g = inference.gate_from_pool(y, weight, bias, circular=circular, gate=gate)
    u = _before_activation(x, g, bn, bn_eps, gain, residual)
    mask = x.new_empty(0, dtype=torch.uint8)
    if mask_order != "none":
        mask = pack(SELECTING[activation](u), mask_order)
    return ACTIVATIONS[activation].function(u).to(out_dtype), pooled, mask


def eca_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    bn: BatchNorm | None,
    bn_eps: float,
    circular: bool,
    gate: str,
    gain: float,
    residual: Tensor | None,
    activation: str,
    pooled: Tensor | None,
    mask: Tensor | None,
    mask_order: str,
    wants_x: bool,
    wants_residual: bool,
    wants_band: bool,
    wants_bn: bool,
) -> Gradients:
    """Gradients for `grad`, shaped as x. Band: weight and bias; bn: the batch norm's weight and bias.

    pooled, the means of x [N, C]: where None they are computed, so that they are differentiated by x too.
    mask: as `eca_forward` made it in `mask_order`; where None u is recomputed, from `residual` too.
    """
    dtype = compute_dtype(x)
    if pooled is None:
        pooled = inference.pool(x)
    y = inference.normalize(pooled, bn, bn_eps, "identity")
    g = inference.gate_from_pool(y, weight, bias, circular=circular, gate=gate)
    p = grad.to(dtype)
    if mask is not None:
        p = torch.where(unpack(mask, x.shape, mask_order), p, 0.0)
    elif activation != "identity":
        p = ACTIVATIONS[activation].gradient(p, _before_activation(x, g, bn, bn_eps, gain, residual))
    d_residual = p if wants_residual else None
    if not (wants_x or wants_band or wants_bn):
        return Gradients(None, d_residual, None, None, None, None)

    space = tuple(range(2, x.ndim))
    d_gate = gain * (p * inference.normalize(x, bn, bn_eps, "identity")).sum(space)
    d_y, d_weight, d_bias = inference.gate_from_pool_backward(
        d_gate, y, weight, bias, circular=circular, gate=gate
    )
    d_x = d_bn_weight = d_bn_bias = None
    factor = gain * g
    if wants_x:
        d_x = p * _over_space(factor, x) + _over_space(d_y / math.prod(x.shape[2:]), x)
        if bn is not None:
            d_x = d_x * _over_space(_scale(bn, bn_eps, dtype)[None], x)
    if wants_bn and bn is not None:
        mean, var, bn_weight, bn_bias = bn
        d_bn_bias = (factor * p.sum(space) + d_y).sum(0)
        centred = (p * (x.to(dtype) - _over_space(mean.to(dtype)[None], x))).sum(space)
        d_scale = (factor * centred + d_y * (pooled - mean)).sum(0)
        d_bn_weight = d_scale * torch.rsqrt(var.to(dtype) + bn_eps)
        d_bn_weight, d_bn_bias = _as(d_bn_weight, bn_weight), _as(d_bn_bias, bn_bias)
    if not wants_band:
        return Gradients(d_x, d_residual, None, None, d_bn_weight, d_bn_bias)
    return Gradients(d_x, d_residual, d_weight, _as(d_bias, bias), d_bn_weight, d_bn_bias)


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


def _before_activation(
    x: Tensor, g: Tensor, bn: BatchNorm | None, bn_eps: float, gain: float, residual: Tensor | None
) -> Tensor:
    u = inference.normalize(x, bn, bn_eps, "identity") * _over_space(g, x)
    if gain != 1.0:
        u = u * gain
    return u if residual is None else u + residual.to(u.dtype)


def _scale(bn: BatchNorm, eps: float, dtype: torch.dtype) -> Tensor:
    _, var, weight, _ = bn
    scale = torch.rsqrt(var.to(dtype) + eps)
    return scale if weight is None else scale * weight.to(dtype)


def _over_space(v: Tensor, x: Tensor) -> Tensor:
    """v [N, C] or [1, C] with dims for the spatial ones of x."""
    return v.reshape(*v.shape, *[1] * (x.ndim - 2))


def _as(value: Tensor, parameter: Tensor | None) -> Tensor | None:
    return None if parameter is None else value.to(parameter.dtype)
