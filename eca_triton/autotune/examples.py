"""Calls of our operators without their tensors: what sites become, to be made again on any device."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..launch.call import BackwardCall, Call, EcaCall, GateCall, ProductCall
from ..ops.launched import backward_call, forward_call
from ..ops.operators import OPERATORS, checked
from ..ops.outputs import channels_last
from ..ops.schema import ECA, ECA_BACKWARD, ECA_FORWARD, GATE, RESCALED_PROJECTION

OF_INFERENCE = {GATE, ECA, RESCALED_PROJECTION}
"""Those whose maps Inductor lays out."""


@dataclass(frozen=True)
class Form:
    """A tensor without its elements."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, value: object) -> object:
        """The form of a tensor; anything else as it is."""
        if not isinstance(value, Tensor):
            return value
        return cls(tuple(map(int, value.shape)), tuple(map(int, value.stride())), value.dtype)


@dataclass(frozen=True)
class Example:
    """A call of one operator; equal calls of several sites are one example.

    Attributes:
        operator: Key of `TUNED`.
        arguments: By name, in the schema's order; a `Form` in the place of a tensor.
        templated: Whether Inductor makes the map by our template: gain, residual and activation are not the
            operator's own but stand behind it, and become part of that kernel. Its config is asked for
            without them; where no kernel takes the map, only the gates are ours.
    """

    operator: Callable[..., Any]
    arguments: tuple[tuple[str, object], ...]
    templated: bool = False

    @classmethod
    def of(cls, operator: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Example:
        """Make the example of a call with these arguments."""
        a = OPERATORS[operator].arguments(*args, **kwargs)
        return cls(operator, tuple((name, Form.of(value)) for name, value in a._asdict().items()))

    @property
    def has_tail(self) -> bool:
        """Return whether the call of `eca` itself goes on behind the rescaling: then there is no template."""
        a = dict(self.arguments)
        return (a["gain"], a["residual"], a["activation"]) != (1.0, None, "identity")

    def in_template(self, gain: float, residual: torch.dtype | None, activation: str) -> Example:
        """The call of `eca` with what Inductor fuses behind it.

        residual: The dtype of one in x's order, which is what fuses. One that is wider than x and the result
            is left out, since it would ask for narrower vectors.
        """
        a: dict[str, Any] = dict(self.arguments)
        widest = max(self.x.dtype.itemsize, (a["out_dtype"] or self.x.dtype).itemsize)
        added = None if residual is None or residual.itemsize > widest else replace(self.x, dtype=residual)
        a |= {"gain": gain, "residual": added, "activation": activation}
        return replace(self, arguments=tuple(a.items()), templated=True)

    def gates(self) -> Example:
        """Return what is ours of a call of `eca` where Inductor rescales the map."""
        no_tail = {"gain": 1.0, "residual": None, "activation": "identity"}
        return Example(GATE, tuple((dict(self.arguments) | no_tail).items()))

    @property
    def x(self) -> Form:
        """The map."""
        x = dict(self.arguments)["x"]
        assert isinstance(x, Form)
        return x

    def channels_last(self) -> Example:
        """The same call with all maps channels-last."""
        shape = self.x.shape
        order = [0, *range(2, len(shape)), 1]
        strides, step = [0] * len(shape), 1
        for dim in reversed(order):
            strides[dim], step = step, step * shape[dim]
        return replace(
            self,
            arguments=tuple(
                (name, replace(value, stride=tuple(strides)))
                if isinstance(value, Form) and value.shape == shape
                else (name, value)
                for name, value in self.arguments
            ),
        )

    def call(self, device: torch.device, seed: int = 0) -> Call | None:
        """Return what the launcher would be given, on a device; None where no kernel that can be tuned runs.

        Inputs are random, outputs uninitialised. On the meta device neither has elements.
        """
        generator = None if device.type == "meta" else torch.Generator(device).manual_seed(seed)
        values: dict[str, Any] = {
            name: _tensor(name, value, device, generator) if isinstance(value, Form) else value
            for name, value in self.arguments
        }
        from ..launch.devices import supports

        return TUNED[self.operator](**values) if supports(values["x"]) else None


def _gate(**values: Any) -> GateCall:
    # The pooling, which is tuned, is the same for any result, and what is wrong with it shows in this one.
    return GateCall(*checked(GATE, **values | {"out_dtype": torch.float32}))


def _eca(**values: Any) -> EcaCall:
    return EcaCall(*checked(ECA, **values))


def _rescaled_projection(**values: Any) -> ProductCall | None:
    a, out = checked(RESCALED_PROJECTION, **values)
    return ProductCall(a, out) if channels_last(a.x) else None


def _eca_forward(**values: Any) -> EcaCall:
    from ..launch import training

    return training.arranged(forward_call(*checked(ECA_FORWARD, **values)))


def _eca_backward(**values: Any) -> BackwardCall | None:
    from ..launch import training

    call = training.arranged_backward(backward_call(*checked(ECA_BACKWARD, **values)))
    return None if call.d_x is None else call


def _tensor(name: str, form: Form, device: torch.device, generator: torch.Generator | None) -> Tensor:
    # A gradient may be expanded: one element in many places.
    owned = tuple(
        size if stride else min(size, 1) for size, stride in zip(form.shape, form.stride, strict=True)
    )
    tensor = torch.empty_strided(owned, form.stride, dtype=form.dtype, device=device)
    if generator is not None and form.dtype.is_floating_point:
        tensor.normal_(generator=generator)
        if name == "x":  # gates that differ, else a mean of too few elements would hardly show
            tensor.add_(tensor.new_empty(*owned[:2], *[1] * (tensor.ndim - 2)).normal_(generator=generator))
        if name in ("bn_var", "bn_weight"):
            tensor.abs_().add_(0.5)
    elif generator is not None:  # bits
        tensor.random_(0, 256, generator=generator)
    return tensor.expand(form.shape)


TUNED: dict[Callable[..., Any], Callable[..., Call | None]] = {
    GATE: _gate,
    ECA: _eca,
    RESCALED_PROJECTION: _rescaled_projection,
    ECA_FORWARD: _eca_forward,
    ECA_BACKWARD: _eca_backward,
}
"""The operators whose kernels can be tuned, and how they, checked, become calls."""
