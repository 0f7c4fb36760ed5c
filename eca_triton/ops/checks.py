"""What the operators accept, said by name, rule and value.

Run by the operators and by their fakes, through `torch._check*`: a wrong call also fails under fake tensors,
torch.export and torch.compile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..reference import ACTIVATIONS, GATES, PRE_ACTIVATIONS

if TYPE_CHECKING:
    from .schema import PoolArguments, PoolBackwardArguments, SiteArguments

FLOATING = frozenset({torch.float64, torch.float32, torch.float16, torch.bfloat16})


def check_site(op: str, a: SiteArguments) -> None:
    """Checks the arguments of `gate` or `eca`.

    Raises:
        TypeError: a dtype is not one of float64, float32, float16 and bfloat16.
        ValueError: a shape, a device, the name of a gate or activation is wrong.
    """
    x = a.x
    _check_floating(op, "x", x.dtype)
    _check(x.ndim >= 3, lambda: f"{op}: x must be (N, C, *spatial) with at least 3 dims, got {_shape(x)}")
    channels = x.shape[1]
    _check_channels(op, "x", x)
    _check_kernel(op, "x", x, a.weight, a.bias, a.circular)
    _check_name(op, "gate", a.gate, GATES)
    _check_name(op, "pre_activation", a.pre_activation, PRE_ACTIVATIONS)
    _check_name(op, "activation", a.activation, ACTIVATIONS)
    if a.out_dtype is not None:
        _check_floating(op, "out_dtype", a.out_dtype)
    if a.bn_mean is not None or a.bn_var is not None or a.bn_weight is not None or a.bn_bias is not None:
        _check(
            a.bn_mean is not None and a.bn_var is not None,
            lambda: (
                f"{op}: a batch norm needs both bn_mean and bn_var, got "
                f"bn_mean={_presence(a.bn_mean)}, bn_var={_presence(a.bn_var)}"
            ),
        )
        for name in ("bn_mean", "bn_var", "bn_weight", "bn_bias"):
            vector = getattr(a, name)
            if vector is not None:
                _check_vector(op, name, vector, channels, x)
    if a.residual is not None:
        _check_floating(op, "residual", a.residual.dtype)
        _check_device(op, "residual", a.residual, "x", x)
        _check_same_shape(op, "residual", a.residual, "x", x)


def check_pool(op: str, a: PoolArguments) -> None:
    """Checks the arguments of `gate_from_pool`; raises as `check_site`."""
    _check_pooled(op, a)
    if a.out_dtype is not None:
        _check_floating(op, "out_dtype", a.out_dtype)


def check_pool_backward(op: str, a: PoolBackwardArguments) -> None:
    """Checks the arguments of `gate_from_pool_backward`; raises as `check_site`."""
    _check_pooled(op, a)
    grad, pooled = a.grad, a.pooled
    _check_floating(op, "grad", grad.dtype)
    _check_device(op, "grad", grad, "pooled", pooled)
    _check_same_shape(op, "grad", grad, "pooled", pooled)


def check_same_dtype(op: str, x: Tensor, weight: Tensor) -> None:
    """The rule of the public functions outside autocast, as eager convolutions have it: one dtype."""
    _check(
        x.dtype == weight.dtype,
        lambda: (
            f"{op}: x and weight must share their dtype outside autocast, got {x.dtype} and {weight.dtype}"
        ),
        TypeError,
    )


def _check_pooled(op: str, a: PoolArguments | PoolBackwardArguments) -> None:
    pooled = a.pooled
    _check_floating(op, "pooled", pooled.dtype)
    _check(pooled.ndim == 2, lambda: f"{op}: pooled must be (N, C), got {_shape(pooled)}")
    _check_channels(op, "pooled", pooled)
    _check_kernel(op, "pooled", pooled, a.weight, a.bias, a.circular)
    _check_name(op, "gate", a.gate, GATES)


def _check_channels(op: str, name: str, x: Tensor) -> None:
    _check(x.shape[1] > 0, lambda: f"{op}: {name} must have at least one channel, got {_shape(x)}")


def _check_kernel(op: str, name: str, x: Tensor, weight: Tensor, bias: Tensor | None, circular: bool) -> None:
    _check_floating(op, "weight", weight.dtype)
    _check_device(op, "weight", weight, name, x)
    shape = weight.shape
    _check(
        (len(shape) == 1 or (len(shape) == 3 and shape[0] == 1 and shape[1] == 1)) and shape[-1] % 2 == 1,
        lambda: (
            f"{op}: weight must have an odd number k of taps, shaped (1, 1, k) or (k,), got {_shape(weight)}"
        ),
    )
    if circular:
        r, channels = shape[-1] // 2, x.shape[1]
        _check(
            r <= channels,
            lambda: (
                f"{op}: circular padding must not wrap around twice: weight with k={shape[-1]} taps needs "
                f"at least {r} channels, got {channels}"
            ),
        )
    if bias is not None:
        _check_floating(op, "bias", bias.dtype)
        _check_device(op, "bias", bias, name, x)
        _check(bias.ndim == 1 and bias.shape[0] == 1, lambda: f"{op}: bias must be (1,), got {_shape(bias)}")


def _check_vector(op: str, name: str, vector: Tensor, channels: int, x: Tensor) -> None:
    _check_floating(op, name, vector.dtype)
    _check_device(op, name, vector, "x", x)
    _check(
        vector.ndim == 1 and vector.shape[0] == channels,
        lambda: f"{op}: {name} must be ({channels},), one value per channel of x, got {_shape(vector)}",
    )


def _check_same_shape(op: str, name: str, tensor: Tensor, owner: str, x: Tensor) -> None:
    def message() -> str:
        return f"{op}: {name} must have the shape of {owner} {_shape(x)}, got {_shape(tensor)}"

    _check(tensor.ndim == x.ndim, message)
    for size, wanted in zip(tensor.shape, x.shape, strict=True):
        _check(size == wanted, message)


def _check_floating(op: str, name: str, dtype: torch.dtype) -> None:
    _check(
        dtype in FLOATING,
        lambda: f"{op}: {name} must be float64, float32, float16 or bfloat16, got {dtype}",
        TypeError,
    )


def _check_device(op: str, name: str, tensor: Tensor, owner: str, x: Tensor) -> None:
    _check(
        tensor.device == x.device,
        lambda: f"{op}: {name} must be on the device of {owner}, got {tensor.device} and {x.device}",
    )


def _check_name(op: str, argument: str, value: str, known: Iterable[str]) -> None:
    _check(value in known, lambda: f"{op}: unknown {argument} {value!r}, choose one of {', '.join(known)}")


def _check(
    condition: bool | torch.SymBool, message: Callable[[], str], error: type[Exception] = ValueError
) -> None:
    if isinstance(condition, bool) and condition:
        return  # the common case of eager calls costs no call into torch
    if torch.compiler.is_dynamo_compiling():
        # Dynamo traces no torch._check whose message it would have to compute; it does trace this.
        if not condition:
            raise error(f"eca_triton::{message()}")
    elif error is TypeError:
        torch._check_type(condition, lambda: f"eca_triton::{message()}")
    else:
        torch._check_value(condition, lambda: f"eca_triton::{message()}")


def _shape(x: Tensor) -> str:
    return str(tuple(x.shape))


def _presence(x: Tensor | None) -> str:
    return "None" if x is None else "given"
