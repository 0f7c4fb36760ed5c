"""What `python -m benchmarks op` measures: maps of real networks, most telling first. Pure; needs no GPU."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from eca_triton import adaptive_kernel_size
from eca_triton.ops.outputs import mask_order_for
from eca_triton.tuning.config import Device
from eca_triton.tuning.layout import Layout, common_layout
from eca_triton.tuning.problem import EcaProblem
from eca_triton.tuning.select import select

from ..shared.tensors import DTYPES, LAYOUTS, shape_name
from .tails import HEADLINE, TAILS, TailKind

Shape = tuple[int, int, int]  # C, H, W

# Networks, most telling first, and the taps of each map: those of timm's and of the ECA authors' networks.
NETWORKS: dict[str, dict[Shape, int]] = {
    "resnet": {(256, 56, 56): 5, (512, 28, 28): 5, (1024, 14, 14): 5, (2048, 7, 7): 7},
    "nfnet": {(1536, 14, 14): 5, (1536, 7, 7): 5},
    "mobilenet_v2": {
        (16, 112, 112): 1, (24, 56, 56): 1, (32, 28, 28): 1, (64, 14, 14): 1, (96, 14, 14): 3,
        (160, 7, 7): 3, (320, 7, 7): 3,
    },
}  # fmt: skip
TAPS = {shape: taps for maps in NETWORKS.values() for shape, taps in maps.items()}

BATCHES = (128, 8, 1, 32)
DIRECTIONS = {"forward": "", "backward": ", backward", "both": ", forward + backward"}
BASELINES = ("eager", "inductor", "max-autotune")  # built in contenders.py, as are the others
OURS = ("op", "compiled", "two_pass")
DEFAULT = (*BASELINES, "op", "compiled")

# How much later a row comes, so that what a budget cuts off matters least. The goals speak of large maps and
# of batch 1 to 8; the tail without batch norm lies between the other two variants.
LATER_BY_NETWORK = {"resnet": 0, "nfnet": 2, "mobilenet_v2": 3}
LATER_BY_BATCH = {128: 0, 8: 1, 1: 1, 32: 3}
LATER_BY_VARIANT = {"eca": 0, "bn_eca_add_relu": 0, "eca_add_relu": 2}
LATER_BY_OTHERS = 4


@dataclass(frozen=True)
class Row:
    """One measurement.

    Attributes:
        shape: C, H, W of the map.
        batch: Its images.
        layout: Key of `LAYOUTS`.
        variant: Key of `TAILS`.
        dtype: Key of `DTYPES`.
        direction: Key of `DIRECTIONS`; other than "forward", gradients are computed, and batch norm is that
            of training.
    """

    shape: Shape
    batch: int
    layout: str
    variant: str
    dtype: str = "bf16"
    direction: str = "forward"

    def __str__(self) -> str:
        name = f"{shape_name((self.batch, *self.shape))} {self.layout} {self.variant} {self.dtype}"
        return f"{name} {self.direction}" if self.trains else name

    @property
    def trains(self) -> bool:
        """Return whether gradients are computed."""
        return self.direction != "forward"

    @property
    def taps(self) -> int:
        """Taps of the convolution over channels."""
        return TAPS.get(self.shape) or adaptive_kernel_size(self.shape[0])

    @property
    def tail(self) -> TailKind:
        """Return what stands around ECA."""
        return TAILS[self.variant]

    @property
    def keeps_bits(self) -> bool:
        """Return whether training keeps a bit per element: which of them the last activation passed."""
        return self.trains and mask_order_for(self._map, None, self.tail.activation) != "none"

    @property
    def map_bytes(self) -> int:
        """S: bytes of the map."""
        c, h, w = self.shape
        return self.batch * c * h * w * DTYPES[self.dtype].itemsize

    @property
    def least_bytes(self) -> int:
        """Return what any implementation moves: every input read once, every output written once.

        In training also a bit per element where ReLU was open, or for an activation without bits the residual
        again; and batch norm reads its map twice each way, and in backward the gradient behind the activation
        too, since what it needs of the whole batch comes last.
        """
        s, tail = self.map_bytes, self.tail
        forward = (3 if tail.adds else 2) * s
        if not self.trains:
            return forward
        activated = tail.adds and tail.activation != "identity"  # else d_residual is the output's gradient
        bits = s // DTYPES[self.dtype].itemsize // 8 if self.keeps_bits else 0
        again = s if activated and not bits else 0
        backward = 3 * s + s * activated + bits + again + 2 * s * tail.normalises
        forward += bits + s * tail.normalises
        return backward if self.direction == "backward" else forward + backward

    @property
    def contenders(self) -> tuple[str, ...]:
        """Contenders by default: max-autotune, which compiles longest, only where a network spends most time.

        In training one of ours: the op or, where batch norm belongs to it, the compiled tail.
        """
        if self.trains:
            return ("eager", "inductor", "compiled" if self.tail.normalises else "op")
        headline = self.shape in NETWORKS["resnet"] and self.batch == 128
        return tuple(name for name in DEFAULT if headline or name != "max-autotune")

    def offers(self, name: str) -> bool:
        """Return whether a contender computes this: the op's batch norm is that of inference."""
        if not self.trains:
            return True
        return self.tail.trainable and not (name == "two_pass" or (name == "op" and self.tail.normalises))

    def kernel(self, device: Device) -> str:
        """The kernels that the eager op runs: what tables say, of a GPU without a name the heuristic."""
        if self.trains and self.tail.normalises:
            return "Inductor's"
        return " / ".join(select(problem).kernel for problem in self.problems(device))

    def problems(self, device: Device) -> list[EcaProblem]:
        """Return what the op asks the choice of a kernel for: its forward, its backward, or either."""
        tail, taps, bits = self.tail, self.taps, self.keeps_bits
        dtype, activated = DTYPES[self.dtype], tail.activation != "identity"
        stored, again = tail.adds and activated, tail.adds and activated and not bits
        front = tail.normalises or tail.pre_activation != "identity"
        found = []
        if self.direction != "backward":
            of = self._layout(2 + tail.adds), dtype, dtype.itemsize, device, "forward", taps
            found.append(EcaProblem(*of, bits=bits, front=front))
        if self.trains:
            of = self._layout(3 + stored + again), dtype, dtype.itemsize, device, "backward", taps
            found.append(EcaProblem(*of, bits=bits, recomputed=activated and not bits, stored=stored))
        return found

    def _layout(self, maps: int) -> Layout:
        return common_layout(self._map.shape, *[self._map.stride()] * maps)

    @property
    def _map(self) -> Tensor:
        """Its shape and strides."""
        return torch.empty((self.batch, *self.shape), device="meta").to(memory_format=LAYOUTS[self.layout])


def rows(
    shapes: Sequence[Shape],
    batches: Sequence[int] = BATCHES,
    layouts: Collection[str] = tuple(LAYOUTS),
    variants: Collection[str] = tuple(HEADLINE),
    dtype: str = "bf16",
    directions: Sequence[str] = ("forward",),
) -> list[Row]:
    """Every combination, most telling first."""
    network = {shape: name for name, maps in NETWORKS.items() for shape in maps}
    found = [
        Row(shape, batch, layout, variant, dtype, direction)
        for batch in batches
        for variant in TAILS
        for shape in shapes
        for layout in LAYOUTS
        for direction in directions
        if variant in variants and layout in layouts and (direction == "forward" or TAILS[variant].trainable)
    ]
    return sorted(
        found,
        key=lambda row: (
            LATER_BY_NETWORK.get(network.get(row.shape, ""), 0)
            + LATER_BY_BATCH.get(row.batch, 3)
            + (0 if row.trains else LATER_BY_VARIANT.get(row.variant, LATER_BY_OTHERS))
        ),
    )


def parse_shapes(names: Sequence[str]) -> list[Shape]:
    """Shapes of networks by name, and of maps as CxHxW; each once.

    Raises:
        ValueError: a name is neither.
    """
    shapes: list[Shape] = []
    for name in names:
        sizes = name.split("x")
        if name in NETWORKS:
            shapes += NETWORKS[name]
        elif len(sizes) == 3 and all(size.isdecimal() and int(size) > 0 for size in sizes):
            c, h, w = map(int, sizes)
            shapes.append((c, h, w))
        else:
            raise ValueError(f"a shape must be CxHxW or one of {', '.join(NETWORKS)}, got {name!r}")
    return list(dict.fromkeys(shapes))
