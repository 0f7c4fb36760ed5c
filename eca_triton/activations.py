"""The activations around ECA and the functions of its gate: one row each, from which all is read.

A new activation needs its row here, device code (`kernels/elementwise.py`) and a word in `functional.eca`;
before pooling, its form in Inductor's operators too (`compile/inductor/lowering.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Pointwise = Callable[[Tensor], Tensor]


class Activation(NamedTuple):
    """A function of the elements u of a feature map, of any shape and floating-point dtype.

    Attributes:
        function: Its values, in the dtype of u.
        gradient: dy times the derivative at u, of (dy, u). Where a flat part of the function makes the
            derivative 0, so is the result, whatever dy is; NaN in u lets dy through. Both as in torch.
        passes: Return where the derivative is 1, if it is 0 elsewhere: then a bit per element is all that
            backward needs. None where it takes other values.
        corners: Where the derivative jumps, so that rounding may put an element on either side.
        flops: Per element, as the roofline of `explain` counts them: an estimate, a transcendental function
            counts as a few.
        transcendental: Computed from an exponential or an error function, which take more registers.
        before_pooling: May also stand between the batch norm and the pooling.
    """

    function: Pointwise
    gradient: Callable[[Tensor, Tensor], Tensor]
    passes: Pointwise | None = None
    corners: tuple[float, ...] = ()
    flops: int = 1
    transcendental: bool = False
    before_pooling: bool = False


def _identity(u: Tensor) -> Tensor:
    return u


def _selecting(function: Pointwise, passes: Pointwise, *corners: float, before_pooling: bool) -> Activation:
    """Return the row of an activation whose derivative is 0 or 1."""

    def gradient(dy: Tensor, u: Tensor) -> Tensor:
        return torch.where(passes(u), dy, 0.0)

    return Activation(function, gradient, passes, corners, before_pooling=before_pooling)


def _sigmoid_gradient(dy: Tensor, u: Tensor) -> Tensor:
    s = torch.sigmoid(u)
    return dy * (s * (1 - s))


def _hard_sigmoid_gradient(dy: Tensor, u: Tensor) -> Tensor:
    return torch.where((u > -3) & (u < 3), dy / 6, 0.0)


def _silu_gradient(dy: Tensor, u: Tensor) -> Tensor:
    s = torch.sigmoid(u)
    return dy * (s * (1 + u * (1 - s)))


def _gelu_gradient(dy: Tensor, u: Tensor) -> Tensor:
    density = torch.exp(-0.5 * u * u) * math.sqrt(0.5 / math.pi)  # of the normal distribution
    return dy * (0.5 * (1 + torch.erf(u * math.sqrt(0.5))) + u * density)


def _hardswish_gradient(dy: Tensor, u: Tensor) -> Tensor:
    return torch.where(u <= -3, 0.0, dy * torch.where(u < 3, u / 3 + 0.5, 1.0))


ACTIVATIONS = {
    "identity": Activation(_identity, lambda dy, _: dy, before_pooling=True),
    "relu": _selecting(torch.relu, lambda u: ~(u <= 0), 0.0, before_pooling=True),
    "relu6": _selecting(F.relu6, lambda u: ~((u <= 0) | (u >= 6)), 0.0, 6.0, before_pooling=False),
    "silu": Activation(F.silu, _silu_gradient, flops=4, transcendental=True, before_pooling=True),
    "gelu": Activation(F.gelu, _gelu_gradient, flops=8, transcendental=True),
    "hardswish": Activation(F.hardswish, _hardswish_gradient, corners=(-3.0, 3.0), flops=4),
}
"""By the name that the operators take."""

GATES = {
    "sigmoid": Activation(torch.sigmoid, _sigmoid_gradient, transcendental=True),
    "hard_sigmoid": Activation(F.hardsigmoid, _hard_sigmoid_gradient, corners=(-3.0, 3.0)),
}
"""What makes gates of the convolved means."""

PRE_ACTIVATIONS = {name: each for name, each in ACTIVATIONS.items() if each.before_pooling}
"""Those that may come before pooling."""

SELECTING = {name: each.passes for name, each in ACTIVATIONS.items() if each.passes is not None}
"""`passes` of those that have it: their backward needs a bit per element, and no feature map."""

RECOMPUTED = tuple(name for name in ACTIVATIONS if name not in ("identity", *SELECTING))
"""Those whose backward needs what they were applied to."""
