"""The network and the images of train_digits.py; nothing here knows of eca_triton."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTHS, TEST_SHARE = (16, 32, 64), 0.25


class Attention(nn.Module):
    """ECA as its authors write it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        t = int(abs((math.log2(channels) + 1) / 2))
        k = t if t % 2 else t + 1
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.conv = nn.Conv1d(1, 1, k, padding=k // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(self.pool(x).squeeze(-1).transpose(-1, -2)).transpose(-1, -2).unsqueeze(-1)
        return x * torch.sigmoid(y)


class Block(nn.Module):
    """Two 3x3 convolutions, attention after the second batch norm, then the shortcut and ReLU."""

    def __init__(self, inputs: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, channels, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        self.attention = Attention(channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != channels:
            convolution = nn.Conv2d(inputs, channels, 1, stride, bias=False)
            self.shortcut = nn.Sequential(convolution, nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.attention(self.norm2(self.conv2(y))) + self.shortcut(x))


def network() -> nn.Sequential:
    """Images [N, 1, 8, 8] -> logits [N, 10], through one block per width."""
    first = WIDTHS[0]
    stem = [nn.Conv2d(1, first, 3, padding=1, bias=False), nn.BatchNorm2d(first), nn.ReLU()]
    pairs = zip((first, *WIDTHS), WIDTHS, strict=False)
    blocks = [Block(inputs, width, 1 if inputs == width else 2) for inputs, width in pairs]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(WIDTHS[-1], 10))


@dataclass(frozen=True)
class Digits:
    """Images [N, 1, 8, 8] in 0..1 and their labels [N], for training and for the test."""

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor


def load(device: str) -> Digits:
    """scikit-learn's digits, a quarter of each class kept for the test."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    pixels, labels = load_digits(return_X_y=True)
    parts = train_test_split(pixels, labels, test_size=TEST_SHARE, stratify=labels, random_state=0)
    images = [torch.tensor(part, dtype=torch.float32).view(-1, 1, 8, 8) / 16 for part in parts[:2]]
    train, test, train_labels, test_labels = (
        part.to(device) for part in (*images, *map(torch.tensor, parts[2:]))
    )
    return Digits(train, train_labels, test, test_labels)
