"""How the launcher fills every operator's outputs on a GPU; what that needs is imported as it first runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..launch.replay import scratch
from ..reference.arguments import (
    BackwardArguments,
    PoolArguments,
    PoolBackwardArguments,
    ProjectionArguments,
    RescaledArguments,
    SiteArguments,
)
from .outputs import channels_last

if TYPE_CHECKING:
    from ..launch.call import BackwardCall, EcaCall


def gate(a: SiteArguments, out: Tensor) -> None:
    """Fill the gates."""
    from ..launch import gates
    from ..launch.call import GateCall

    gates.gate(GateCall(a, out))


def eca(a: SiteArguments, out: Tensor) -> None:
    """Fill the attended map."""
    from ..launch import forward
    from ..launch.call import EcaCall

    forward.eca(EcaCall(a, out))


def gate_from_pool(a: PoolArguments, out: Tensor) -> None:
    """Fill the gates."""
    from ..launch import gates

    gates.gate_from_pool(a, out)


def gate_from_pool_backward(a: PoolBackwardArguments, outs: tuple[Tensor, Tensor, Tensor]) -> None:
    """Fill the three gradients."""
    from ..launch import gates

    gates.gate_from_pool_backward(a, *outs)


def gate_from_projection(a: ProjectionArguments, out: Tensor) -> None:
    """Fill the gates."""
    affine_from_projection(a, (out, None))


def affine_from_projection(a: ProjectionArguments, outs: tuple[Tensor, Tensor | None]) -> None:
    """Fill factor and summand."""
    from ..launch import projection

    projection.gates(a, *outs)


def has_values(a: ProjectionArguments) -> bool:
    """Return whether there is anything to fill."""
    return a.pooled.shape[0] * a.projection.shape[0] > 0


def rescaled_projection(a: RescaledArguments, out: Tensor) -> None:
    """Fill the scaled and shifted result of the convolution."""
    from ..launch import projection
    from ..launch.call import ProductCall

    projection.rescaled(ProductCall(a, out))


def has_rows(a: RescaledArguments) -> bool:
    """Return whether the kernel takes x: its rows are vectors only where channels are innermost."""
    from ..launch import projection

    return a.projection.shape[0] > 0 and channels_last(a.x) and projection.takes(a.x)


def eca_forward(a: SiteArguments, outs: tuple[Tensor, Tensor, Tensor]) -> None:
    """Fill the attended map, the means and the bits."""
    from ..launch import training

    training.eca_forward(forward_call(a, outs))


def eca_backward(a: BackwardArguments, outs: tuple[Tensor, ...]) -> None:
    """Fill the gradients that are wanted."""
    from ..launch import training

    call = backward_call(a, outs)
    training.eca_backward(call)
    if a.wants_band or a.wants_bn:
        training.parameter_gradients(call, *(out if out.numel() else None for out in outs[2:]))


def forward_call(a: SiteArguments, outs: tuple[Tensor, Tensor, Tensor]) -> EcaCall:
    """Return what the launcher fills `eca_forward`'s outputs by."""
    from ..launch.call import EcaCall

    out, pooled, mask = outs
    return EcaCall(a, out, pooled, None if a.mask_order == "none" else mask)


def backward_call(a: BackwardArguments, outs: tuple[Tensor, ...]) -> BackwardCall:
    """Return what the launcher fills the gradients of maps by, and with scratch for the others."""
    from ..launch.call import BackwardCall

    d_x, d_residual = (out if out.numel() else None for out in outs[:2])
    sums = a.wants_x or a.wants_band or a.wants_bn
    shape, device = tuple(a.pooled.shape), a.x.device
    pooled = a.pooled.to(torch.float32).contiguous()  # as it left `eca_forward`, unless somebody moved it
    mask = None if a.mask is None else a.mask.contiguous()
    d_gate, p_sum, p_dot_x = (
        scratch(shape, torch.float32, device) if wanted else None for wanted in (sums, a.wants_bn, a.wants_bn)
    )
    return BackwardCall(a._replace(pooled=pooled, mask=mask), d_x, d_residual, d_gate, p_sum, p_dot_x)
