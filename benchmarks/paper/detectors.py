"""Parameters of the detectors beside the official table, and what explains each difference.

The official table (https://github.com/BangguWu/ECANet; RetinaNet: table 5 of https://arxiv.org/abs/1910.03151)
counts, in millions, what trains in MMDetection of 2019: 80 classes, and stem and first stage fixed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from eca_triton.models.detection import OFFICIAL_DETECTOR_K_SIZES, detector

OFFICIAL_PARAMETERS_M = {
    "fasterrcnn_resnet50": 41.53,
    "fasterrcnn_resnet101": 60.52,
    "maskrcnn_resnet50": 44.18,
    "maskrcnn_resnet101": 63.17,
    "retinanet_resnet50": 37.74,
}
# Logits of a detector's classes there: RetinaNet has none for the background.
OFFICIAL_CLASSES = {"fasterrcnn": 81, "maskrcnn": 81, "retinanet": 80}
CLASSES = 91  # of torchvision: COCO's numbers run from 1 to 90
COLUMNS = ("detector", "ours", "counted alike", "official")
WIDTH, HIDDEN, ANCHORS = 256, 1024, 9  # of the pyramid, of the box head, of a position in RetinaNet


@dataclass(frozen=True)
class Difference:
    """What ours have more than the official count: so many parameters, for this reason."""

    parameters: int
    reason: str


@dataclass(frozen=True)
class Row:
    """One detector, on a ResNet with ECA and the official taps.

    Attributes:
        name: detector and network.
        ours: all parameters of torchvision's default, 91 classes.
        counted_alike: what trains with as many classes and as many trained layers as in the official table.
        official_m: the official figure, in millions.
        differences: between `ours` and `counted_alike`.
    """

    name: str
    ours: int
    counted_alike: int
    official_m: float
    differences: tuple[Difference, ...]

    @property
    def agrees(self) -> bool:
        """Return whether the official figure is ours counted alike, to its last digit."""
        return round(self.counted_alike / 1e6, 2) == self.official_m


def rows() -> Iterator[Row]:
    """The official table, detector by detector; nothing is allocated."""
    for name, official_m in OFFICIAL_PARAMETERS_M.items():
        kind, network = name.split("_")
        arguments = {"name": kind, "network": network, "attention": "eca"}
        taps = OFFICIAL_DETECTOR_K_SIZES[name]
        with torch.device("meta"):
            ours = detector(**arguments, k_size=taps)
            alike = detector(**arguments, k_size=taps, num_classes=OFFICIAL_CLASSES[kind], trainable_layers=3)
        yield Row(
            name=name,
            ours=_parameters(ours),
            counted_alike=_parameters(alike, trained=True),
            official_m=official_m,
            differences=(_of_classes(kind), _of_fixed_layers(taps[0])),
        )


def _parameters(model: nn.Module, trained: bool = False) -> int:
    return sum(each.numel() for each in model.parameters() if each.requires_grad or not trained)


def _of_classes(kind: str) -> Difference:
    """A score and four offsets of each class; its mask; RetinaNet's 3x3 logits of each anchor."""
    more = CLASSES - OFFICIAL_CLASSES[kind]
    if kind == "retinanet":
        each, how = ANCHORS * (9 * WIDTH + 1), f"{ANCHORS} * (9 * {WIDTH} + 1)"
    else:
        each, how = 5 * (HIDDEN + 1), f"5 * ({HIDDEN} + 1)"
    if kind == "maskrcnn":
        each, how = each + WIDTH + 1, f"({how} + {WIDTH} + 1)"
    return Difference(more * each, f"{CLASSES} classes, not {OFFICIAL_CLASSES[kind]}: {more} * {how}")


def _of_fixed_layers(k: int) -> Difference:
    """conv1 7x7, its batch norm, and three bottlenecks of 64 channels that make 256, with one shortcut."""
    stem = 3 * 49 * 64 + 2 * 64
    inputs, norms = (64, 256, 256), 2 * (64 + 64 + 256)
    blocks = sum(i * 64 + 9 * 64 * 64 + 64 * 256 + norms + k for i in inputs)
    shortcut = 64 * 256 + 2 * 256
    return Difference(
        stem + blocks + shortcut,
        f"stem ({stem}) and layer1 ({blocks + shortcut}, {3 * k} of them taps) train, and are counted",
    )


def cells(row: Row) -> list[str]:
    """Under `COLUMNS`."""
    return [row.name, f"{row.ours:,}", f"{row.counted_alike:,}", f"{row.official_m:.2f} M"]
