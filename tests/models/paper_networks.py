"""What the tests of networks share."""

import torch
from torch import Tensor, nn

from eca_triton import ECA, models

BLOCKS = {
    "resnet18": {64: 2, 128: 2, 256: 2, 512: 2},
    "resnet34": {64: 3, 128: 4, 256: 6, 512: 3},
    "resnet50": {256: 3, 512: 4, 1024: 6, 2048: 3},
    "resnet101": {256: 3, 512: 4, 1024: 23, 2048: 3},
    "resnet152": {256: 3, 512: 8, 1024: 36, 2048: 3},
    "mobilenet_v2": {16: 1, 24: 2, 32: 3, 64: 4, 96: 3, 160: 3, 320: 1},
}
SMALL = ("resnet18", "mobilenet_v2")


def create(name: str, **arguments: object) -> nn.Module:
    """Without weights."""
    with torch.device("meta"):
        return models.create(name, **arguments)


def with_values(name: str, **arguments: object) -> nn.Module:
    """With random weights, also where timm starts with zeros, behind which attention would show nothing."""
    if "resnet" in name:
        arguments["zero_init_last"] = False
    return models.create(name, **arguments)


def size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def image(side: int = 64, device: str = "cpu") -> Tensor:
    return torch.randn(2, 3, side, side, device=device)


def kernel_sizes(network: nn.Module) -> list[int]:
    return [module.conv.weight.shape[-1] for module in network.modules() if isinstance(module, ECA)]
