"""The attentions that the ECA-Net paper compares (https://arxiv.org/abs/1910.03151, tables 2 and 3).

Each takes and returns a map x [N, C, H, W] of any floating dtype and layout; y [N, C] is its mean over H
and W. All but CBAM and A2 are x * sigmoid(f(y)), and differ in f. There are no biases. C / r is rounded, and
at least 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from timm.layers import SEModule  # type: ignore[attr-defined]
from timm.layers.cbam import CbamModule
from torch import Tensor, nn

from ..functional import adaptive_kernel_size
from ..module import ECA


class ECANS(nn.Module):
    """ECA whose taps are not shared: f(y)[c] = sum_j w[c, j] * y[c + j - k // 2], with zeros beyond the ends.

    k * C parameters. Equation 7 of the paper; zeros and `conv.weight` [C, 1, k] as in the official code
    (https://github.com/BangguWu/ECANet).

    Args:
        channels: C.
        k_size: taps of a channel, odd; None: by `adaptive_kernel_size`.

    Raises:
        ValueError: k_size is even or not positive.
    """

    def __init__(self, channels: int, k_size: int | None = None) -> None:
        super().__init__()
        k_size = adaptive_kernel_size(channels) if k_size is None else k_size
        if k_size < 1 or k_size % 2 == 0:
            raise ValueError(f"k_size must be odd and positive, got {k_size}")
        self.conv = nn.Conv1d(channels, channels, k_size, groups=channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, C, H, W]."""
        weight = self.conv.weight[:, 0]
        k = weight.shape[1]
        neighbours = F.pad(x.mean((2, 3)), (k // 2, k // 2)).unfold(1, k, 1)
        return x * torch.sigmoid((neighbours * weight).sum(-1))[:, :, None, None]


class SE(SEModule):
    """Squeeze-and-Excitation: f(y) = W2 relu(W1 y), W1 [C / r, C], W2 [C, C / r].

    2 * C^2 / r parameters. https://arxiv.org/abs/1709.01507, equation 3.

    Args:
        channels: C.
        reduction: r.

    Raises:
        ValueError: reduction is not positive.
    """

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__(channels, rd_channels=_reduced(channels, reduction), bias=False)


class SEVar1(nn.Module):
    """SE-Var1: f(y) = y. No parameters. Section 3.2.1 of the paper.

    Args:
        channels: C; nothing depends on it.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, C, H, W]."""
        return x * torch.sigmoid(x.mean((2, 3), keepdim=True))


class SEVar2(nn.Module):
    """SE-Var2: f(y) = w * y, one weight a channel, 1 at first. C parameters. Equation 4 of the paper.

    Args:
        channels: C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, C, H, W]."""
        return x * torch.sigmoid(self.weight[:, None, None] * x.mean((2, 3), keepdim=True))


class SEVar3(nn.Module):
    """SE-Var3: f(y) = W y. C^2 parameters; with block-diagonal W ("SE-GC") C^2 / groups.

    Equations 4 and 5 of the paper.

    Args:
        channels: C.
        groups: blocks on the diagonal of W; a divisor of C.
    """

    def __init__(self, channels: int, groups: int = 1) -> None:
        super().__init__()
        self.fc = nn.Conv2d(channels, channels, 1, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, C, H, W]."""
        return x * torch.sigmoid(self.fc(x.mean((2, 3), keepdim=True)))


class CBAM(CbamModule):
    """Convolutional Block Attention Module: channels, then positions.

    The channels' gate is sigmoid(f(mean x) + f(max x)) with SE's f; that of positions is a convolution of
    7 x 7 over the mean and the maximum over channels, batch norm, and sigmoid. 2 * C^2 / r + 98 parameters,
    and the batch norm's 2. https://arxiv.org/abs/1807.06521, equations 2 and 3; batch norm as in the authors'
    code (https://github.com/Jongchan/attention-module).

    Args:
        channels: C.
        reduction: r.

    Raises:
        ValueError: reduction is not positive.
    """

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__(channels, rd_channels=_reduced(channels, reduction))


class A2(nn.Module):
    """Double attention: x + W (A softmax(B)^T) softmax(V), where A, B, V are convolutions of 1 x 1 of x.

    A [m, HW] holds features. Each row of B [m, HW], by softmax over positions, gathers them into one of m
    descriptors [m]; each column of V [m, HW], by softmax over descriptors, distributes these to a position;
    W [C, m] makes C channels of them again. 4 * C * m parameters, m = C / r.
    https://arxiv.org/abs/1810.11579, sections 3.1 to 3.3.

    It has a residual of its own and is too large for every unit, so it stands behind some of them, as do the
    non-local blocks that it replaces (https://arxiv.org/abs/1711.07971, section 5.1: five in ResNet-50, one
    behind every other unit of two stages). `behind` says how many at each stride. r = 2 is what the published
    size of ResNet-50 with A2 leaves: 33.0 million parameters, 25.56 of the network and 7.34 of five such
    modules. Assumed is that W starts with zeros, so that it may be put into a trained network, and that there
    is no batch norm.

    Args:
        channels: C.
        reduction: r.

    Raises:
        ValueError: reduction is not positive.
    """

    behind: ClassVar[Mapping[int, int]] = {8: 2, 16: 3}

    def __init__(self, channels: int, reduction: int = 2) -> None:
        super().__init__()
        inner = _reduced(channels, reduction)
        self.features = nn.Conv2d(channels, inner, 1, bias=False)
        self.gather = nn.Conv2d(channels, inner, 1, bias=False)
        self.distribute = nn.Conv2d(channels, inner, 1, bias=False)
        self.expand = nn.Conv2d(inner, channels, 1, bias=False)
        nn.init.zeros_(self.expand.weight)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, C, H, W]."""
        over_positions = self.gather(x).flatten(2).softmax(2)
        over_descriptors = self.distribute(x).flatten(2).softmax(1)
        descriptors = self.features(x).flatten(2) @ over_positions.mT
        distributed: Tensor = self.expand((descriptors @ over_descriptors).unflatten(2, x.shape[2:]))
        return x + distributed


ATTENTION: dict[str, Callable[..., nn.Module]] = {
    "eca": ECA,
    "eca_ns": ECANS,
    "se": SE,
    "se_var1": SEVar1,
    "se_var2": SEVar2,
    "se_var3": SEVar3,
    "cbam": CBAM,
    "a2": A2,
}
"""Attentions by name, each called with the number of channels; the first two with `k_size`, too."""


def _reduced(channels: int, reduction: int) -> int:
    """The width inside a module, rounded as timm does."""
    if reduction < 1:
        raise ValueError(f"reduction must be positive, got {reduction}")
    return max(1, int(channels / reduction + 0.5))
