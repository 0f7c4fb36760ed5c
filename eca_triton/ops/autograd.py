"""Differentiation of the operators, as kernels on the Autograd key: no cost where no gradient is asked for.

`eca` is one node of two operators, `eca_forward` and `eca_backward`; `gate_from_pool` is one with a backward
operator. `gate`, the two from a projection, and `eca` where an activation comes before pooling or the
statistics of a batch norm need gradients, are compositions of native operators around `gate_from_pool`.
A backward operator that is differentiated is one node too, with the derivatives of its plain formula.
Functorch transforms and forward-mode differentiation take every operator apart, into its plain formula.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import peek_interpreter_stack
from torch.autograd import forward_ad

from ..reference.arguments import BackwardArguments, PoolArguments, SiteArguments
from ..util.private import function_modes_are_active, profiler_is_active, untraced
from .implementation import CALLS
from .operators import OPERATORS, checked_arguments, name_of
from .outputs import mask_order_for
from .schema import (
    ECA,
    ECA_BACKWARD,
    ECA_FORWARD,
    GATE_FROM_POOL,
    GATE_FROM_POOL_BACKWARD,
    LIBRARY,
    changed,
)

Formula = Callable[[Any], Any]
Node = Callable[[Any, Formula], Any]
"""Computes an operator's arguments as a node of autograd, or by the formula that it is given."""


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
            d_bias if needs_bias else None,
        )


class _Eca(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        a: SiteArguments,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        bn_mean: Tensor | None,
        bn_var: Tensor | None,
        bn_weight: Tensor | None,
        bn_bias: Tensor | None,
        residual: Tensor | None,
    ) -> Tensor:
        site = (x, weight, bias, bn_mean, bn_var, bn_weight, bn_bias)
        options: dict[str, Any] = {
            "bn_eps": a.bn_eps,
            "circular": a.circular,
            "gate": a.gate,
            "gain": a.gain,
            "activation": a.activation,
            "mask_order": mask_order_for(x, residual, a.activation),
        }
        tensors, arguments = (*site, residual), changed(SiteArguments, **options, out_dtype=a.out_dtype)
        with torch._C._AutoDispatchBelowAutograd():
            out, pooled, mask = call(ECA_FORWARD, tensors, arguments)
        ctx.options = options
        if a.activation == "identity":
            residual = None
            if not any(ctx.needs_input_grad[1:8]):  # only the residual's, which is the incoming one
                return out  # type: ignore[no-any-return]
        masked = options["mask_order"] != "none"
        ctx.save_for_backward(*site, None if masked else residual, pooled, mask if masked else None)
        return out  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        _, needs_x, needs_weight, needs_bias, _, _, needs_bn_weight, needs_bn_bias, needs_residual = (
            ctx.needs_input_grad
        )
        d_x = d_weight = d_bias = d_bn_weight = d_bn_bias = None
        d_residual = grad
        saved = ctx.saved_tensors  # once: each access unpacks, which checkpointing allows once
        if saved:
            active = ctx.options["activation"] != "identity"
            options = changed(
                BackwardArguments,
                **ctx.options,
                wants_x=needs_x,
                wants_residual=needs_residual and active,
                wants_band=needs_weight or needs_bias,
                wants_bn=needs_bn_weight or needs_bn_bias,
            )
            gradients = call(ECA_BACKWARD, (grad, *saved), options)
            d_x, p, d_weight, d_bias, d_bn_weight, d_bn_bias = gradients
            d_residual = p if active else grad
        return (
            None,
            d_x if needs_x else None,
            d_weight if needs_weight else None,
            d_bias if needs_bias else None,
            None,
            None,
            d_bn_weight if needs_bn_weight else None,
            d_bn_bias if needs_bn_bias else None,
            d_residual if needs_residual else None,
        )


class _Backward(torch.autograd.Function):
    """A backward operator as one node, also where it is traced with grad mode on, as in a body of `scan`."""

    @staticmethod
    def forward(ctx: Any, op: Any, formula: Formula, a: Any, *tensors: Tensor | None) -> Any:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors)
        ctx.formula, ctx.arguments, ctx.options = formula, type(a), a[len(tensors) :]
        with torch._C._AutoDispatchBelowAutograd():
            return op(*tensors, **dict(zip(a._fields[len(tensors) :], ctx.options, strict=True)))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        wanted = ctx.needs_input_grad[3:]
        with torch.enable_grad():  # views, so that no input is the same tensor as another
            inputs = [None if tensor is None else tensor.view_as(tensor) for tensor in ctx.saved_tensors]
            results = ctx.formula(ctx.arguments(*inputs, *ctx.options))
        pairs = [(r, g) for r, g in zip(results, grads, strict=True) if g is not None and r.requires_grad]
        if not pairs:
            return (None,) * (3 + len(inputs))
        derivatives = iter(
            torch.autograd.grad(
                [result for result, _ in pairs],
                [tensor for tensor, want in zip(inputs, wanted, strict=True) if want and tensor is not None],
                [grad for _, grad in pairs],
                create_graph=torch.is_grad_enabled(),
                allow_unused=True,
            )
        )
        return (None, None, None, *(next(derivatives) if want else None for want in wanted))


def _gate_from_pool(a: PoolArguments, formula: Formula) -> Tensor:
    return _GateFromPool.apply(a, a.pooled, a.weight, a.bias)  # type: ignore[no-any-return]


def _eca(a: SiteArguments, formula: Formula) -> Any:
    constant = all(v is None or not v.requires_grad for v in (a.bn_mean, a.bn_var))
    if not constant or a.pre_activation != "identity":
        return formula(a)
    return _Eca.apply(a, a.x, a.weight, a.bias, a.bn_mean, a.bn_var, a.bn_weight, a.bn_bias, a.residual)


def _backward(op: Any) -> Node:
    def node(a: Any, formula: Formula) -> Any:
        tensors = itertools.takewhile(lambda value: value is None or isinstance(value, Tensor), a)
        return _Backward.apply(op, formula, a, *tensors)

    return node


def _derivative_of(op: Any) -> Callable[..., Any]:
    """Make what is called where a derivative is asked for: a node of ours, else the formula."""
    given: dict[str, Any] = {}
    if OPERATORS[op].composed:
        given["gate_from_pool"] = _differentiable_gate
    if op is ECA_BACKWARD:
        given["pools"] = True  # the means follow from x, and so does their derivative
    formula, node = functools.partial(OPERATORS[op].formula, **given), NODES.get(op)

    def derivative(*args: Any, **kwargs: Any) -> Any:
        a = checked_arguments(op, *args, **kwargs)
        return formula(a) if node is None or transforms_are_active() else node(a, formula)

    return derivative


def _kernel(op: Any, derivative: Callable[..., Any]) -> Callable[..., Any]:
    """The operator where derivatives are: its own where one is asked for; elsewhere the operator goes on."""
    again = CALLS[op].again

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


def _differentiates(args: tuple[Any, ...]) -> bool:
    """Return whether a derivative of any kind is asked for. No keyword argument is a tensor."""
    if transforms_are_active():
        return True
    if torch.is_grad_enabled():
        for tensor in args:
            if tensor is not None and tensor.requires_grad:
                return True
    return False


def transforms_are_active() -> bool:
    """Return whether a functorch transform or forward-mode differentiation is at work."""
    # An autograd.Function with saved tensors and without a jvp would raise under functorch, and a call below
    # autograd would silently drop the tangents of dual tensors.
    return forward_ad._current_level >= 0 or peek_interpreter_stack() is not None


# Operators that are one node, where no transform takes them apart.
NODES: dict[Any, Node] = {
    GATE_FROM_POOL: _gate_from_pool,
    GATE_FROM_POOL_BACKWARD: _backward(GATE_FROM_POOL_BACKWARD),
    ECA: _eca,
    ECA_BACKWARD: _backward(ECA_BACKWARD),
}
_differentiable_gate = _kernel(GATE_FROM_POOL, _derivative_of(GATE_FROM_POOL))
for _op in OPERATORS:
    LIBRARY.impl(name_of(_op), _kernel(_op, _derivative_of(_op)), "Autograd")
