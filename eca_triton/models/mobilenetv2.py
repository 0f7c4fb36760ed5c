"""MobileNetV2 of torchvision, with attention where the paper has it: behind a block's last batch norm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torchvision
from timm.models import FeatureListNet
from torch import nn

from .placement import Attention, KSize, Unit, place

OFFICIAL_K_SIZES = (1, 1, 1, 1, 3, 3, 3)
"""Taps of the official checkpoint, by stage: 1 below 96 channels (https://github.com/BangguWu/ECANet)."""

BLOCKS = (1, 2, 3, 4, 3, 3, 1)  # of the seven stages: https://arxiv.org/abs/1801.04381, table 2


def mobilenet_v2(
    attention: Attention = None,
    *,
    k_size: KSize = None,
    num_classes: int = 1000,
    features_only: bool = False,
    out_indices: Sequence[int] = (0, 1, 2, 3, 4),
    **torchvision_arguments: Any,
) -> nn.Module:
    """torchvision's MobileNetV2, with an attention module at the end of `conv` in each inverted residual.

    Args:
        attention: a key of `eca_triton.models.attention.ATTENTION`, a function from the number of channels to
            a module, or None.
        k_size: taps of "eca" and "eca_ns": one number, one for each of the seven stages, or None for the
            adaptive rule.
        num_classes: of the classifier.
        features_only: [N, 3, H, W] -> the maps of `out_indices`, instead of [N, num_classes].
        out_indices: 0 to 4: the last maps of strides 2, 4, 8, 16 and 32.
        torchvision_arguments: torchvision's own: `width_mult`, `dropout`, ...

    Raises:
        ValueError: attention or k_size are wrong.
    """
    model: Any = torchvision.models.mobilenet_v2(num_classes=num_classes, **torchvision_arguments)
    place(attention, k_size, _units(model), _append)
    if features_only:
        model.feature_info = _feature_info(model)
        model = FeatureListNet(model, out_indices=tuple(out_indices), flatten_sequential=True)
    found: nn.Module = model
    return found


def _units(model: Any) -> list[Unit]:
    stages = [stage for stage, repeats in enumerate(BLOCKS) for _ in range(repeats)]
    stride, found = model.features[0][0].stride[0], []
    for stage, (name, block) in zip(stages, list(model.features.named_children())[1:-1], strict=True):
        stride *= block.stride
        found.append(Unit(model.features, name, block.out_channels, stage, stride))
    return found


def _append(block: Any, module: nn.Module) -> None:
    """torchvision's blocks end `conv` with their last batch norm."""
    block.conv.append(module)


def _feature_info(model: Any) -> list[dict[str, Any]]:
    """As timm describes networks: the last block of each stride, or the module behind it."""
    stride, channels, found = model.features[0][0].stride[0], 0, {}
    for name, member in list(model.features.named_children())[1:-1]:
        stride *= getattr(member, "stride", 1)
        channels = getattr(member, "out_channels", channels)
        found[stride] = {"num_chs": channels, "reduction": stride, "module": f"features.{name}"}
    return list(found.values())


def eca_mobilenet_v2(k_size: KSize = None, **arguments: Any) -> nn.Module:
    """MobileNetV2 with ECA, as `mobilenet_v2`; taps of the official checkpoint: 1, 1, 1, 1, 3, 3, 3."""
    return mobilenet_v2("eca", k_size=k_size, **arguments)
