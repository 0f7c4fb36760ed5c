"""torchvision's Faster R-CNN, Mask R-CNN and RetinaNet on timm's ResNets with attention, and a pyramid.

    from eca_triton.models.detection import fasterrcnn_eca_resnet50_fpn

    model = fasterrcnn_eca_resnet50_fpn(num_classes=21)
    model.backbone.compile(backend="eca_triton")

The detectors are torchvision's own classes, and take images and targets as those do. No weights are loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.ops import FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, LastLevelP6P7

from .placement import Attention, KSize
from .resnet import resnet

OFFICIAL_DETECTOR_K_SIZES = {
    "fasterrcnn_resnet50": (5, 5, 5, 5),
    "fasterrcnn_resnet101": (3, 3, 5, 7),
    "maskrcnn_resnet50": (3, 3, 7, 7),
    "maskrcnn_resnet101": (3, 3, 5, 7),
    "retinanet_resnet50": (3, 3, 7, 7),
    "retinanet_resnet101": (3, 3, 5, 7),
}
"""Taps of the official detectors' trunks, by stage (https://github.com/BangguWu/ECANet)."""

PYRAMID_CHANNELS = 256  # of every level: https://arxiv.org/abs/1612.03144, section 3
TRAINABLE = ("layer4", "layer3", "layer2", "layer1", "conv1", "bn1")  # in the order of `trainable_layers`


def resnet_fpn(
    network: str = "resnet50",
    attention: Attention = None,
    *,
    k_size: KSize = None,
    trainable_layers: int = 5,
    frozen_batch_norm: bool = False,
    returned_layers: Sequence[int] = (1, 2, 3, 4),
    extra_blocks: Callable[[int], ExtraFPNBlock] | None = None,
    **timm_arguments: Any,
) -> BackboneWithFPN:
    """timm's ResNet with attention, and torchvision's feature pyramid on it.

    [N, 3, H, W] -> {"0": [N, 256, H / 4, W / 4], "1": ..., and what `extra_blocks` adds}, H and W multiples
    of 32.

    Args:
        network: timm's name of a network of its class ResNet: "resnet18" to "resnet152", "resnet50d".
        attention: as for `resnet`.
        k_size: as for `resnet`.
        trainable_layers: 0 to 5, as torchvision counts them: how many of layer4, layer3, layer2, layer1 and
            the stem have parameters that require gradients.
        frozen_batch_norm: torchvision's FrozenBatchNorm2d in place of batch norm, as it trains detectors from
            pretrained trunks. Statistics and affine parameters are buffers, 0 and 1 until weights are loaded.
        returned_layers: stages that the pyramid is built on, 1 to 4, in order.
        extra_blocks: makes what adds further levels, from the channels of the last stage; None:
            `LastLevelSubsample`, which adds "pool".
        timm_arguments: timm's own: `in_chans`, `drop_path_rate`, `zero_init_last`, ...

    Raises:
        ValueError: an argument is wrong.
    """
    if not 0 <= trainable_layers <= 5:
        raise ValueError(f"trainable_layers must be 0 to 5, got {trainable_layers}")
    if not returned_layers or not set(returned_layers) <= {1, 2, 3, 4}:
        raise ValueError(f"returned_layers must be some of 1 to 4, got {tuple(returned_layers)}")
    if frozen_batch_norm:
        # A last batch norm that starts at 0, and stays there, would close its branch for good.
        timm_arguments = {"zero_init_last": False, **timm_arguments}
    trunk: Any = resnet(network, attention, k_size=k_size, num_classes=0, **timm_arguments)
    if frozen_batch_norm:
        _freeze_batch_norm(trunk)
    trained = TRAINABLE if trainable_layers == 5 else TRAINABLE[:trainable_layers]
    for name, parameter in trunk.named_parameters():
        parameter.requires_grad_(name.startswith(trained))
    channels = [trunk.feature_info[layer]["num_chs"] for layer in returned_layers]
    return BackboneWithFPN(
        trunk,
        return_layers={f"layer{layer}": str(level) for level, layer in enumerate(returned_layers)},
        in_channels_list=channels,
        out_channels=PYRAMID_CHANNELS,
        extra_blocks=LastLevelSubsample() if extra_blocks is None else extra_blocks(channels[-1]),
    )


class LastLevelSubsample(ExtraFPNBlock):  # type: ignore[misc] # torchvision has no types
    """Every second row and column of the last level, as torchvision's LastLevelMaxPool has them.

    That one takes the maxima of single elements, and torch 2.11 compiles it for even and odd sizes apart.
    """

    def forward(
        self, results: list[Tensor], x: list[Tensor], names: list[str]
    ) -> tuple[list[Tensor], list[str]]:
        """The pyramid's levels and their names, and one more of each."""
        return [*results, results[-1][:, :, ::2, ::2]], [*names, "pool"]


def _freeze_batch_norm(module: nn.Module) -> None:
    """Put FrozenBatchNorm2d in the place of each batch norm inside, with its values."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            frozen = FrozenBatchNorm2d(child.num_features, eps=child.eps)
            frozen.load_state_dict(child.state_dict())
            module.add_module(name, frozen)
        else:
            _freeze_batch_norm(child)


def _p6_and_p7(channels: int) -> ExtraFPNBlock:
    """Two more levels, from the last stage and not from the pyramid: https://arxiv.org/abs/1708.02002."""
    return LastLevelP6P7(channels, PYRAMID_CHANNELS)


DETECTORS: dict[str, tuple[Callable[..., nn.Module], dict[str, Any]]] = {
    "fasterrcnn": (FasterRCNN, {}),
    "maskrcnn": (MaskRCNN, {}),
    "retinanet": (RetinaNet, {"returned_layers": (2, 3, 4), "extra_blocks": _p6_and_p7}),
}
"""torchvision's classes by name, and their arguments of `resnet_fpn`."""


def detector(
    name: str,
    network: str = "resnet50",
    attention: Attention = None,
    *,
    k_size: KSize = None,
    num_classes: int = 91,
    trainable_layers: int = 5,
    frozen_batch_norm: bool = False,
    **torchvision_arguments: Any,
) -> nn.Module:
    """torchvision's detector on `resnet_fpn`.

    Args:
        name: a key of `DETECTORS`.
        network: as for `resnet_fpn`.
        attention: as for `resnet`.
        k_size: as for `resnet`.
        num_classes: with the background, class 0; RetinaNet has logits for each of them.
        trainable_layers: as for `resnet_fpn`.
        frozen_batch_norm: as for `resnet_fpn`.
        torchvision_arguments: of torchvision's class: `min_size`, `max_size`, `box_score_thresh`, ...

    Raises:
        ValueError: an argument is wrong.

    Examples:
        >>> model = detector("fasterrcnn", "resnet18", "se", num_classes=5, min_size=64).eval()
        >>> sorted(model([torch.rand(3, 64, 96)])[0])
        ['boxes', 'labels', 'scores']
    """
    if name not in DETECTORS:
        raise ValueError(f"name must be one of {', '.join(DETECTORS)}, got {name!r}")
    build, pyramid = DETECTORS[name]
    backbone = resnet_fpn(
        network,
        attention,
        k_size=k_size,
        trainable_layers=trainable_layers,
        frozen_batch_norm=frozen_batch_norm,
        **pyramid,
    )
    return build(backbone, num_classes, **torchvision_arguments)


def fasterrcnn_eca_resnet50_fpn(k_size: KSize = None, **arguments: Any) -> nn.Module:
    """Faster R-CNN on ResNet-50 with ECA, as `detector`; taps of the official checkpoint: 5, 5, 5, 5."""
    return detector("fasterrcnn", "resnet50", "eca", k_size=k_size, **arguments)


def fasterrcnn_eca_resnet101_fpn(k_size: KSize = None, **arguments: Any) -> nn.Module:
    """Faster R-CNN on ResNet-101 with ECA, as `detector`; taps of the official checkpoint: 3, 3, 5, 7."""
    return detector("fasterrcnn", "resnet101", "eca", k_size=k_size, **arguments)


def maskrcnn_eca_resnet50_fpn(k_size: KSize = None, **arguments: Any) -> nn.Module:
    """Mask R-CNN on ResNet-50 with ECA, as `detector`; taps of the official checkpoint: 3, 3, 7, 7."""
    return detector("maskrcnn", "resnet50", "eca", k_size=k_size, **arguments)


def maskrcnn_eca_resnet101_fpn(k_size: KSize = None, **arguments: Any) -> nn.Module:
    """Mask R-CNN on ResNet-101 with ECA, as `detector`; taps of the official checkpoint: 3, 3, 5, 7."""
    return detector("maskrcnn", "resnet101", "eca", k_size=k_size, **arguments)


def retinanet_eca_resnet50_fpn(k_size: KSize = None, **arguments: Any) -> nn.Module:
    """RetinaNet on ResNet-50 with ECA, as `detector`; taps of the official checkpoint: 3, 3, 7, 7."""
    return detector("retinanet", "resnet50", "eca", k_size=k_size, **arguments)


def retinanet_eca_resnet101_fpn(k_size: KSize = None, **arguments: Any) -> nn.Module:
    """RetinaNet on ResNet-101 with ECA, as `detector`; taps of the official checkpoint: 3, 3, 5, 7."""
    return detector("retinanet", "resnet101", "eca", k_size=k_size, **arguments)
