"""Tune block sizes for a network of your own: what would be tried without a GPU, measured on one.

`network` is a factory as `explain` and `autotune` take them: FILE.py:FACTORY. Without a GPU this lists the
sites, the keys of their tuned configs, and the candidates, for an H200. With one it measures them, and
keeps the fastest in tuned.json in the current folder; nothing is ever timed in a call of yours.
How-to: docs/tuning.md.
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor, nn

from eca_triton.__main__ import main


class Block(nn.Module):
    """Convolution, batch norm, hand-written ECA, shortcut, ReLU."""

    def __init__(self, channels: int, taps: int = 5) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.taps = nn.Conv1d(1, 1, taps, padding=taps // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x))
        gate = self.taps(y.mean((2, 3)).unsqueeze(1)).sigmoid()
        return torch.relu(y * gate.view(*y.shape[:2], 1, 1) + x)


def network() -> tuple[nn.Module, Tensor]:
    """The model in the dtype and layout that it will run in, and example inputs."""
    model = nn.Sequential(nn.Conv2d(3, 256, 4, stride=4), Block(256), Block(256)).eval()
    images = torch.randn(32, 3, 224, 224, dtype=torch.bfloat16)
    last = torch.channels_last
    return model.to(torch.bfloat16, memory_format=last), images.to(memory_format=last)


if __name__ == "__main__":
    measured = torch.cuda.is_available()
    how = ["--out", "tuned.json"] if measured else ["--dry-run", "--target", "h200"]
    sys.exit(main(["autotune", f"{__file__}:network", *how]))
