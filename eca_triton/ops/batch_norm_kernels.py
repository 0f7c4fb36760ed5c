"""`batch_norm_eca` in eager mode, where Triton kernels can run: what they take, and one launch each way.

No operators: under torch.compile the native formula is better, so nothing ever traces these calls.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..launch.replay import Calls, scratch
from ..reference.arguments import BackwardArguments, BatchNormArguments, SiteArguments
from ..util.private import number_of_dispatch_modes, untraced
from . import implementation
from .outputs import mask_order_for

_PLAIN = frozenset({Tensor, torch.nn.Parameter})


class Statistics(NamedTuple):
    """Values that backward needs beside the arguments, fp32: means of x [N, C]; mean and biased variance [C].

    mask: a bit per element where ReLU was open, as of `eca_forward`; without it backward needs the residual.
    """

    means: Tensor
    mean: Tensor
    var: Tensor
    mask: Tensor | None


def take(a: BatchNormArguments, *others: Tensor) -> bool:
    """Return whether kernels compute this call: no tracer or mode sees it, and its tensors are on a GPU."""
    return (
        not a.group
        and not torch.compiler.is_compiling()
        and not number_of_dispatch_modes()
        and all(tensor is None or type(tensor) in _PLAIN for tensor in (*a[:6], *others))
        and implementation.have_kernels(a.x)
    )


def mask_order(a: BatchNormArguments) -> str:
    """The order of the bits that `forward` is to keep for backward, if any."""
    return mask_order_for(a.x, None, a.activation)


@untraced
def forward(a: BatchNormArguments, order: str) -> tuple[Tensor, Tensor, Statistics]:
    """The result, the batch's unbiased variance, and what backward needs."""
    options = _options(a) | {"order": order, "out_dtype": a.out_dtype}
    outs = CALLS[forward].again(a[:6], options)
    if outs is None:
        outs = _first_forward(a, order, options)
    out, means, mean, var, unbiased, mask = outs
    return out, unbiased, Statistics(means, mean, var, None if order == "none" else mask)


@untraced
def backward(
    a: BatchNormArguments, statistics: Statistics, order: str, dy: Tensor, needs: tuple[bool, ...]
) -> tuple[Tensor | None, ...]:
    """Gradients of the six tensors; what is not needed may be None. The residual's has the dtype of dy."""
    tensors = (dy, *a[:6], *statistics)
    options = _options(a) | {"order": order, "needs": needs}
    outs = CALLS[backward].again(tensors, options)
    if outs is None:
        outs = _first_backward(a, statistics, order, dy, needs, tensors, options)
    d_x, d_residual, *d_parameters = (out if out.numel() else None for out in outs)
    return d_x, *d_parameters, dy if a.activation == "identity" else d_residual


# Beside those of the operators: what is done with all plans is done with these.
CALLS: dict[Callable[..., Any], Calls] = implementation.CALLS
CALLS.update({forward: Calls(), backward: Calls()})


def _first_forward(a: BatchNormArguments, order: str, options: dict[str, object]) -> tuple[Tensor, ...]:
    from ..launch import batch_norm
    from ..launch.call import EcaCall

    n, c = a.x.shape[:2]
    bits = 0 if order == "none" else a.x[0].numel() // 8
    out = torch.empty_like(a.x, dtype=a.out_dtype)
    means, mean, var, unbiased = (
        a.x.new_empty(shape, dtype=torch.float32) for shape in ((n, c), (c,), (c,), (c,))
    )
    mask = a.x.new_empty((n, bits), dtype=torch.uint8)
    outs = (out, means, mean, var, unbiased, mask)
    site = SiteArguments(
        a.x, a.weight, a.bias, mean, var, a.bn_weight, a.bn_bias, a.residual, mask_order=order, **_options(a)
    )
    with CALLS[forward].first(a[:6], options, outs):
        batch_norm.forward(EcaCall(site, out, means, mask if bits else None), unbiased)
    return outs


def _first_backward(
    a: BatchNormArguments,
    statistics: Statistics,
    order: str,
    dy: Tensor,
    needs: tuple[bool, ...],
    tensors: tuple[Tensor | None, ...],
    options: dict[str, object],
) -> tuple[Tensor, ...]:
    from ..launch import batch_norm
    from ..launch.call import BackwardCall

    means, mean, var, mask = statistics
    means, mask = means.contiguous(), None if mask is None else mask.contiguous()  # if somebody moved them
    parameters = (a.weight, a.bias, a.bn_weight, a.bn_bias)
    selecting = needs[5] and a.activation != "identity"
    outs = (
        torch.empty_like(a.x) if needs[0] else a.x.new_empty(0),
        torch.empty_like(a.x, dtype=dy.dtype) if selecting else dy.new_empty(0),
        *(
            a.x.new_empty(0) if like is None or not needed else like.new_empty(like.shape)
            for like, needed in zip(parameters, needs[1:5], strict=True)
        ),
    )
    d_x, d_residual, *d_parameters = (out if out.numel() else None for out in outs)
    shape, device = tuple(means.shape), a.x.device
    with CALLS[backward].first(tensors, options, outs):
        d_gate, p_sum, p_dot_x = (
            scratch(shape, torch.float32, device) if any(needs[:5]) else None for _ in range(3)
        )
        site = BackwardArguments(
            dy, a.x, a.weight, a.bias, mean, var, a.bn_weight, a.bn_bias, a.residual, means, mask,
            mask_order=order, **_options(a),
        )  # fmt: skip
        if d_x is not None or d_residual is not None or d_gate is not None:
            call = BackwardCall(site, d_x, d_residual, d_gate, p_sum, p_dot_x)
            batch_norm.backward(call, *d_parameters)
    return outs


def _options(a: BatchNormArguments) -> dict[str, Any]:
    return {
        "bn_eps": a.bn_eps,
        "circular": a.circular,
        "gate": a.gate,
        "gain": a.gain,
        "activation": a.activation,
    }
