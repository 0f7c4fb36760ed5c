"""Networks with a site behind a 1x1 convolution, lowered as for a GPU and run on the CPU.

What must hold is the project's rule: the largest error against float64 is at most twice eager's own in the
same dtype, plus one unit in the last place.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from harness import Lowering
from timm.layers import EcaModule, ScaledStdConv2d
from torch import Tensor, nn

INPUT, CHANNELS = 6, 16


def trained(bn: nn.BatchNorm2d) -> nn.BatchNorm2d:
    """With statistics and parameters far from their initial values."""
    nn.init.normal_(bn.running_mean, std=0.5)
    nn.init.uniform_(bn.running_var, 0.5, 2)
    nn.init.normal_(bn.weight, 1, 0.3)
    nn.init.normal_(bn.bias, std=0.3)
    return bn


class Bottleneck(nn.Module):
    """conv3, batch norm, ECA, in-place shortcut, in-place ReLU of a ResNet; the shortcut has a batch norm."""

    def __init__(self, **convolution: Any) -> None:
        super().__init__()
        self.conv = nn.Conv2d(INPUT, CHANNELS, **{"kernel_size": 1, "bias": False} | convolution)
        self.bn = trained(nn.BatchNorm2d(CHANNELS))
        self.se = EcaModule(CHANNELS)
        self.shortcut = nn.Sequential(nn.Conv2d(INPUT, CHANNELS, 1), trained(nn.BatchNorm2d(CHANNELS)))
        self.act = nn.ReLU(inplace=True)

    def forward(self, u: Tensor) -> Tensor:
        x = self.se(self.bn(self.conv(u)))
        x += self.shortcut(u)
        return self.act(x)


class Projection(Bottleneck):
    """MobileNetV2's linear bottleneck: the map is the result."""

    def forward(self, u: Tensor) -> Tensor:
        return self.se(self.bn(self.conv(u)))


class NormFree(nn.Module):
    """conv3 of a normalizer-free network: weight-standardised, biased; gains, one learnt; two results."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = ScaledStdConv2d(INPUT, CHANNELS, 1)
        nn.init.normal_(self.conv.bias)
        self.se = EcaModule(CHANNELS)
        self.skipinit_gain = nn.Parameter(torch.tensor(0.7))

    def forward(self, u: Tensor) -> tuple[Tensor, Tensor]:
        out = 2.0 * self.se(self.conv(u))
        out.mul_(self.skipinit_gain)
        out = out * 0.2 + u.repeat(1, 3, 1, 1)[:, :CHANNELS]
        return out, F.silu(out)


class Sequence(nn.Module):
    """[N, C, L], circular padding, GELU; others read the input too."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(INPUT, CHANNELS, 1)
        self.band = nn.Conv1d(1, 1, 3, padding=1, padding_mode="circular", bias=True)

    def forward(self, u: Tensor) -> tuple[Tensor, Tensor]:
        x = self.conv(u.flatten(2))
        gate = self.band(x.mean(2)[:, None]).sigmoid().transpose(1, 2)
        return F.gelu(x * gate, approximate="tanh"), u + 1


class Written(Bottleneck):
    """The sum is written into the shortcut, which stays outside; the map is rescaled in place."""

    def forward(self, u: Tensor) -> Tensor:
        x, shortcut = self.bn(self.conv(u)), self.shortcut(u)
        x *= self.se.conv(x.mean((2, 3))[:, None]).sigmoid()[:, 0, :, None, None]
        shortcut += x
        return shortcut.relu_()


class Accumulated(Bottleneck):
    """The sum is written into the shortcut, which the caller gets too."""

    def forward(self, u: Tensor) -> tuple[Tensor, Tensor]:
        shortcut = self.shortcut(u)
        return shortcut.add_(self.se(self.bn(self.conv(u)))).relu(), shortcut


class AccumulatedLast(Bottleneck):
    """The same sum, with nothing behind it."""

    def forward(self, u: Tensor) -> tuple[Tensor, Tensor]:
        shortcut = self.shortcut(u)
        return shortcut.add_(self.se(self.bn(self.conv(u)))), shortcut


class Changed(Bottleneck):
    """The shortcut is changed between the sum that reads it and the end of the block."""

    def forward(self, u: Tensor) -> tuple[Tensor, Tensor]:
        shortcut = self.shortcut(u)
        x = self.se(self.bn(self.conv(u))) + shortcut
        shortcut.mul_(2)
        return self.act(x), shortcut


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "bottleneck": Bottleneck,
    "biased convolution": lambda: Bottleneck(bias=True),
    "padding same": lambda: Projection(padding="same"),
    "padding valid": lambda: Projection(padding="valid"),
    "norm-free": NormFree,
    "sequence": Sequence,
    "in place": Written,
    "sum in the shortcut": Accumulated,
    "sum in the shortcut at the end": AccumulatedLast,
    "shortcut changed": Changed,
}


def lowered(monkeypatch: pytest.MonkeyPatch, product: bool, plan: str = "convfold", **then: Any) -> Lowering:
    """A backend with `convfold` in one of its forms, or `convblock`."""
    monkeypatch.setattr("eca_triton.compile.plan.reach.epilogues_of_products", lambda: product)
    return Lowering(device="cuda", plan=plan, **then)


def compared(
    make: Callable[[], nn.Module], backend: Callable[[], Lowering], dtype: torch.dtype = torch.float32
) -> Iterator[Lowering]:
    """Lower and run a network in each layout; its results must be as near to the exact ones as eager's."""
    torch.manual_seed(0)
    network = make().eval().to(dtype)
    exact = copy.deepcopy(network).double()
    u = torch.randn(3, INPUT, 5, 4).to(dtype)
    for layout in (torch.contiguous_format, torch.channels_last):
        x = u.contiguous(memory_format=layout)
        with torch.no_grad():
            used = backend()
            got, want = used.compile(network)(x), exact(x.double())
            native = network(x)
        yield used
        for g, n, w in zip(*(r if isinstance(r, tuple) else (r,) for r in (got, native, want)), strict=True):
            assert (g.dtype, g.stride()) == (n.dtype, n.stride())
            ulp = torch.finfo(g.dtype).eps * w.abs().max()
            assert (g - w).abs().max() <= 2 * (n - w).abs().max() + ulp
