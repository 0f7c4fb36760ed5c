"""What `python -m benchmarks op` measures: maps of real networks, most telling first. Pure; needs no GPU."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch

from eca_triton import adaptive_kernel_size
from eca_triton.tuning.choice import choose
from eca_triton.tuning.config import Device
from eca_triton.tuning.layout import common_layout

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
LAYOUTS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
VARIANTS = {
    "eca": "ECA",
    "bn_eca_add_relu": "BN + ECA + add + ReLU",
    "eca_add_relu": "ECA + add + ReLU",
}
BASELINES = ("eager", "inductor", "max-autotune")  # built in benchmarks/contenders.py, as are the others
OURS = ("op", "compiled", "two_pass")
DEFAULT = (*BASELINES, "op", "compiled")
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}

# How much later a row comes, so that what a budget cuts off matters least. The goals speak of large maps and
# of batch 1 to 8; the tail without batch norm lies between the other two variants.
LATER_BY_NETWORK = {"resnet": 0, "nfnet": 2, "mobilenet_v2": 3}
LATER_BY_BATCH = {128: 0, 8: 1, 1: 1, 32: 3}
LATER_BY_VARIANT = {"eca": 0, "bn_eca_add_relu": 0, "eca_add_relu": 2}


@dataclass(frozen=True)
class Row:
    """One measurement.

    Attributes:
        shape: C, H, W of the map.
        batch: Its images.
        layout: Key of `LAYOUTS`.
        variant: Key of `VARIANTS`.
        dtype: Key of `DTYPES`.
    """

    shape: Shape
    batch: int
    layout: str
    variant: str
    dtype: str = "bf16"

    def __str__(self) -> str:
        return f"{shape_name((self.batch, *self.shape))} {self.layout} {self.variant} {self.dtype}"

    @property
    def taps(self) -> int:
        """Of the convolution over channels."""
        return TAPS.get(self.shape) or adaptive_kernel_size(self.shape[0])

    @property
    def adds(self) -> bool:
        """Whether a residual is added, and ReLU applied."""
        return self.variant != "eca"

    @property
    def normalises(self) -> bool:
        """Whether batch norm comes first."""
        return self.variant == "bn_eca_add_relu"

    @property
    def map_bytes(self) -> int:
        """S: bytes of the map."""
        c, h, w = self.shape
        return self.batch * c * h * w * DTYPES[self.dtype].itemsize

    @property
    def least_bytes(self) -> int:
        """What any implementation moves: every input read once, the output written once."""
        return (3 if self.adds else 2) * self.map_bytes

    @property
    def contenders(self) -> tuple[str, ...]:
        """By default: max-autotune, which compiles longest, only where a network spends most of its time."""
        headline = self.shape in NETWORKS["resnet"] and self.batch == 128
        return tuple(name for name in DEFAULT if headline or name != "max-autotune")

    def kernel(self, device: Device) -> str:
        """The kernel that the eager op runs."""
        x = torch.empty((self.batch, *self.shape), device="meta").to(memory_format=LAYOUTS[self.layout])
        layout = common_layout(x.shape, *[x.stride()] * (3 if self.adds else 2))
        itemsize = DTYPES[self.dtype].itemsize
        return choose(layout, itemsize, itemsize, self.taps, self.normalises, device).kernel


def rows(
    shapes: Sequence[Shape],
    batches: Sequence[int] = BATCHES,
    layouts: Collection[str] = tuple(LAYOUTS),
    variants: Collection[str] = tuple(VARIANTS),
    dtype: str = "bf16",
) -> list[Row]:
    """Every combination, most telling first."""
    network = {shape: name for name, maps in NETWORKS.items() for shape in maps}
    found = [
        Row(shape, batch, layout, variant, dtype)
        for batch in batches
        for variant in VARIANTS
        for shape in shapes
        for layout in LAYOUTS
        if variant in variants and layout in layouts
    ]
    return sorted(
        found,
        key=lambda row: (
            LATER_BY_NETWORK.get(network.get(row.shape, ""), 0)
            + LATER_BY_BATCH.get(row.batch, 3)
            + LATER_BY_VARIANT[row.variant]
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


def shape_name(sizes: Sequence[int]) -> str:
    """(128, 256, 56, 56) -> "128x256x56x56"."""
    return "x".join(map(str, sizes))
