"""All that the choice of a kernel depends on, in one value: what a launch asks with, and what is tuned.

Where kinds of problems differ otherwise, tables by kind say how: in allowed.py, candidates.py and table.py.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Literal

import torch

from .config import Device, Pass
from .layout import Layout

Direction = Literal["forward", "backward"]
Kind = Direction | Literal["product"] | Pass


@dataclass(frozen=True)
class Problem(ABC):
    """A call of an operator without its tensors.

    Attributes:
        layout: Of all maps of the result's shape together.
        dtype: Of x, in the backward of dy.
        itemsize: Bytes of the largest element of the maps.
        device: What runs it.
    """

    layout: Layout
    dtype: torch.dtype
    itemsize: int
    device: Device

    @property
    def kept_itemsize(self) -> int:
        """Bytes of an element of x, in the backward of dy."""
        return self.dtype.itemsize

    @property
    @abstractmethod
    def kind(self) -> Kind:
        """Kind of what is computed."""

    @property
    def maps(self) -> int:
        """Number of maps that are read and written."""
        return len(self.layout.strides)

    @property
    @abstractmethod
    def terms(self) -> int:
        """Terms of a sum over channels; 0 where their number hardly matters."""

    @property
    @abstractmethod
    def flags(self) -> tuple[str, ...]:
        """Names of all else that holds."""


@dataclass(frozen=True)
class EcaProblem(Problem):
    """Problem of the `eca` op or of its backward.

    Attributes:
        direction: "forward" or "backward".
        taps: Of the convolution over channels.
        bits: Whether a bit per element is written, in the backward read.
        front: Whether batch norm or an activation comes before pooling; never in the backward.
        recomputed: Whether the backward computes the activation's slope anew.
        stored: Whether the backward writes the residual's gradient.
    """

    direction: Direction
    taps: int
    bits: bool = False
    front: bool = False
    recomputed: bool = False
    stored: bool = False

    @property
    def cut_itemsize(self) -> int:
        """Bytes of an element by which channels-last and lagged tiles are cut: of the widest in backward."""
        return self.kept_itemsize if self.direction == "forward" else self.itemsize

    @property
    def kind(self) -> Kind:
        """The direction."""
        return self.direction

    @property
    def terms(self) -> int:
        """The taps."""
        return self.taps

    @property
    def flags(self) -> tuple[str, ...]:
        """Attributes that are flags and hold."""
        return tuple(name for name in ("bits", "front", "recomputed", "stored") if getattr(self, name))

    def without_residual(self) -> EcaProblem:
        """Leave out the residual of a forward: Inductor adds it in the same kernel."""
        return replace(self, layout=replace(self.layout, strides=self.layout.strides[:2]))


@dataclass(frozen=True)
class ProductProblem(Problem):
    """Problem of `rescaled_projection`: a 1x1 convolution, rescaled; `layout` is its result's alone.

    Attributes:
        reduced: Channels of x.
        summand: Whether one is added.
    """

    reduced: int
    summand: bool

    @property
    def kind(self) -> Kind:
        """Kind of what is computed."""
        return "product"

    @property
    def maps(self) -> int:
        """x and the result."""
        return 2

    @property
    def terms(self) -> int:
        """Channels of x."""
        return self.reduced

    @property
    def flags(self) -> tuple[str, ...]:
        """Attributes that are flags and hold."""
        return ("summand",) if self.summand else ()


@dataclass(frozen=True)
class PassProblem(Problem):
    """Problem of one launch of an operator that takes two over its maps.

    Attributes:
        step: What the launch computes.
        holding: Which flags of the operator hold.
        taps: Of the gates that each program makes for itself; 0 where none does.
    """

    step: Pass
    holding: tuple[str, ...] = ()
    taps: int = 0

    @classmethod
    def of(cls, problem: EcaProblem, step: Pass) -> PassProblem:
        """Another launch, over all maps of the problem."""
        p, taps = problem, problem.taps if step == "rescale" else 0
        return cls(p.layout, p.dtype, p.itemsize, p.device, step, p.flags, taps)

    @property
    def kind(self) -> Kind:
        """The step."""
        return self.step

    @property
    def terms(self) -> int:
        """The taps."""
        return self.taps

    @property
    def flags(self) -> tuple[str, ...]:
        """Flags of the operator."""
        return self.holding
