"""What the operators accept, said by name, rule and value.

Run by the operators and by their fakes, through `torch._check*`: a wrong call also fails under fake tensors,
torch.export and torch.compile. Dtypes, devices, names and numbers of dims are compared in Python, which costs
eager calls least; sizes, which may be symbolic, by `_check_size`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import NoReturn

import torch
from torch import Tensor

from ..activations import ACTIVATIONS, GATES, PRE_ACTIVATIONS, SELECTING
from ..reference.arguments import (
    BackwardArguments,
    BatchNormArguments,
    PoolArguments,
    PoolBackwardArguments,
    ProjectionArguments,
    RescaledArguments,
    SiteArguments,
)
from ..reference.training import MASK_ORDERS

FLOATING = frozenset({torch.float64, torch.float32, torch.float16, torch.bfloat16})


def check_site(op: str, a: SiteArguments) -> None:
    """Checks the arguments of `gate` and `eca`.

    Raises:
        TypeError: a dtype is not one of float64, float32, float16 and bfloat16.
        ValueError: a shape, a device, or the name of a gate or activation is wrong.
    """
    _check_map(op, a)
    _check_out_dtype(op, a.out_dtype)
    _check_name(op, "pre_activation", a.pre_activation, PRE_ACTIVATIONS)
    _check_neighbours(op, a)


def check_batch_norm_eca(op: str, a: BatchNormArguments) -> None:
    """Checks the arguments of `batch_norm_eca`; raises as `check_site`."""
    _check_map(op, a)
    _check_out_dtype(op, a.out_dtype)
    _check_name(op, "activation", a.activation, ("identity", "relu"))
    channels = a.x.shape[1]
    for name in ("bn_weight", "bn_bias"):
        vector = getattr(a, name)
        if vector is not None:
            _check_vector(op, name, vector, channels, "x", a.x)
    if a.pack_mask and (a.activation != "relu" or channels % 8 != 0):
        _fail(op, f"pack_mask needs relu and channels in eights, got {a.activation} and {channels} channels")


def check_pool(op: str, a: PoolArguments) -> None:
    """Checks the arguments of `gate_from_pool`; raises as `check_site`."""
    _check_pooled(op, a)
    _check_out_dtype(op, a.out_dtype)


def check_pool_backward(op: str, a: PoolBackwardArguments) -> None:
    """Checks the arguments of `gate_from_pool_backward`; raises as `check_site`."""
    _check_pooled(op, a)
    _check_companion(op, "grad", a.grad, "pooled", a.pooled)


def check_projection(op: str, a: ProjectionArguments) -> None:
    """Checks the arguments of `gate_from_projection`; raises as `check_site`."""
    pooled, projection = a.pooled, a.projection
    _check_floating(op, "pooled", pooled.dtype)
    if pooled.ndim != 2:
        _fail(op, f"pooled must be (N, I), got {_shape(pooled)}")
    _check_convolution(op, projection, "pooled", pooled)
    channels = projection.shape[0]
    _check_kernel(op, "projection", channels, projection, a.weight, a.bias, a.circular)
    _check_name(op, "gate", a.gate, GATES)
    if a.projection_bias is not None:
        _check_vector(op, "projection_bias", a.projection_bias, channels, "projection", projection)
    _check_batch_norm(op, a, channels, "projection", projection)
    _check_out_dtype(op, a.out_dtype)


def check_rescaled(op: str, a: RescaledArguments) -> None:
    """Checks the arguments of `rescaled_projection`; raises as `check_site`."""
    _check_floating(op, "x", a.x.dtype)
    if a.x.ndim < 3:
        _fail(op, f"x must be (N, I, *spatial), got {_shape(a.x)}")
    _check_convolution(op, a.projection, "x", a.x)
    for name in ("factor", "summand"):
        term = getattr(a, name)
        if term is not None:
            _check_floating(op, name, term.dtype)
            _check_matrix(op, name, term, a.projection.shape[0], a.x)
    _check_out_dtype(op, a.out_dtype)


def _check_convolution(op: str, projection: Tensor, name: str, x: Tensor) -> None:
    """The matrix of a 1x1 convolution of x."""
    _check_floating(op, "projection", projection.dtype)
    _check_device(op, "projection", projection, name, x)
    if projection.ndim < 2 or any(size != 1 for size in projection.shape[2:]):
        _fail(op, f"projection must be (C, I) or (C, I, 1, ...), got {_shape(projection)}")
    _check_size(
        op,
        projection.shape[1] == x.shape[1],
        lambda: f"projection must have {x.shape[1]} columns, as {name}, got {_shape(projection)}",
    )


def check_forward(op: str, a: SiteArguments) -> None:
    """Checks the arguments of `eca_forward`; raises as `check_site`."""
    check_site(op, a)
    _check_mask_order(op, a)


def check_backward(op: str, a: BackwardArguments) -> None:
    """Checks the arguments of `eca_backward`; raises as `check_site`."""
    _check_map(op, a)
    _check_neighbours(op, a)
    _check_mask_order(op, a)
    _check_companion(op, "grad", a.grad, "x", a.x)
    _check_matrix(op, "pooled", a.pooled, a.x.shape[1], a.x)
    if (a.mask is None) != (a.mask_order == "none"):
        order = f"mask_order={a.mask_order!r}"
        _fail(op, f"mask must be given where mask_order is not none, and only there, got {order}")
    if a.mask is not None:
        if a.mask.dtype != torch.uint8:
            _fail(op, f"mask must be uint8, got {a.mask.dtype}", TypeError)
        _check_matrix(op, "mask", a.mask, math.prod(a.x.shape[1:]) // 8, a.x)
    if a.wants_residual and a.activation == "identity":
        _fail(op, "wants_residual needs an activation: without one that gradient is grad itself")
    if a.wants_bn and a.bn_mean is None:
        _fail(op, "wants_bn needs a batch norm, got bn_mean=None")


def check_same_dtype(op: str, x: Tensor, weight: Tensor) -> None:
    """The rule of the public functions, as eager convolutions have it: one dtype, except under autocast."""
    if x.dtype == weight.dtype:
        return
    device_type = x.device.type
    if device_type == "meta" or not torch.is_autocast_enabled(device_type):  # which does not know "meta"
        dtypes = f"{x.dtype} and {weight.dtype}"
        _fail(op, f"x and weight must share their dtype outside autocast, got {dtypes}", TypeError)


def _check_map(op: str, a: SiteArguments | BackwardArguments | BatchNormArguments) -> None:
    """Check what every operator on maps has."""
    x = a.x
    _check_floating(op, "x", x.dtype)
    if x.ndim < 3:
        _fail(op, f"x must be (N, C, *spatial) with at least 3 dims, got {_shape(x)}")
    _check_kernel(op, "x", x.shape[1], x, a.weight, a.bias, a.circular)
    _check_name(op, "gate", a.gate, GATES)
    if a.residual is not None:
        _check_companion(op, "residual", a.residual, "x", x)


def _check_neighbours(op: str, a: SiteArguments | BackwardArguments) -> None:
    """Check the batch norm before the site and the activation behind it."""
    _check_name(op, "activation", a.activation, ACTIVATIONS)
    _check_batch_norm(op, a, a.x.shape[1], "x", a.x)


def _check_out_dtype(op: str, dtype: torch.dtype | None) -> None:
    if dtype is not None:
        _check_floating(op, "out_dtype", dtype)


def _check_pooled(op: str, a: PoolArguments | PoolBackwardArguments) -> None:
    pooled = a.pooled
    _check_floating(op, "pooled", pooled.dtype)
    if pooled.ndim != 2:
        _fail(op, f"pooled must be (N, C), got {_shape(pooled)}")
    _check_kernel(op, "pooled", pooled.shape[1], pooled, a.weight, a.bias, a.circular)
    _check_name(op, "gate", a.gate, GATES)


def _check_kernel(
    op: str,
    name: str,
    channels: int,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    circular: bool,
) -> None:
    shape = weight.shape
    _check_size(op, channels > 0, lambda: f"{name} must have at least one channel, got {_shape(x)}")
    _check_floating(op, "weight", weight.dtype)
    _check_device(op, "weight", weight, name, x)
    if len(shape) not in (1, 3) or (len(shape) == 3 and shape[:2] != (1, 1)) or shape[-1] % 2 != 1:
        _fail(op, f"weight must have an odd number k of taps, shaped (1, 1, k) or (k,), got {_shape(weight)}")
    if circular:
        k = shape[-1]
        _check_size(
            op,
            k // 2 <= channels,
            lambda: (
                f"circular padding must not wrap around twice: "
                f"a weight of {k} taps needs at least {k // 2} channels, got {channels}"
            ),
        )
    if bias is not None:
        _check_vector(op, "bias", bias, 1, name, x)


def _check_batch_norm(
    op: str,
    a: SiteArguments | BackwardArguments | ProjectionArguments,
    channels: int,
    owner: str,
    x: Tensor,
) -> None:
    if a.bn_mean is None and a.bn_var is None and a.bn_weight is None and a.bn_bias is None:
        return
    if a.bn_mean is None or a.bn_var is None:
        missing = "bn_mean" if a.bn_mean is None else "bn_var"
        _fail(op, f"a batch norm must have bn_mean and bn_var, got {missing}=None")
    for name in ("bn_mean", "bn_var", "bn_weight", "bn_bias"):
        vector = getattr(a, name)
        if vector is not None:
            _check_vector(op, name, vector, channels, owner, x)


def _check_mask_order(op: str, a: SiteArguments | BackwardArguments) -> None:
    _check_name(op, "mask_order", a.mask_order, MASK_ORDERS)
    if a.mask_order == "none":
        return
    _check_name(op, "activation with a mask_order", a.activation, SELECTING)
    _check_size(
        op,
        math.prod(a.x.shape[1:]) % 8 == 0,
        lambda: f"a mask_order needs images of a multiple of 8 elements, got {_shape(a.x)}",
    )


def _check_matrix(op: str, name: str, matrix: Tensor, columns: int, x: Tensor) -> None:
    _check_device(op, name, matrix, "x", x)
    if matrix.ndim != 2:
        _fail(op, f"{name} must be ({x.shape[0]}, {columns}), got {_shape(matrix)}")
    for size, wanted in zip(matrix.shape, (x.shape[0], columns), strict=True):
        _check_size(
            op, size == wanted, lambda: f"{name} must be ({x.shape[0]}, {columns}), got {_shape(matrix)}"
        )


def _check_vector(op: str, name: str, vector: Tensor, length: int, owner: str, x: Tensor) -> None:
    _check_floating(op, name, vector.dtype)
    _check_device(op, name, vector, owner, x)
    if vector.ndim != 1:
        _fail(op, f"{name} must be ({length},), got {_shape(vector)}")
    _check_size(op, vector.shape[0] == length, lambda: f"{name} must be ({length},), got {_shape(vector)}")


def _check_companion(op: str, name: str, tensor: Tensor, owner: str, x: Tensor) -> None:
    _check_floating(op, name, tensor.dtype)
    _check_device(op, name, tensor, owner, x)
    if tensor.ndim != x.ndim:
        _fail(op, f"{name} must have the shape of {owner} {_shape(x)}, got {_shape(tensor)}")
    for size, wanted in zip(tensor.shape, x.shape, strict=True):
        _check_size(
            op,
            size == wanted,
            lambda: f"{name} must have the shape of {owner} {_shape(x)}, got {_shape(tensor)}",
        )


def _check_floating(op: str, name: str, dtype: torch.dtype) -> None:
    if dtype not in FLOATING:
        _fail(op, f"{name} must be float64, float32, float16 or bfloat16, got {dtype}", TypeError)


def _check_device(op: str, name: str, tensor: Tensor, owner: str, x: Tensor) -> None:
    if tensor.device != x.device:
        _fail(op, f"{name} must be on the device of {owner}, got {tensor.device} and {x.device}")


def _check_name(op: str, argument: str, value: str, known: Iterable[str]) -> None:
    if value not in known:
        _fail(op, f"{argument} must be one of {', '.join(known)}, got {value!r}")


def _check_size(op: str, holds: bool | torch.SymBool, rule: Callable[[], str]) -> None:
    if holds is True:
        return
    if torch.compiler.is_dynamo_compiling() or isinstance(holds, bool):
        if not holds:
            _fail(op, rule())
    else:
        # Guards a symbolic size, or defers the check to run time where the size is data-dependent.
        torch._check_value(holds, lambda: f"eca_triton::{op}: {rule()}")


def _fail(op: str, rule: str, error: type[Exception] = ValueError) -> NoReturn:
    message = f"eca_triton::{op}: {rule}"
    if not torch.compiler.is_dynamo_compiling():  # which cannot trace a message with values in it
        check = torch._check_type if error is TypeError else torch._check_value
        check(False, lambda: message)
    raise error(message)


def _shape(x: Tensor) -> str:
    return str(tuple(x.shape))
