"""MobileNetV2 of torchvision, with attention where the paper has it: behind a block's last batch norm."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torchvision
from torch import nn

from .attention import ATTENTION, SE
from .features import feature_extractor
from .placement import Attention, KSize, Makers, Unit, place

OFFICIAL_K_SIZES = (1, 1, 1, 1, 3, 3, 3)
"""Taps of the official code, by stage: 1 below 96 channels (https://github.com/BangguWu/ECANet)."""

MOBILE_ATTENTION: Makers = {**ATTENTION, "se": partial(SE, reduction=8)}
"""SE has r = 8 in this network: section 4.2.2 of the ECA-Net paper."""

SETTING = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
"""Expansion, channels, blocks and stride of the seven stages: https://arxiv.org/abs/1801.04381, table 2."""


def mobilenet_v2(
    attention: Attention = None,
    *,
    k_size: KSize = None,
    num_classes: int = 1000,
    features_only: bool = False,
    out_indices: Sequence[int] | None = None,
    inverted_residual_setting: Sequence[Sequence[int]] = SETTING,
    **torchvision_arguments: Any,
) -> nn.Module:
    """torchvision's MobileNetV2, with an attention module at the end of `conv` in each inverted residual.

    Modules that stand behind blocks (`A2`) are members of `features`: `features.4_attention` behind
    `features.4`. The network's own modules and weights keep their names, unless it is `features_only`: timm's
    extractor has `features_4` for `features.4`.

    Args:
        attention: a key of `eca_triton.models.attention.ATTENTION`, a function from the number of channels to
            a module, or None. "se" has r = 8 here, as in the ECA-Net paper.
        k_size: taps of "eca" and "eca_ns": one number, one for each stage, or None for the adaptive rule.
        num_classes: of the classifier; 0: the network ends with the pooled features.
        features_only: [N, 3, H, W] -> a list of the maps of `out_indices`, instead of [N, num_classes].
        out_indices: 0 to 4: the last maps of strides 2, 4, 8, 16 and 32; None: all.
        inverted_residual_setting: the stages, each with expansion, channels, number of blocks and stride.
        torchvision_arguments: torchvision's own: `width_mult`, `dropout`, ...

    Raises:
        TypeError: attention is a function that returns no module.
        ValueError: attention, k_size or out_indices are wrong.

    Examples:
        >>> mobilenet_v2("eca", k_size=OFFICIAL_K_SIZES)(torch.randn(1, 3, 64, 64)).shape
        torch.Size([1, 1000])
    """
    stages = [list(stage) for stage in inverted_residual_setting]
    model: Any = torchvision.models.mobilenet_v2(
        num_classes=num_classes or 1, inverted_residual_setting=stages, **torchvision_arguments
    )
    if num_classes == 0:
        model.classifier = nn.Identity()
    units = _units(model, [index for index, (_, _, blocks, _) in enumerate(stages) for _ in range(blocks)])
    place(attention, k_size, units, _append, MOBILE_ATTENTION)
    if features_only:
        model.feature_info = _feature_info(units)
        return feature_extractor(model, out_indices, flatten_sequential=True)
    found: nn.Module = model
    return found


def _units(model: Any, stage_of: list[int]) -> list[Unit]:
    stem, *blocks, _ = model.features.named_children()
    stride, found = stem[1][0].stride[0], []
    for stage, (name, block) in zip(stage_of, blocks, strict=True):
        stride *= block.stride
        found.append(Unit(model.features, name, block.out_channels, stage, stride))
    return found


def _append(block: Any, module: nn.Module) -> None:
    """torchvision's blocks end `conv` with their last batch norm."""
    block.conv.append(module)


def _feature_info(units: list[Unit]) -> list[dict[str, Any]]:
    """Describe the network as timm does: the last block of each stride, or the module behind it."""
    last = {unit.stride: unit for unit in units}
    return [
        {"num_chs": unit.channels, "reduction": stride, "module": f"features.{unit.end}"}
        for stride, unit in last.items()
    ]


def eca_mobilenet_v2(k_size: KSize = None, **arguments: Any) -> nn.Module:
    """MobileNetV2 with ECA, as `mobilenet_v2`; official taps: 1, 1, 1, 1, 3, 3, 3."""
    return mobilenet_v2("eca", k_size=k_size, **arguments)
