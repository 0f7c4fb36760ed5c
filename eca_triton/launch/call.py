"""Calls of operators as the launchers hand them on, checked: what to compute, and where to."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..reference import BatchNorm
from ..tuning.config import Device
from ..tuning.families.blocks import power_of_2
from ..tuning.layout import Layout, common_layout
from ..tuning.problem import EcaProblem, ProductProblem

KERNEL_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
"""Of the maps that kernels take."""


class Call(NamedTuple):
    """activation(gain * xhat * gates + residual) into `out`, where xhat = pre_activation(batch_norm(x)).

    x: [N, C, *spatial], not empty; residual and out: x's shape, any strides, any float dtype.
    Where not None, also filled: pooled, fp32 [N, C], with the means of x, before batch norm; mask, uint8
    [N, C * HW / 8], with a bit per element, in the order of the map's memory: 1 where the gradient passes.
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
    pooled: Tensor | None = None
    mask: Tensor | None = None

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
        """Return whether batch norm or an activation comes before pooling."""
        return self.bn is not None or self.pre_activation != "identity"

    @property
    def outputs(self) -> dict[str, Tensor]:
        """Return what is filled, by name."""
        return _given(self, "out", "pooled", "mask")

    def problem(self, device: Device) -> EcaProblem:
        """Return what the choice of a kernel depends on."""
        return EcaProblem.forward(
            self.layout, self.x.dtype, self.x.element_size(), self.itemsize, self.weight.numel(), self.front,
            device, self.mask is not None,
        )  # fmt: skip

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


class GateCall(NamedTuple):
    """gate(convolution of the means of xhat) into `out`, where xhat = pre_activation(batch_norm(x)).

    x: [N, C, *spatial], not empty, any strides; out: [N, C], contiguous, any float dtype.
    """

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    bn: BatchNorm | None
    bn_eps: float
    pre_activation: str
    circular: bool
    gate: str
    out: Tensor

    @property
    def maps(self) -> list[Tensor]:
        """Everything of x's shape."""
        return [self.x]

    @property
    def outputs(self) -> dict[str, Tensor]:
        """Return what is filled, by name."""
        return _given(self, "out")


class BackwardCall(NamedTuple):
    """Gradients of a `Call` without pre_activation into d_x, d_residual, d_gate and the affine's moments.

    With u what `Call` activates and p = dy * activation'(u), all maps of x's shape, any strides:
    d_gate = gain * sum of p * xhat, p_sum = sum of p, p_dot_x = sum of p * (x - the running mean).
    """

    dy: Tensor
    x: Tensor
    weight: Tensor
    bias: Tensor | None
    bn: BatchNorm | None
    bn_eps: float
    circular: bool
    gate: str
    gain: float
    residual: Tensor | None  # None unless u is recomputed and there was one
    activation: str
    pooled: Tensor  # fp32 [N, C], of the forward
    mask: Tensor | None  # of the forward; without it u is recomputed
    d_x: Tensor | None  # None where nobody needs it
    d_residual: Tensor | None  # p; None where nobody needs it, or where it is dy itself
    d_gate: Tensor | None  # fp32 [N, C]; None where nobody needs more than d_residual
    p_sum: Tensor | None  # fp32 [N, C]; both or neither
    p_dot_x: Tensor | None

    @property
    def maps(self) -> list[Tensor]:
        """Everything of x's shape."""
        maps = (self.x, self.dy, self.d_x, self.residual, self.d_residual)
        return [tensor for tensor in maps if tensor is not None]

    @property
    def layout(self) -> Layout:
        """Sizes and strides of `maps`."""
        return common_layout(self.x.shape, *(tensor.stride() for tensor in self.maps))

    @property
    def itemsize(self) -> int:
        """Bytes of the largest element of `maps`."""
        return max(tensor.element_size() for tensor in self.maps)

    @property
    def outputs(self) -> dict[str, Tensor]:
        """Return what is filled, by name."""
        return _given(self, "d_x", "d_residual", "d_gate", "p_sum", "p_dot_x")

    def problem(self, device: Device) -> EcaProblem:
        """Return what the choice of a kernel depends on."""
        return EcaProblem.backward(
            self.layout, self.dy.dtype, self.dy.element_size(), self.itemsize, self.weight.numel(),
            self.activation, self.mask is not None, self.d_residual is not None, device,
        )  # fmt: skip

    @property
    def flags(self) -> dict[str, Any]:
        """The compile-time arguments that every kernel of the backward has."""
        taps = self.weight.numel()
        return {
            "K": taps,
            "BLOCK_K": power_of_2(taps),
            "CIRCULAR": self.circular,
            "GATE": self.gate,
            "ACTIVATION": self.activation,
        }


class ProductCall(NamedTuple):
    """factor * (projection x) + summand into `out`.

    x [N, I, *spatial] and out [N, C, *spatial]: channels-last, not empty, any float dtypes;
    projection: [C, I] or [C, I, 1, ...]; factor, summand: [N, C].
    """

    x: Tensor
    projection: Tensor
    factor: Tensor
    summand: Tensor | None
    out: Tensor

    @property
    def maps(self) -> list[Tensor]:
        """Everything with spatial dims."""
        return [self.x, self.out]

    @property
    def layout(self) -> Layout:
        """Sizes and strides of the result."""
        return common_layout(self.out.shape, self.out.stride())

    @property
    def outputs(self) -> dict[str, Tensor]:
        """Return what is filled, by name."""
        return _given(self, "out")

    def problem(self, device: Device) -> ProductProblem:
        """Return what the choice of a config depends on."""
        return ProductProblem.of(
            self.layout, self.x.dtype, self.x.element_size(), self.out.element_size(), self.x.shape[1],
            self.summand is not None, device,
        )  # fmt: skip


def vectors(bn: BatchNorm | None) -> tuple[Tensor | None, ...]:
    """The four batch norm arguments of a kernel; None leaves the code for it out."""
    if bn is None:
        return None, None, None, None
    return tuple(None if vector is None else vector.contiguous() for vector in bn)


def _given(call: Any, *names: str) -> dict[str, Tensor]:
    return {name: getattr(call, name) for name in names if getattr(call, name) is not None}
