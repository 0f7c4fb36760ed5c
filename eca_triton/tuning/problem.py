"""All that the choice of a kernel depends on, in one value: what a launch asks with, and what is tuned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .choice import Choice, choose, choose_backward
from .config import Device
from .layout import Layout

Direction = Literal["forward", "backward"]


@dataclass(frozen=True)
class Problem:
    """A call of the op or of its backward, without its tensors.

    Attributes:
        direction: "forward" or "backward".
        layout: Of all maps together.
        dtype: Of x, in the backward of dy, as torch names it: "bfloat16".
        kept_itemsize: Bytes of an element of that dtype.
        itemsize: Bytes of the largest element of the maps.
        taps: Of the convolution over channels.
        device: What runs it.
        bits: Whether a bit per element is written, in the backward read.
        front: Whether batch norm or an activation comes before pooling; never in the backward.
        recomputed: Whether the backward computes the activation's slope anew.
        stored: Whether the backward writes the residual's gradient.
    """

    direction: Direction
    layout: Layout
    dtype: str
    kept_itemsize: int
    itemsize: int
    taps: int
    device: Device
    bits: bool = False
    front: bool = False
    recomputed: bool = False
    stored: bool = False

    @classmethod
    def forward(
        cls,
        layout: Layout,
        dtype: object,
        x_itemsize: int,
        itemsize: int,
        taps: int,
        front: bool,
        device: Device,
        bits: bool = False,
    ) -> Problem:
        """From what `choose` takes, and x's dtype: torch's, or its name."""
        return cls("forward", layout, _name(dtype), x_itemsize, itemsize, taps, device, bits, front)

    @classmethod
    def backward(
        cls,
        layout: Layout,
        dtype: object,
        dy_itemsize: int,
        itemsize: int,
        taps: int,
        activation: str,
        bits: bool,
        stored: bool,
        device: Device,
    ) -> Problem:
        """From what `choose_backward` takes, and dy's dtype: torch's, or its name."""
        recomputed = activation != "identity" and not bits
        return cls(
            "backward", layout, _name(dtype), dy_itemsize, itemsize, taps, device, bits,
            recomputed=recomputed, stored=stored,
        )  # fmt: skip

    def heuristic(self) -> Choice:
        """The kernel where nothing was tuned."""
        if self.direction == "forward":
            return choose(
                self.layout, self.kept_itemsize, self.itemsize, self.taps, self.front, self.device, self.bits
            )
        activation = "relu" if self.recomputed or self.bits else "identity"
        return choose_backward(
            self.layout, self.kept_itemsize, self.itemsize, self.taps, activation, self.bits, self.stored,
            self.device,
        )  # fmt: skip


def _name(dtype: object) -> str:
    return str(dtype).removeprefix("torch.")
