"""The statistics of an eval-mode batch norm, as the launchers pass them to kernels."""

from __future__ import annotations

from torch import Tensor

BatchNorm = tuple[Tensor, Tensor, Tensor | None, Tensor | None]
"""Running mean, running variance, weight, bias: [C] each."""


def vectors(bn: BatchNorm | None) -> tuple[Tensor | None, ...]:
    """The four batch norm arguments of a kernel; None leaves the code for it out."""
    if bn is None:
        return None, None, None, None
    return tuple(None if vector is None else vector.contiguous() for vector in bn)
