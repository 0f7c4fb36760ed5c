"""Efficient Channel Attention as functions (ECA-Net, CVPR 2020, https://arxiv.org/abs/1910.03151)."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from . import ops
from .ops import checks
from .reference import ACTIVATIONS, GATES, PRE_ACTIVATIONS


class BatchNormParameters(NamedTuple):
    """A batch norm in eval mode: four vectors [C], of which the affine ones may be None."""

    mean: Tensor
    var: Tensor
    weight: Tensor | None = None
    bias: Tensor | None = None
    eps: float = 1e-5


def eca(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    gate: str = "sigmoid",
    circular: bool = False,
    batch_norm: BatchNormParameters | None = None,
    pre_activation: str = "identity",
    gain: float = 1.0,
    residual: Tensor | None = None,
    activation: str = "identity",
) -> Tensor:
    """Scales every channel of x by a gate computed from the means of its neighbouring channels.

    Equivalent to: `x * torch.sigmoid(F.conv1d(x.mean((2, 3))[:, None], weight, padding=k // 2))[0][..., None, None]`
    for a map of two spatial dims and batch size 1. In general, with xhat = pre_activation(batch_norm(x)):
    `activation(gain * xhat * gate(conv(mean(xhat))) + residual)`.

    The arithmetic is float32 (float64 for float64 x) with one rounding at the end, under autocast too. Inside
    torch.compile this is native torch code, which the compiler backend recognises together with its neighbours.

    Args:
        x: [N, C, *spatial] with at least one spatial dim; float64, float32, float16 or bfloat16; any strides.
        weight: [1, 1, k] or [k], k odd; x's dtype, except under autocast.
        bias: [1], or None.
        gate: "sigmoid" or "hard_sigmoid".
        circular: whether the channels are a ring (timm's CecaModule) rather than padded with zeros.
        batch_norm: an eval-mode batch norm before, or None.
        pre_activation: "identity", "relu" or "silu", after the batch norm.
        gain: factor of the attended map.
        residual: added after the gain, in the shape of x, or None.
        activation: "identity", "relu", "relu6", "silu", "gelu" (erf) or "hardswish", applied last.

    Returns:
        [N, C, *spatial] in x's dtype and, for a dense x, x's memory format.

    Raises:
        TypeError: x is complex or not floating; x and weight differ in dtype outside autocast.
        ValueError: a shape, a device, or the name of a gate or activation is wrong.

    Example:
        >>> out = eca(torch.randn(2, 64, 56, 56), torch.randn(1, 1, 3))
    """
    if not torch.is_autocast_enabled(x.device.type):
        checks.check_same_dtype("eca", x, weight)
    mean, var, bn_weight, bn_bias, eps = batch_norm or _NO_BATCH_NORM
    if torch.compiler.is_compiling():
        return _native_eca(
            x, weight, bias, gate, circular, batch_norm, pre_activation, gain, residual, activation
        )
    return ops.ECA(  # type: ignore[no-any-return]
        x,
        weight,
        bias,
        mean,
        var,
        bn_weight,
        bn_bias,
        residual,
        bn_eps=eps,
        pre_activation=pre_activation,
        circular=circular,
        gate=gate,
        gain=gain,
        activation=activation,
    )


def eca_gate(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    gate: str = "sigmoid",
    circular: bool = False,
    batch_norm: BatchNormParameters | None = None,
    pre_activation: str = "identity",
) -> Tensor:
    """The gates [N, C] by which `eca` scales the channels of x, in x's dtype; arguments and errors as there.

    Equivalent to: `torch.sigmoid(F.conv1d(x.mean((2, 3))[:, None], weight, padding=k // 2))[:, 0]`.

    Example:
        >>> g = eca_gate(torch.randn(2, 64, 56, 56), torch.randn(1, 1, 3))
    """
    if not torch.is_autocast_enabled(x.device.type):
        checks.check_same_dtype("gate", x, weight)
    mean, var, bn_weight, bn_bias, eps = batch_norm or _NO_BATCH_NORM
    if torch.compiler.is_compiling():
        return _native_gate(_native_prologue(x, batch_norm, pre_activation), weight, bias, gate, circular)
    return ops.GATE(  # type: ignore[no-any-return]
        x,
        weight,
        bias,
        mean,
        var,
        bn_weight,
        bn_bias,
        bn_eps=eps,
        pre_activation=pre_activation,
        circular=circular,
        gate=gate,
    )


def adaptive_kernel_size(channels: int, gamma: float = 2, b: float = 1) -> int:
    """The number of taps for a number of channels: t = int(|(log2 C + b) / gamma|), then the next odd number.

    Equation 12 of ECA-Net (https://arxiv.org/abs/1910.03151), rounded as in the authors' code.

    Raises:
        ValueError: channels is less than 1, or gamma is 0.

    Example:
        >>> adaptive_kernel_size(256)
        5
    """
    if channels < 1:
        raise ValueError(f"channels must be at least 1, got {channels}")
    if gamma == 0:
        raise ValueError(f"gamma must not be 0, got {gamma}")
    t = int(abs((math.log2(channels) + b) / gamma))
    return t if t % 2 == 1 else t + 1


_NO_BATCH_NORM = (None, None, None, None, 1e-5)


def _native_eca(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    gate: str,
    circular: bool,
    batch_norm: BatchNormParameters | None,
    pre_activation: str,
    gain: float,
    residual: Tensor | None,
    activation: str,
) -> Tensor:
    """What a compiler sees: an opaque operator here would cut the fusion with the neighbours of the call."""
    xhat = _native_prologue(x, batch_norm, pre_activation)
    g = _native_gate(xhat, weight, bias, gate, circular)
    out = xhat * g.view(*g.shape, *[1] * (x.ndim - 2))
    if gain != 1.0:
        out = out * gain
    if residual is not None:
        out = out + residual
    return ACTIVATIONS[activation](out)


def _native_prologue(x: Tensor, bn: BatchNormParameters | None, pre_activation: str) -> Tensor:
    if bn is not None:
        x = F.batch_norm(x, bn.mean, bn.var, bn.weight, bn.bias, False, 0.0, bn.eps)
    return PRE_ACTIVATIONS[pre_activation](x)


def _native_gate(x: Tensor, weight: Tensor, bias: Tensor | None, gate: str, circular: bool) -> Tensor:
    k = weight.shape[-1]
    y = x.mean(tuple(range(2, x.ndim))).unsqueeze(1)
    if circular:
        y = F.pad(y, (k // 2, k // 2), mode="circular")
    z = F.conv1d(y, weight.view(1, 1, k), bias, padding=0 if circular else k // 2)
    return GATES[gate](z).squeeze(1)
