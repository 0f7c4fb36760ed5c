"""How the launcher fills every operator's outputs on a GPU; what that needs is imported as it first runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..launch.replay import scratch
from .schema import PoolArguments, PoolBackwardArguments, SiteArguments
from .schema_projection import ProjectionArguments, RescaledArguments, channels_last
from .schema_training import BackwardArguments, ForwardArguments

if TYPE_CHECKING:
    from ..launch.call import BackwardCall, Call, GateCall, ProductCall


def gate(a: SiteArguments, out: Tensor) -> None:
    """Fill the gates."""
    from ..launch import gates

    gates.gate(gate_call(a, out))


def eca(a: SiteArguments, out: Tensor) -> None:
    """Fill the attended map."""
    from ..launch import forward

    forward.eca(eca_call(a, out))


def gate_from_pool(a: PoolArguments, out: Tensor) -> None:
    """Fill the gates."""
    from ..launch import gates

    gates.gate_from_pool(a.pooled, a.weight, a.bias, circular=a.circular, gate=a.gate, out=out)


def gate_from_pool_backward(a: PoolBackwardArguments, outs: tuple[Tensor, Tensor, Tensor]) -> None:
    """Fill the three gradients."""
    from ..launch import gates

    d_pooled, d_weight, d_bias = outs
    gates.gate_from_pool_backward(
        a.grad, a.pooled, a.weight, a.bias, circular=a.circular, gate=a.gate,
        d_pooled=d_pooled, d_weight=d_weight, d_bias=d_bias,
    )  # fmt: skip


def gate_from_projection(a: ProjectionArguments, out: Tensor) -> None:
    """Fill the gates."""
    affine_from_projection(a, (out, None))


def affine_from_projection(a: ProjectionArguments, outs: tuple[Tensor, Tensor | None]) -> None:
    """Fill factor and summand."""
    from ..launch import projection

    out, shift = outs
    projection.gates(a.pooled, a.projection, a.weight, a.bias, **a.options, out=out, shift=shift)


def has_values(a: ProjectionArguments) -> bool:
    """Return whether there is anything to fill."""
    return a.pooled.shape[0] * a.projection.shape[0] > 0


def rescaled_projection(a: RescaledArguments, out: Tensor) -> None:
    """Fill the scaled and shifted result of the convolution."""
    from ..launch import projection

    projection.rescaled(product_call(a, out))


def has_rows(a: RescaledArguments) -> bool:
    """Return whether the kernel takes x: its rows are vectors only where channels are innermost."""
    from ..launch import projection

    return a.projection.shape[0] > 0 and channels_last(a.x) and projection.takes(a.x)


def eca_forward(a: ForwardArguments, outs: tuple[Tensor, Tensor, Tensor]) -> None:
    """Fill the attended map, the means and the bits."""
    from ..launch import training

    training.eca_forward(forward_call(a, outs), a.mask_order)


def eca_backward(a: BackwardArguments, outs: tuple[Tensor, ...]) -> None:
    """Fill the gradients that are wanted."""
    from ..launch import training

    call = backward_call(a, outs)
    training.eca_backward(call, a.mask_order)
    if a.wants_band or a.wants_bn:
        training.parameter_gradients(call, *(out if out.numel() else None for out in outs[2:]))


def gate_call(a: SiteArguments, out: Tensor) -> GateCall:
    """Return what the launcher fills the gates by."""
    from ..launch.call import GateCall

    return GateCall(a.x, a.weight, a.bias, **a.gate_options, out=out)


def eca_call(a: SiteArguments, out: Tensor) -> Call:
    """Return what the launcher fills the attended map by."""
    from ..launch.call import Call

    return Call(a.x, a.weight, a.bias, **a.eca_options, out=out)


def product_call(a: RescaledArguments, out: Tensor) -> ProductCall:
    """Return what the launcher fills the convolution's result by."""
    from ..launch.call import ProductCall

    return ProductCall(a.x, a.projection, a.factor, a.summand, out)


def forward_call(a: ForwardArguments, outs: tuple[Tensor, Tensor, Tensor]) -> Call:
    """Return what the launcher fills `eca_forward`'s outputs by."""
    from ..launch.call import Call

    out, pooled, mask = outs
    return Call(
        a.x, a.weight, a.bias, pre_activation="identity", **a.options,
        out=out, pooled=pooled, mask=None if a.mask_order == "none" else mask,
    )  # fmt: skip


def backward_call(a: BackwardArguments, outs: tuple[Tensor, ...]) -> BackwardCall:
    """Return what the launcher fills the gradients of maps by, and with scratch for the others."""
    from ..launch.call import BackwardCall

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
