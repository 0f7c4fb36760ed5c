"""One call of the `eca` op, as the launchers hand it on: what to compute, and where to write it."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from .tuning.heuristic import power_of_2
from .tuning.layout import Layout, common_layout

BatchNorm = tuple[Tensor, Tensor, Tensor | None, Tensor | None]
"""Running mean, running variance, weight, bias: [C] each."""


class Call(NamedTuple):
    """activation(gain * xhat * gates + residual) into `out`, where xhat = pre_activation(batch_norm(x)).

    x: [N, C, *spatial], not empty; residual and out: x's shape, any strides, any float dtype.
    """

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    bn: BatchNorm | None
    bn_eps: float
    pre_activation: str
    circular: bool
    gate: str
    gain: float
    residual: Tensor | None
    activation: str
    out: Tensor

    @property
    def maps(self) -> list[Tensor]:
        """Everything of x's shape."""
        return [self.x, self.out] if self.residual is None else [self.x, self.out, self.residual]

    @property
    def layout(self) -> Layout:
        """Sizes and strides of `maps`."""
        return common_layout(self.x.shape, *(tensor.stride() for tensor in self.maps))

    @property
    def itemsize(self) -> int:
        """Bytes of the largest element of `maps`."""
        return max(tensor.element_size() for tensor in self.maps)

    @property
    def front(self) -> bool:
        """Whether batch norm or an activation comes before pooling."""
        return self.bn is not None or self.pre_activation != "identity"

    @property
    def flags(self) -> dict[str, Any]:
        """The compile-time arguments that every kernel of the op has."""
        taps = self.weight.numel()
        return {
            "K": taps,
            "BLOCK_K": power_of_2(taps),
            "CIRCULAR": self.circular,
            "GATE": self.gate,
            "PRE_ACTIVATION": self.pre_activation,
            "ACTIVATION": self.activation,
        }


def vectors(bn: BatchNorm | None) -> tuple[Tensor | None, ...]:
    """The four batch norm arguments of a kernel; None leaves the code for it out."""
    if bn is None:
        return None, None, None, None
    return tuple(None if vector is None else vector.contiguous() for vector in bn)
