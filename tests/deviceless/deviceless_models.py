"""Small networks, on the meta device, that tests lower for a GPU that is not there."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Eca(nn.Module):
    """ECA as timm writes it."""

    def __init__(self, taps: int = 5) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 1, taps, padding=taps // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.conv(x.mean((2, 3)).view(x.shape[0], 1, -1)).sigmoid()
        return x * gate.view(x.shape[0], -1, 1, 1).expand_as(x)


class Tail(nn.Module):
    """The end of a bottleneck: 1x1 convolution, batch norm, ECA, residual, ReLU."""

    def __init__(self, channels: int = 256) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels // 4, channels, 1, bias=False)
        self.bn = nn.BatchNorm2d(channels)
        self.eca = Eca()

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return torch.relu(self.eca(self.bn(self.conv(x))) + residual)


class Activated(Tail):
    """The same with a ReLU before the attention, through which no mean goes."""

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return torch.relu(self.eca(torch.relu(self.bn(self.conv(x)))) + residual)


class Plain(nn.Module):
    """The same without a batch norm that trains: with none, or with a frozen one."""

    def __init__(self, channels: int = 256, frozen: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels // 4, channels, 1, bias=False)
        self.bn = nn.BatchNorm2d(channels) if frozen else nn.Identity()
        self.eca = Eca()

    def train(self, mode: bool = True) -> Plain:
        super().train(mode)
        self.bn.eval()
        return self

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return torch.relu(self.eca(self.bn(self.conv(x))) + residual)


class Stem(nn.Module):
    """Two 3x3 convolutions with a pooling between: nothing but what a network of convolutions has."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 128, 3, stride=2, padding=1)
        self.second = nn.Conv2d(128, 128, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(nn.functional.max_pool2d(self.first(x), 2))


def tail(
    batch: int = 128, channels: int = 256, side: int = 56, kind: type[Tail] = Tail
) -> tuple[Tail, tuple[Tensor, Tensor], int]:
    """The tail, its inputs, and S: the bytes of its map in a dtype of two bytes."""
    with torch.device("meta"):
        model = kind(channels)
        inputs = torch.empty(batch, channels // 4, side, side), torch.empty(batch, channels, side, side)
    return model, inputs, inputs[1].numel() * 2
