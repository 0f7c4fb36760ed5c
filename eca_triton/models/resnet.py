"""ResNet-18 to 152 of timm, with attention where the paper has it: behind a block's last batch norm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import timm
from timm.models import is_model_in_modules
from torch import nn

from ..util.near_names import near_names
from .features import feature_extractor
from .placement import Attention, KSize, Unit, place

OFFICIAL_K_SIZES = {
    "resnet18": (3, 5, 7, 7),
    "resnet34": (3, 3, 5, 7),
    "resnet50": (3, 5, 5, 7),
    "resnet101": (3, 3, 5, 7),
    "resnet152": (3, 3, 5, 7),
}
"""Taps of the official checkpoints, by stage (https://github.com/BangguWu/ECANet)."""


def resnet(
    name: str,
    attention: Attention = None,
    *,
    k_size: KSize = None,
    num_classes: int = 1000,
    features_only: bool = False,
    out_indices: Sequence[int] | None = None,
    output_stride: int = 32,
    **timm_arguments: Any,
) -> nn.Module:
    """timm's ResNet of that name, with an attention module `se` in each block.

    Modules that stand behind blocks (`A2`) are members of the stage: `layer2.1_attention` behind `layer2.1`.
    The network's own modules and weights keep their names.

    Args:
        name: timm's, of any network in its file of ResNets that has no attention: "resnet50", "resnet50d".
        attention: a key of `eca_triton.models.attention.ATTENTION`, a function from the number of channels to
            a module, or None.
        k_size: taps of "eca" and "eca_ns": one number, one per stage, or None for the adaptive rule.
        num_classes: of the classifier; 0: the network ends with the pooled features.
        features_only: [N, 3, H, W] -> a list of the maps of `out_indices`, instead of [N, num_classes].
        out_indices: 0: behind the stem's activation (stride 2); 1 to 4: behind the stages (strides 4 to 32);
            None: all.
        output_stride: of the last map: 8, 16 or 32; below 32 the last stages are dilated.
        timm_arguments: timm's own: `in_chans`, `drop_path_rate`, `zero_init_last`, `device`, `dtype`, ...

    Raises:
        TypeError: attention is a function that returns no module.
        ValueError: name, attention, k_size, out_indices or output_stride are wrong.

    Examples:
        >>> resnet("resnet18", "eca", k_size=(3, 5, 7, 7))(torch.randn(1, 3, 64, 64)).shape
        torch.Size([1, 1000])
    """
    if not is_model_in_modules(name.split(".")[0], ("resnet",)):
        known = timm.list_models(module="resnet")
        raise ValueError(f"timm has no ResNet {name!r}{near_names(name, known)}")
    if output_stride not in (8, 16, 32):
        raise ValueError(f"output_stride must be 8, 16 or 32, got {output_stride}")
    model: Any = timm.create_model(
        name, num_classes=num_classes, output_stride=output_stride, **timm_arguments
    )
    units = _units(model)
    if attention is not None and units[0].module.se is not None:
        raise ValueError(f"{name!r} has attention of its own; name a network without")
    place(attention, k_size, units, _set_se)
    return feature_extractor(model, out_indices) if features_only else model


def _units(model: Any) -> list[Unit]:
    stages = [model.layer1, model.layer2, model.layer3, model.layer4]
    return [
        Unit(stage, name, _channels(block), index, 4 * 2**index)
        for index, stage in enumerate(stages)
        for name, block in stage.named_children()
    ]


def _channels(block: Any) -> int:
    """Return the channels of the block's result."""
    last = block.conv3 if hasattr(block, "conv3") else block.conv2
    return int(last.out_channels)


def _set_se(block: Any, module: nn.Module) -> None:
    """timm's blocks call `se` behind their last batch norm."""
    block.se = module


def resnet18(attention: Attention = None, **arguments: Any) -> nn.Module:
    """ResNet-18, as `resnet`."""
    return resnet("resnet18", attention, **arguments)


def resnet34(attention: Attention = None, **arguments: Any) -> nn.Module:
    """ResNet-34, as `resnet`."""
    return resnet("resnet34", attention, **arguments)


def resnet50(attention: Attention = None, **arguments: Any) -> nn.Module:
    """ResNet-50, as `resnet`."""
    return resnet("resnet50", attention, **arguments)


def resnet101(attention: Attention = None, **arguments: Any) -> nn.Module:
    """ResNet-101, as `resnet`."""
    return resnet("resnet101", attention, **arguments)


def resnet152(attention: Attention = None, **arguments: Any) -> nn.Module:
    """ResNet-152, as `resnet`."""
    return resnet("resnet152", attention, **arguments)


def eca_resnet18(k_size: KSize = None, **arguments: Any) -> nn.Module:
    """ResNet-18 with ECA, as `resnet`; taps of the official checkpoint: 3, 5, 7, 7."""
    return resnet("resnet18", "eca", k_size=k_size, **arguments)


def eca_resnet34(k_size: KSize = None, **arguments: Any) -> nn.Module:
    """ResNet-34 with ECA, as `resnet`; taps of the official checkpoint: 3, 3, 5, 7."""
    return resnet("resnet34", "eca", k_size=k_size, **arguments)


def eca_resnet50(k_size: KSize = None, **arguments: Any) -> nn.Module:
    """ResNet-50 with ECA, as `resnet`; taps of the official checkpoint: 3, 5, 5, 7."""
    return resnet("resnet50", "eca", k_size=k_size, **arguments)


def eca_resnet101(k_size: KSize = None, **arguments: Any) -> nn.Module:
    """ResNet-101 with ECA, as `resnet`; taps of the official checkpoint: 3, 3, 5, 7."""
    return resnet("resnet101", "eca", k_size=k_size, **arguments)


def eca_resnet152(k_size: KSize = None, **arguments: Any) -> nn.Module:
    """ResNet-152 with ECA, as `resnet`; taps of the official checkpoint: 3, 3, 5, 7."""
    return resnet("resnet152", "eca", k_size=k_size, **arguments)
