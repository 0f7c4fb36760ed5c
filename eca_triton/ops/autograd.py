"""Differentiation of the operators, as kernels on the Autograd key: no cost where no gradient is asked for.

`gate_from_pool` is one node with its own backward operator. `gate` and `eca` are compositions of native
operators around it. Where a functorch transform or forward-mode differentiation is at work, everything is the
plain formula, which all of them can take apart.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import peek_interpreter_stack
from torch.autograd import forward_ad

from .. import reference
from ..private import function_modes_are_active, profiler_is_active, untraced
from . import checks
from .implementation import CALLS
from .schema import (
    ECA,
    GATE,
    GATE_FROM_POOL,
    GATE_FROM_POOL_BACKWARD,
    LIBRARY,
    PoolArguments,
    PoolBackwardArguments,
    SiteArguments,
)


@untraced
def call(op: Callable[..., Any], tensors: tuple[Tensor | None, ...], options: dict[str, Any]) -> Any:
    """op(*tensors, **options), past the dispatcher where an earlier call is made again and nobody listens.

    `options`: as for `Calls.again`.
    """
    if not (_differentiates(tensors) or function_modes_are_active() or profiler_is_active()):
        result = CALLS[op].again(tensors, options)
        if result is not None:
            return result
    return op(*tensors, **options)


class _GateFromPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: PoolArguments, pooled: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(pooled, weight, bias)
        ctx.options = {"circular": a.circular, "gate": a.gate}
        with torch._C._AutoDispatchBelowAutograd():
            return GATE_FROM_POOL(pooled, weight, bias, **ctx.options, out_dtype=a.out_dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        pooled, weight, bias = ctx.saved_tensors
        d_pooled, d_weight, d_bias = GATE_FROM_POOL_BACKWARD(grad, pooled, weight, bias, **ctx.options)
        _, needs_pooled, needs_weight, needs_bias = ctx.needs_input_grad
        return (
            None,
            d_pooled if needs_pooled else None,
            d_weight if needs_weight else None,
            d_bias.to(bias.dtype) if needs_bias else None,
        )


def _derivative_of(op: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorates what is to be done where a derivative is asked for; elsewhere the operator goes on."""
    again = CALLS[op].again

    def decorate(derivative: Callable[..., Any]) -> Callable[..., Any]:
        @untraced
        def kernel(*args: Any, **kwargs: Any) -> Any:
            if _differentiates(args):
                return derivative(*args, **kwargs)
            # An earlier call made again need not pass the dispatcher a second time.
            result = again(args, kwargs)
            if result is None:
                with torch._C._AutoDispatchBelowAutograd():
                    result = op(*args, **kwargs)
            return result

        return kernel

    return decorate


@_derivative_of(GATE_FROM_POOL)
def _gate_from_pool(*args: Any, **kwargs: Any) -> Tensor:
    a = PoolArguments(*args, **kwargs)
    checks.check_pool("gate_from_pool", a)
    if transforms_are_active():
        return reference.gate_from_pool(**a._asdict())
    return _GateFromPool.apply(a, a.pooled, a.weight, a.bias)  # type: ignore[no-any-return]


@_derivative_of(GATE_FROM_POOL_BACKWARD)
def _gate_from_pool_backward(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor, Tensor]:
    a = PoolBackwardArguments(*args, **kwargs)
    checks.check_pool_backward("gate_from_pool_backward", a)
    return reference.gate_from_pool_backward(**a._asdict())


@_derivative_of(GATE)
def _gate(*args: Any, **kwargs: Any) -> Tensor:
    a = SiteArguments(*args, **kwargs)
    checks.check_site("gate", a)
    return reference.gate(
        a.x, a.weight, a.bias, **a.gate_options, out_dtype=a.out_dtype, gate_from_pool=_gate_from_pool
    )


@_derivative_of(ECA)
def _eca(*args: Any, **kwargs: Any) -> Tensor:
    a = SiteArguments(*args, **kwargs)
    checks.check_site("eca", a)
    return reference.eca(
        a.x, a.weight, a.bias, **a.eca_options, out_dtype=a.out_dtype, gate_from_pool=_gate_from_pool
    )


def _differentiates(args: tuple[Any, ...]) -> bool:
    """Whether a derivative of any kind is asked for. No keyword argument is a tensor."""
    if transforms_are_active():
        return True
    if torch.is_grad_enabled():
        for tensor in args:
            if tensor is not None and tensor.requires_grad:
                return True
    return False


def transforms_are_active() -> bool:
    """Whether a functorch transform or forward-mode differentiation is at work."""
    # An autograd.Function with saved tensors and without a jvp would raise under functorch, and a call below
    # autograd would silently drop the tangents of dual tensors.
    return forward_ad._current_level >= 0 or peek_interpreter_stack() is not None


LIBRARY.impl("gate", _gate, "Autograd")
LIBRARY.impl("eca", _eca, "Autograd")
LIBRARY.impl("gate_from_pool", _gate_from_pool, "Autograd")
LIBRARY.impl("gate_from_pool_backward", _gate_from_pool_backward, "Autograd")
