"""Efficient Channel Attention as functions (ECA-Net, CVPR 2020, https://arxiv.org/abs/1910.03151)."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .activations import ACTIVATIONS, GATES, PRE_ACTIVATIONS
from .ops import checks
from .ops.autograd import call
from .ops.schema import ECA, GATE
from .reference.arguments import SiteArguments
from .util.private import is_exporting


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

    Equivalent to: `x * sigmoid(conv1d(x.mean((2, 3))[:, None], weight, padding=k // 2))[:, 0, :, None, None]`
    for two spatial dims. In general, with xhat = pre_activation(batch_norm(x)):
    `activation(gain * xhat * gate(conv1d(mean(xhat))) + residual)`.

    The arithmetic is float32 (float64 for float64 x) with one rounding at the end, under autocast too. For
    backward no map is kept but x, and the residual where the activation is silu, gelu or hardswish.

    Inside torch.compile this is native torch code in the dtypes of the eager block, which the compiler
    backend recognises together with its neighbours; so it is inside torch.onnx.export. Under torch.export it
    is one op.

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

    Examples:
        >>> out = eca(torch.randn(2, 64, 56, 56), torch.randn(1, 1, 3))
    """
    checks.check_same_dtype("eca", x, weight)
    mean, var, bn_weight, bn_bias, eps = batch_norm or _NO_BATCH_NORM
    tensors = (x, weight, bias, mean, var, bn_weight, bn_bias, residual)
    options = (eps, pre_activation, circular, gate, gain, activation)
    if torch.compiler.is_compiling():
        if _stays_an_op():
            return ECA(*tensors, **_changed(options))
        return _native_eca(SiteArguments(*tensors, *options))
    return call(ECA, tensors, _changed(options))  # type: ignore[no-any-return]


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

    Examples:
        >>> g = eca_gate(torch.randn(2, 64, 56, 56), torch.randn(1, 1, 3))
    """
    checks.check_same_dtype("gate", x, weight)
    mean, var, bn_weight, bn_bias, eps = batch_norm or _NO_BATCH_NORM
    tensors = (x, weight, bias, mean, var, bn_weight, bn_bias)
    options = (eps, pre_activation, circular, gate)
    if torch.compiler.is_compiling():
        if _stays_an_op():
            return GATE(*tensors, **_changed(options))
        return _native_gate(SiteArguments(*tensors, None, *options))
    return call(GATE, tensors, _changed(options))  # type: ignore[no-any-return]


def adaptive_kernel_size(channels: int, gamma: float = 2, b: float = 1) -> int:
    """The number of taps for a number of channels: t = int(|(log2 C + b) / gamma|), then the next odd number.

    Equation 12 of ECA-Net (https://arxiv.org/abs/1910.03151), rounded as in the authors' code.

    Raises:
        ValueError: channels is less than 1, or gamma is 0.

    Examples:
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
_OPTIONS = {name: SiteArguments._field_defaults[name] for name in SiteArguments._fields[8:-2]}
_DEFAULTS = tuple(_OPTIONS.values())


def _changed(options: tuple[Any, ...]) -> dict[str, Any]:
    """Return those of the operators' first options that differ from their defaults, by name."""
    if options == _DEFAULTS[: len(options)]:
        return {}
    named = zip(options, _OPTIONS.items(), strict=False)
    return {name: value for value, (name, default) in named if value != default}


def _stays_an_op() -> bool:
    """Return whether the traced graph holds our operators: torch.export's does, torch.onnx's does not."""
    return is_exporting() and not torch.onnx.is_in_onnx_export()


# What a compiler sees: native operators, since an opaque one would cut the fusion with the call's neighbours.


def _native_eca(a: SiteArguments) -> Tensor:
    checks.check_site("eca", a)
    xhat = _native_prologue(a)
    g = _native_convolution(xhat, a)
    out = xhat * g.view(*g.shape, *[1] * (a.x.ndim - 2))
    if a.gain != 1.0:
        out = out * a.gain
    if a.residual is not None:
        out = out + a.residual
    return _as_dtype(ACTIVATIONS[a.activation].function(out), a.x.dtype)


def _native_gate(a: SiteArguments) -> Tensor:
    checks.check_site("gate", a)
    return _as_dtype(_native_convolution(_native_prologue(a), a), a.x.dtype)


def _native_prologue(a: SiteArguments) -> Tensor:
    x = a.x
    if a.bn_mean is not None:
        x = F.batch_norm(x, a.bn_mean, a.bn_var, a.bn_weight, a.bn_bias, False, 0.0, a.bn_eps)
    return PRE_ACTIVATIONS[a.pre_activation].function(x)


def _native_convolution(xhat: Tensor, a: SiteArguments) -> Tensor:
    k = a.weight.shape[-1]
    y = xhat.mean(tuple(range(2, xhat.ndim))).unsqueeze(1)
    if a.circular:
        y = F.pad(y, (k // 2, k // 2), mode="circular")
    z = F.conv1d(y, a.weight.view(1, 1, k), a.bias, padding=0 if a.circular else k // 2)
    return GATES[a.gate].function(z).squeeze(1)


def _as_dtype(x: Tensor, dtype: torch.dtype) -> Tensor:
    # No node in the graph where there is nothing to do: it would stand between the block and its neighbours.
    return x if x.dtype == dtype else x.to(dtype)
