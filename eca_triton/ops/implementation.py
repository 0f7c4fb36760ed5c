"""What the operators compute: Triton kernels where they can run, else the reference."""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import reference, reference_training
from ..call import BackwardCall, Call, GateCall, ProductCall
from ..direct import Calls, scratch
from ..private import untraced
from .schema import (
    ECA,
    GATE,
    GATE_FROM_POOL,
    GATE_FROM_POOL_BACKWARD,
    LIBRARY,
    check_and_allocate_eca,
    check_and_allocate_gate,
    check_and_allocate_gate_from_pool,
    check_and_allocate_gate_from_pool_backward,
)
from .schema_projection import (
    AFFINE_FROM_PROJECTION,
    GATE_FROM_PROJECTION,
    RESCALED_PROJECTION,
    channels_last,
    check_and_allocate_affine_from_projection,
    check_and_allocate_gate_from_projection,
    check_and_allocate_rescaled_projection,
)
from .schema_training import (
    ECA_BACKWARD,
    ECA_FORWARD,
    BackwardArguments,
    ForwardArguments,
    check_and_allocate_eca_backward,
    check_and_allocate_eca_forward,
)

CALLS: dict[Callable[..., Any], Calls] = {
    op: Calls()
    for op in (
        GATE, ECA, ECA_FORWARD, ECA_BACKWARD, GATE_FROM_POOL, GATE_FROM_POOL_BACKWARD,
        GATE_FROM_PROJECTION, AFFINE_FROM_PROJECTION,
        RESCALED_PROJECTION,
    )
}  # fmt: skip
"""Per operator the calls that were launched before."""


def _first_of(op: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorates what is to be done unless the call can be launched as an earlier one was."""
    again = CALLS[op].again

    def decorate(first: Callable[..., Any]) -> Callable[..., Any]:
        @untraced
        def kernel(*args: Any, **kwargs: Any) -> Any:
            result = again(args, kwargs)
            return first(*args, **kwargs) if result is None else result

        return kernel

    return decorate


@_first_of(GATE)
def _gate(*args: Any, **kwargs: Any) -> Tensor:
    a, out = check_and_allocate_gate(*args, **kwargs)
    if not have_kernels(a.x):
        return out.copy_(reference.gate(a.x, a.weight, a.bias, **a.gate_options, out_dtype=out.dtype))
    from ..launch import gates

    with CALLS[GATE].first(args, kwargs, (out,)):
        gates.gate(GateCall(a.x, a.weight, a.bias, **a.gate_options, out=out))
    return out


@_first_of(ECA)
def _eca(*args: Any, **kwargs: Any) -> Tensor:
    a, out = check_and_allocate_eca(*args, **kwargs)
    if not have_kernels(a.x):
        # In the dtype of the arithmetic: the copy into `out` is the one rounding.
        dtype = reference.compute_dtype(a.x)
        return out.copy_(reference.eca(a.x, a.weight, a.bias, **a.eca_options, out_dtype=dtype))
    from ..launch import forward

    with CALLS[ECA].first(args, kwargs, (out,)):
        forward.eca(Call(a.x, a.weight, a.bias, **a.eca_options, out=out))
    return out


@_first_of(ECA_FORWARD)
def _eca_forward(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor, Tensor]:
    a, outs = check_and_allocate_eca_forward(*args, **kwargs)
    if have_kernels(a.x):
        from ..launch import training

        with CALLS[ECA_FORWARD].first(args, kwargs, outs):
            training.eca_forward(forward_call(a, outs), a.mask_order)
        return outs
    results = reference_training.eca_forward(
        a.x, a.weight, a.bias, **a.options, mask_order=a.mask_order, out_dtype=outs[0].dtype
    )
    for out, result in zip(outs, results, strict=True):
        out.copy_(result)
    return outs


@_first_of(ECA_BACKWARD)
def _eca_backward(*args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
    a, outs = check_and_allocate_eca_backward(*args, **kwargs)
    if have_kernels(a.x):
        with CALLS[ECA_BACKWARD].first(args, kwargs, outs):
            _launch_backward(a, outs)
        return outs
    gradients = reference_training.eca_backward(
        a.grad, a.x, a.weight, a.bias, **a.options,
        pooled=a.pooled, mask=a.mask, mask_order=a.mask_order, **a.wanted,
    )  # fmt: skip
    for out, gradient in zip(outs, gradients, strict=True):
        if gradient is not None:
            out.copy_(gradient)
    return outs


def _launch_backward(a: BackwardArguments, outs: tuple[Tensor, ...]) -> None:
    from ..launch import training

    call = backward_call(a, outs)
    training.eca_backward(call, a.mask_order)
    if a.wants_band or a.wants_bn:
        training.parameter_gradients(call, *(out if out.numel() else None for out in outs[2:]))


def forward_call(a: ForwardArguments, outs: tuple[Tensor, Tensor, Tensor]) -> Call:
    """What the launcher fills `eca_forward`'s outputs by."""
    out, pooled, mask = outs
    return Call(
        a.x, a.weight, a.bias, pre_activation="identity", **a.options,
        out=out, pooled=pooled, mask=None if a.mask_order == "none" else mask,
    )  # fmt: skip


def backward_call(a: BackwardArguments, outs: tuple[Tensor, ...]) -> BackwardCall:
    """What the launcher fills `eca_backward`'s gradients of maps by, and with scratch for the others."""
    d_x, d_residual = (out if out.numel() else None for out in outs[:2])
    sums = a.wants_x or a.wants_band or a.wants_bn
    shape, device = tuple(a.pooled.shape), a.x.device
    pooled = a.pooled.to(torch.float32).contiguous()  # as it left `eca_forward`, unless somebody moved it
    mask = None if a.mask is None else a.mask.contiguous()
    return BackwardCall(
        dy=a.grad, x=a.x, weight=a.weight, bias=a.bias, **a.options, pooled=pooled, mask=mask,
        d_x=d_x, d_residual=d_residual,
        d_gate=scratch(shape, torch.float32, device) if sums else None,
        p_sum=scratch(shape, torch.float32, device) if a.wants_bn else None,
        p_dot_x=scratch(shape, torch.float32, device) if a.wants_bn else None,
    )  # fmt: skip


@_first_of(GATE_FROM_POOL)
def _gate_from_pool(*args: Any, **kwargs: Any) -> Tensor:
    a, out = check_and_allocate_gate_from_pool(*args, **kwargs)
    options: dict[str, Any] = {"circular": a.circular, "gate": a.gate}
    if not have_kernels(a.pooled):
        return out.copy_(reference.gate_from_pool(a.pooled, a.weight, a.bias, **options, out_dtype=out.dtype))
    from ..launch import gates

    with CALLS[GATE_FROM_POOL].first(args, kwargs, (out,)):
        gates.gate_from_pool(a.pooled, a.weight, a.bias, **options, out=out)
    return out


@_first_of(GATE_FROM_POOL_BACKWARD)
def _gate_from_pool_backward(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor, Tensor]:
    a, outs = check_and_allocate_gate_from_pool_backward(*args, **kwargs)
    options: dict[str, Any] = {"circular": a.circular, "gate": a.gate}
    if not have_kernels(a.pooled):
        grads = reference.gate_from_pool_backward(a.grad, a.pooled, a.weight, a.bias, **options)
        for out, grad in zip(outs, grads, strict=True):
            out.copy_(grad)
    else:
        from ..launch import gates

        d_pooled, d_weight, d_bias = outs
        with CALLS[GATE_FROM_POOL_BACKWARD].first(args, kwargs, outs):
            gates.gate_from_pool_backward(
                a.grad, a.pooled, a.weight, a.bias, **options,
                d_pooled=d_pooled, d_weight=d_weight, d_bias=d_bias,
            )  # fmt: skip
    return outs


@_first_of(GATE_FROM_PROJECTION)
def _gate_from_projection(*args: Any, **kwargs: Any) -> Tensor:
    a, out = check_and_allocate_gate_from_projection(*args, **kwargs)
    if out.numel() == 0 or not have_kernels(a.pooled):
        gates = reference.gate_from_projection(
            a.pooled, a.projection, a.weight, a.bias, **a.options, out_dtype=out.dtype
        )
        return out.copy_(gates)
    from ..launch import projection

    with CALLS[GATE_FROM_PROJECTION].first(args, kwargs, (out,)):
        projection.gates(a.pooled, a.projection, a.weight, a.bias, **a.options, out=out, shift=None)
    return out


@_first_of(AFFINE_FROM_PROJECTION)
def _affine_from_projection(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
    a, outs = check_and_allocate_affine_from_projection(*args, **kwargs)
    out, shift = outs
    if out.numel() == 0 or not have_kernels(a.pooled):
        terms = reference.affine_from_projection(
            a.pooled, a.projection, a.weight, a.bias, **a.options, out_dtype=out.dtype
        )
        return out.copy_(terms[0]), shift.copy_(terms[1])
    from ..launch import projection

    with CALLS[AFFINE_FROM_PROJECTION].first(args, kwargs, outs):
        projection.gates(a.pooled, a.projection, a.weight, a.bias, **a.options, out=out, shift=shift)
    return outs


@_first_of(RESCALED_PROJECTION)
def _rescaled_projection(*args: Any, **kwargs: Any) -> Tensor:
    a, out = check_and_allocate_rescaled_projection(*args, **kwargs)
    # Channels that are not innermost make rows of a matrix that no vector access reads.
    if out.numel() and channels_last(a.x) and have_kernels(a.x):
        from ..launch import projection

        if projection.takes(a.x):
            with CALLS[RESCALED_PROJECTION].first(args, kwargs, (out,)):
                projection.rescaled(ProductCall(a.x, a.projection, a.factor, a.summand, out))
            return out
    dtype = reference.compute_dtype(a.x)
    return out.copy_(reference.rescaled_projection(a.x, a.projection, a.factor, a.summand, out_dtype=dtype))


def have_kernels(x: Tensor) -> bool:
    """Whether our kernels run for x; else the reference computes."""
    if x.device.type != "cuda" and not (x.device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"):
        return False
    supports = _supports()
    return supports is not None and supports(x)


@functools.cache
def _supports() -> Callable[[Tensor], bool] | None:
    """What the kernels take; None where there is no Triton, which the launchers are the first to import."""
    if importlib.util.find_spec("triton") is None:
        return None
    from ..launch.devices import supports

    return supports


# One function for every device: it is below autograd, and asks x where to go.
LIBRARY.impl("gate", _gate, "CompositeExplicitAutograd")
LIBRARY.impl("eca", _eca, "CompositeExplicitAutograd")
LIBRARY.impl("eca_forward", _eca_forward, "CompositeExplicitAutograd")
LIBRARY.impl("eca_backward", _eca_backward, "CompositeExplicitAutograd")
LIBRARY.impl("gate_from_pool", _gate_from_pool, "CompositeExplicitAutograd")
LIBRARY.impl("gate_from_pool_backward", _gate_from_pool_backward, "CompositeExplicitAutograd")
LIBRARY.impl("gate_from_projection", _gate_from_projection, "CompositeExplicitAutograd")
LIBRARY.impl("affine_from_projection", _affine_from_projection, "CompositeExplicitAutograd")
LIBRARY.impl("rescaled_projection", _rescaled_projection, "CompositeExplicitAutograd")
