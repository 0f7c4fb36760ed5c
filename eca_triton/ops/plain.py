"""What every operator computes from its arguments, in plain torch: one formula each, for all who need one.

The CPU runs it, autograd differentiates it, and a program that shall know no operator of ours is given it.
`gate_from_pool`, in those that are made around it, is what computes the gates: a function of the same
arguments as the operator's.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .. import reference
from ..reference import training as reference_training
from .schema import PoolArguments, PoolBackwardArguments, SiteArguments
from .schema_projection import ProjectionArguments, RescaledArguments
from .schema_training import BackwardArguments, ForwardArguments


def gate(a: SiteArguments, **parts: Any) -> Tensor:
    """Gates [N, C] of a map [N, C, *spatial]."""
    return reference.gate(a.x, a.weight, a.bias, **a.gate_options, out_dtype=a.out_dtype, **parts)


def eca(a: SiteArguments, **parts: Any) -> Tensor:
    """The attended map, like x."""
    return reference.eca(a.x, a.weight, a.bias, **a.eca_options, out_dtype=a.out_dtype, **parts)


def gate_from_pool(a: PoolArguments) -> Tensor:
    """Gates [N, C] of means [N, C]."""
    return reference.gate_from_pool(**a._asdict())


def gate_from_pool_backward(a: PoolBackwardArguments) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the means, the weight and the bias of `gate_from_pool`."""
    return reference.gate_from_pool_backward(**a._asdict())


def gate_from_projection(a: ProjectionArguments, **parts: Any) -> Tensor:
    """Gates [N, C] of means [N, I] before a 1x1 convolution."""
    return reference.gate_from_projection(
        a.pooled, a.projection, a.weight, a.bias, **a.options, out_dtype=a.out_dtype, **parts
    )


def affine_from_projection(a: ProjectionArguments, **parts: Any) -> tuple[Tensor, Tensor]:
    """Factor and summand [N, C] behind that convolution: its bias, batch norm and gates."""
    return reference.affine_from_projection(
        a.pooled, a.projection, a.weight, a.bias, **a.options, out_dtype=a.out_dtype, **parts
    )


def rescaled_projection(a: RescaledArguments) -> Tensor:
    """The result of that convolution, scaled by the factor and shifted by the summand."""
    return reference.rescaled_projection(a.x, a.projection, a.factor, a.summand, out_dtype=a.out_dtype)


def eca_forward(a: ForwardArguments) -> tuple[Tensor, Tensor, Tensor]:
    """The attended map, and what backward needs: the means of x, and a bit per element."""
    return reference_training.eca_forward(
        a.x, a.weight, a.bias, **a.options, mask_order=a.mask_order, out_dtype=a.out_dtype or a.x.dtype
    )


def eca_backward(a: BackwardArguments, **parts: Any) -> tuple[Tensor, ...]:
    """Gradients of x, residual, weight, bias, and the batch norm's weight and bias; [0] where not wanted.

    `pooled` may be given as None, to be computed from x: then it is differentiated by x too.
    """
    kept: dict[str, Any] = {"pooled": a.pooled, "mask": a.mask, "mask_order": a.mask_order} | parts
    gradients = reference_training.eca_backward(
        a.grad, a.x, a.weight, a.bias, **a.options, **kept, **a.wanted
    )
    return a.outputs(gradients)
