"""What launchers are given: the checked arguments of an operator, and the tensors to fill."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..reference.arguments import (
    BackwardArguments,
    PoolArguments,
    PoolBackwardArguments,
    RescaledArguments,
    SiteArguments,
    Vectors,
)
from ..tuning.config import Device
from ..tuning.families.blocks import power_of_2
from ..tuning.layout import Layout, common_layout
from ..tuning.problem import EcaProblem, ProductProblem

KERNEL_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
"""Of the maps that kernels take."""


@dataclass(frozen=True)
class Call(ABC):
    """A call of an operator on a map, which is not empty; maps have any strides and any float dtypes.

    Attributes:
        a: Its arguments.
    """

    a: Any

    @property
    @abstractmethod
    def maps(self) -> list[Tensor]:
        """Everything with spatial dims."""

    @property
    def layout(self) -> Layout:
        """Sizes and strides of `maps`."""
        return common_layout(self.a.x.shape, *(tensor.stride() for tensor in self.maps))

    @property
    def itemsize(self) -> int:
        """Bytes of the largest element of `maps`."""
        return max(tensor.element_size() for tensor in self.maps)

    @property
    def outputs(self) -> dict[str, Tensor]:
        """Return what is filled, by name."""
        return {name: value for name, value in vars(self).items() if name != "a" and value is not None}


@dataclass(frozen=True)
class EcaCall(Call):
    """`eca` or `eca_forward`.

    Attributes:
        out: The attended map.
        pooled: fp32 [N, C], the means of x, before batch norm.
        mask: uint8 [N, C * HW / 8], with a bit per element, in the order of the map's memory: 1 where the
            gradient passes.
    """

    a: SiteArguments
    out: Tensor
    pooled: Tensor | None = None
    mask: Tensor | None = None

    @property
    def maps(self) -> list[Tensor]:
        """Everything of x's shape."""
        return [self.a.x, self.out] if self.a.residual is None else [self.a.x, self.out, self.a.residual]

    def problem(self, device: Device) -> EcaProblem:
        """Return what the choice of a kernel depends on."""
        a = self.a
        front = a.bn is not None or a.pre_activation != "identity"
        return EcaProblem(
            self.layout, a.x.dtype, self.itemsize, device, "forward", a.weight.numel(),
            bits=self.mask is not None, front=front,
        )  # fmt: skip

    @property
    def flags(self) -> dict[str, Any]:
        """The compile-time arguments that every kernel of the op has."""
        return band(self.a) | {"PRE_ACTIVATION": self.a.pre_activation, "ACTIVATION": self.a.activation}


@dataclass(frozen=True)
class GateCall(Call):
    """`gate`.

    Attributes:
        out: The gates [N, C], contiguous, any float dtype.
    """

    a: SiteArguments
    out: Tensor

    @property
    def maps(self) -> list[Tensor]:
        """x alone."""
        return [self.a.x]


@dataclass(frozen=True)
class BackwardCall(Call):
    """`eca_backward` without the gradients of parameters, which are made of these.

    With u what the forward activates and p = grad * activation'(u), all maps of x's shape:

    Attributes:
        d_x: None where nobody needs it.
        d_residual: p; None where nobody needs it, or where it is grad itself.
        d_gate: gain * sum of p * xhat, fp32 [N, C]; None where nobody needs more than d_residual.
        p_sum: Sum of p, fp32 [N, C].
        p_dot_x: Sum of p * (x - the running mean), fp32 [N, C]; both or neither.
    """

    a: BackwardArguments
    d_x: Tensor | None
    d_residual: Tensor | None
    d_gate: Tensor | None
    p_sum: Tensor | None
    p_dot_x: Tensor | None

    @property
    def maps(self) -> list[Tensor]:
        """Everything of x's shape."""
        maps = (self.a.x, self.a.grad, self.d_x, self.a.residual, self.d_residual)
        return [tensor for tensor in maps if tensor is not None]

    def problem(self, device: Device) -> EcaProblem:
        """Return what the choice of a kernel depends on."""
        a = self.a
        bits = a.mask is not None
        return EcaProblem(
            self.layout, a.grad.dtype, self.itemsize, device, "backward", a.weight.numel(), bits=bits,
            recomputed=a.activation != "identity" and not bits, stored=self.d_residual is not None,
        )  # fmt: skip

    @property
    def flags(self) -> dict[str, Any]:
        """The compile-time arguments that every kernel of the backward has."""
        return band(self.a) | {"ACTIVATION": self.a.activation}


@dataclass(frozen=True)
class ProductCall(Call):
    """`rescaled_projection` of a channels-last map.

    Attributes:
        out: [N, C, *spatial], channels-last.
    """

    a: RescaledArguments
    out: Tensor

    @property
    def maps(self) -> list[Tensor]:
        """x and the result."""
        return [self.a.x, self.out]

    @property
    def layout(self) -> Layout:
        """Sizes and strides of the result."""
        return common_layout(self.out.shape, self.out.stride())

    def problem(self, device: Device) -> ProductProblem:
        """Return what the choice of a config depends on."""
        x = self.a.x
        return ProductProblem(
            self.layout,
            x.dtype,
            self.itemsize,
            device,
            reduced=x.shape[1],
            summand=self.a.summand is not None,
        )


def band(
    a: SiteArguments | BackwardArguments | PoolArguments | PoolBackwardArguments,
) -> dict[str, Any]:
    """The compile-time arguments of a convolution over channels and its gate."""
    taps = a.weight.numel()
    return {"K": taps, "BLOCK_K": power_of_2(taps), "CIRCULAR": a.circular, "GATE": a.gate}


def vectors(bn: Vectors | None) -> tuple[Tensor | None, ...]:
    """The four batch norm arguments of a kernel; None leaves the code for it out."""
    if bn is None:
        return None, None, None, None
    return tuple(None if vector is None else vector.contiguous() for vector in bn)
