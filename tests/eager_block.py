"""The block as users write it, and the tolerance that it earns."""

import torch
import torch.nn.functional as F
from torch import Tensor

GATES = {"sigmoid": torch.sigmoid, "hard_sigmoid": F.hardsigmoid}
ACTIVATIONS = {
    "identity": lambda x: x,
    "relu": F.relu,
    "relu6": F.relu6,
    "silu": F.silu,
    "gelu": F.gelu,
    "hardswish": F.hardswish,
}


def eager_gate_from_pool(pooled, weight, bias=None, *, circular=False, gate="sigmoid"):
    r = weight.shape[-1] // 2
    y = pooled.unsqueeze(1)
    if circular:
        y = F.pad(y, (r, r), mode="circular")
    z = F.conv1d(y, weight.reshape(1, 1, -1), bias, padding=0 if circular else r)
    return GATES[gate](z).squeeze(1)


def eager_gate(x, weight, bias=None, *, bn=None, bn_eps=1e-5, pre_activation="identity", **options):
    xhat = _prologue(x, bn, bn_eps, pre_activation)
    return eager_gate_from_pool(xhat.mean(tuple(range(2, x.ndim))), weight, bias, **options)


def eager_eca(
    x,
    weight,
    bias=None,
    *,
    bn=None,
    bn_eps=1e-5,
    pre_activation="identity",
    gain=1.0,
    residual=None,
    activation="identity",
    **options,
):
    xhat = _prologue(x, bn, bn_eps, pre_activation)
    g = eager_gate_from_pool(xhat.mean(tuple(range(2, x.ndim))), weight, bias, **options)
    out = xhat * g.reshape(*g.shape, *[1] * (x.ndim - 2)) * gain
    return ACTIVATIONS[activation](out if residual is None else out + residual)


def _prologue(x, bn, bn_eps, pre_activation):
    if bn is not None:
        mean, var, weight, bias = bn
        x = F.batch_norm(x, mean, var, weight, bias, False, 0.0, bn_eps)
    return ACTIVATIONS[pre_activation](x)


def to_double(value):
    """Every floating tensor in a nest of tuples and dicts, as float64."""
    if isinstance(value, Tensor):
        return value.double()
    if isinstance(value, dict):
        return {name: to_double(v) for name, v in value.items()}
    if isinstance(value, tuple):
        return tuple(to_double(v) for v in value)
    return value


def assert_as_good_as(got: Tensor, native: Tensor, exact: Tensor, ulps: int = 1) -> None:
    """The error of `got` against float64 is at most twice that of eager code in its dtype, plus `ulps`."""
    ulp = torch.finfo(native.dtype).eps * exact.abs().max().clamp(min=1e-6)
    error = (got.double() - exact).abs().max()
    allowed = 2 * (native.double() - exact).abs().max() + ulps * ulp
    assert error <= allowed, f"error {error:.2e}, allowed {allowed:.2e}"
