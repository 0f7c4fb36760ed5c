"""Networks with a site behind a 1x1 convolution, lowered as for a GPU and run on the CPU."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from eager_block import assert_as_good_as
from harness import Lowering, results
from styles import trained
from timm.layers import EcaModule, ScaledStdConv2d
from torch import Tensor, nn

INPUT, CHANNELS = 6, 16


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


class Around(Bottleneck):
    """A bottleneck of which a function runs the layers."""

    def __init__(self, run: Callable[[Around, Tensor], Any], **convolution: Any) -> None:
        super().__init__(**convolution)
        self.run = run

    def attend(self, u: Tensor) -> Tensor:
        return self.se(self.bn(self.conv(u)))

    def forward(self, u: Tensor) -> Any:
        return self.run(self, u)


def projection(**convolution: Any) -> Around:
    """MobileNetV2's linear bottleneck: the map is the result."""
    return Around(Around.attend, **convolution)


def in_place(net: Around, u: Tensor) -> Tensor:
    """The sum is written into the shortcut, which stays outside; the map is rescaled in place."""
    x, shortcut = net.bn(net.conv(u)), net.shortcut(u)
    x *= net.se.conv(x.mean((2, 3))[:, None]).sigmoid()[:, 0, :, None, None]
    shortcut += x
    return shortcut.relu_()


def sum_in_the_shortcut(net: Around, u: Tensor) -> tuple[Tensor, Tensor]:
    """The caller gets the shortcut too."""
    shortcut = net.shortcut(u)
    return shortcut.add_(net.attend(u)).relu(), shortcut


def sum_in_the_shortcut_at_the_end(net: Around, u: Tensor) -> tuple[Tensor, Tensor]:
    shortcut = net.shortcut(u)
    return shortcut.add_(net.attend(u)), shortcut


def shortcut_changed(net: Around, u: Tensor) -> tuple[Tensor, Tensor]:
    """Between the sum that reads it and the end of the block."""
    shortcut = net.shortcut(u)
    x = net.attend(u) + shortcut
    shortcut.mul_(2)
    return net.act(x), shortcut


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "bottleneck": Bottleneck,
    "biased convolution": lambda: Bottleneck(bias=True),
    "padding same": lambda: projection(padding="same"),
    "padding valid": lambda: projection(padding="valid"),
    "norm-free": NormFree,
    "sequence": Sequence,
    "in place": lambda: Around(in_place),
    "sum in the shortcut": lambda: Around(sum_in_the_shortcut),
    "sum in the shortcut at the end": lambda: Around(sum_in_the_shortcut_at_the_end),
    "shortcut changed": lambda: Around(shortcut_changed),
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
            found = used.compile(network)(x), network(x), exact(x.double())
        yield used
        for got, native, want in zip(*map(results, found), strict=True):
            assert (got.dtype, got.stride()) == (native.dtype, native.stride())
            assert_as_good_as(got, native, want)
