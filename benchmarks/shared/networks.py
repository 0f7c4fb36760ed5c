"""timm's 23 networks with ECA, whole or with fewer blocks, those of the paper, and their twins without it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

NETWORKS = {  # and the side of an image
    "eca_botnext26ts_256": 256,
    "eca_halonext26ts": 256,
    "eca_nfnet_l0": 224,
    "eca_nfnet_l1": 224,
    "eca_nfnet_l2": 224,
    "eca_nfnet_l3": 224,
    "eca_resnet33ts": 224,
    "eca_resnext26ts": 224,
    "eca_vovnet39b": 224,
    "ecaresnet26t": 224,
    "ecaresnet50d": 224,
    "ecaresnet50d_pruned": 224,
    "ecaresnet50t": 224,
    "ecaresnet101d": 224,
    "ecaresnet101d_pruned": 224,
    "ecaresnet200d": 224,
    "ecaresnet269d": 224,
    "ecaresnetlight": 224,
    "ecaresnext26t_32x4d": 224,
    "ecaresnext50t_32x4d": 224,
    "nf_ecaresnet26": 224,
    "nf_ecaresnet50": 224,
    "nf_ecaresnet101": 224,
}
PAPER = dict.fromkeys(
    (
        "eca_resnet18",
        "eca_resnet34",
        "eca_resnet50",
        "eca_resnet101",
        "eca_resnet152",
        "eca_mobilenet_v2",
    ),
    224,
)
"""Those of the ECA-Net paper, by their names in `eca_triton.models`."""
DEEP = {
    "eca_nfnet_l1",
    "eca_nfnet_l2",
    "eca_nfnet_l3",
    "ecaresnet101d",
    "ecaresnet200d",
    "ecaresnet269d",
    "nf_ecaresnet101",
}


def network(name: str, *, whole: bool = False) -> nn.Module:
    """A network on the meta device; unless `whole`, timm's deepest have three blocks in each stage.

    Those are the first two and the last: the ones between are the same again, and so is what Inductor makes
    of them.
    """
    import timm

    with torch.device("meta"):
        model: nn.Module = of_paper(name) if name in PAPER else timm.create_model(name)
    if name in DEEP and not whole:
        for stage in stages(model):
            del stage[2:-1]
    return model


def of_paper(name: str) -> nn.Module:
    """A network by its name in `eca_triton.models`, ECA with the taps of the official checkpoints.

    MobileNetV2 is without dropout, which no two runs would draw alike.
    """
    from eca_triton import models
    from eca_triton.models import mobilenetv2, resnet

    taps = {**resnet.OFFICIAL_K_SIZES, "mobilenet_v2": mobilenetv2.OFFICIAL_K_SIZES}
    base = name.removeprefix("eca_")
    arguments: dict[str, Any] = {"k_size": taps[base]} if name in PAPER else {}
    if base.endswith("mobilenet_v2"):
        arguments["dropout"] = 0.0
    return models.create(name, **arguments)


def stages(model: nn.Module) -> Iterator[nn.Sequential]:
    """The chains of blocks of one resolution: `layer1` to `layer4` of a ResNet, `stages` of the others."""
    for name, module in model.named_modules():
        if name in {"layer1", "layer2", "layer3", "layer4"} or name.rpartition(".")[0] == "stages":
            assert isinstance(module, nn.Sequential)
            yield module


def attention(model: nn.Module) -> list[str]:
    """Paths of the ECA modules: timm's, and `eca_triton.ECA`."""
    kinds = {"EcaModule", "CecaModule", "ECA"}
    return [name for name, each in model.named_modules() if type(each).__name__ in kinds]


def without_attention(model: nn.Module) -> nn.Module:
    """The model, changed: the identity stands in place of each ECA module."""
    for name in attention(model):
        model.set_submodule(name, nn.Identity())
    return model


def images(name: str, batch: int) -> Any:
    """A batch for the network, on the meta device."""
    size = {**NETWORKS, **PAPER}[name]
    return torch.empty(batch, 3, size, size, device="meta")
