"""What stands around the block in real networks: small networks with one or two sites each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from spellings import conv1d
from timm.layers import CecaModule, EcaModule
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

CHANNELS = 8


@dataclass(frozen=True)
class Style:
    """A small network and the number of its ECA sites; its input is [N, 8, 6, 5]."""

    build: Callable[[], nn.Module]
    sites: int = 1

    def example(self, batch: int = 3) -> Tensor:
        return torch.randn(batch, CHANNELS, 6, 5)


def conv1x1(bias: bool = False) -> nn.Conv2d:
    return nn.Conv2d(CHANNELS, CHANNELS, 1, bias=bias)


def trained(bn: Any) -> Any:
    """A batch norm whose statistics and parameters are far from their initial zeros and ones."""
    nn.init.normal_(bn.running_mean, std=0.5)
    nn.init.uniform_(bn.running_var, 0.5, 2)
    if bn.weight is not None:
        nn.init.normal_(bn.weight, 1, 0.3)
        nn.init.normal_(bn.bias, std=0.3)
    return bn


def batch_norm(affine: bool = True) -> nn.BatchNorm2d:
    return trained(nn.BatchNorm2d(CHANNELS, affine=affine))


class Network(nn.Module):
    """conv, batch norm and ECA, layers of its own, and what a forward pass does with them and its input."""

    def __init__(self, run: Callable[[Network, Tensor], Any], **layers: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.run = run
        self.conv, self.bn, self.eca = conv1x1(), batch_norm(), EcaModule(CHANNELS)
        self.offset = nn.Parameter(torch.randn(1, CHANNELS, 1, 1))
        for name, make in layers.items():
            setattr(self, name, make())

    def attend(self, x: Tensor) -> Tensor:
        return self.eca(self.bn(self.conv(x)))

    def forward(self, x: Tensor) -> Any:
        return self.run(self, x)


class ResNetTail(nn.Module):
    """conv, batch norm, ECA, in-place shortcut, in-place ReLU: timm's Bottleneck."""

    def __init__(self, affine: bool = True, attention: nn.Module | None = None) -> None:
        super().__init__()
        self.conv, self.bn = conv1x1(), batch_norm(affine)
        self.se = attention or EcaModule(CHANNELS)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x
        x = self.se(self.bn(self.conv(x)))
        x += shortcut
        return self.act(x)


def nfnet_tail(net: Network, x: Tensor) -> Tensor:
    """conv with bias, ECA, two gains, shortcut, SiLU; the sum before SiLU is used twice."""
    out = 2.0 * net.eca(net.conv(x))
    out = out * 0.2 + x
    return out + net.project(F.silu(out))


def own_residual(net: Network, x: Tensor) -> Tensor:
    """The shortcut is the rescaled map itself."""
    x = net.conv(x)
    return F.gelu(x + net.eca(x))


def batch_norm_used_twice(net: Network, x: Tensor) -> Tensor:
    """The batch norm's output is rescaled and is the shortcut as well."""
    x = net.bn(x)
    return F.relu6(net.eca(x) + x)


def returns_rescaled_map(net: Network, x: Tensor) -> tuple[Tensor, Tensor]:
    """The rescaled map is returned beside the sum, so the sum cannot swallow it."""
    rescaled = net.eca(net.bn(x))
    return F.relu(rescaled + x), rescaled


def two_of_one_map(net: Network, x: Tensor) -> Tensor:
    x = net.bn(x)
    return net.eca(x) + net.other(x)


class FrozenBatchNorm(nn.Module):
    """Fine-tuning of a detector: batch norm keeps its statistics in training."""

    def __init__(self) -> None:
        super().__init__()
        self.tail = ResNetTail()

    def train(self, mode: bool = True) -> nn.Module:
        super().train(mode)
        self.tail.bn.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(2 * x)


class Checkpointed(FrozenBatchNorm):
    """The block is recomputed in the backward pass, so Dynamo puts it into a sub-graph.

    Batch norm is frozen because eager mode counts the recomputation as a second batch and Dynamo does not.
    """

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.tail, 2 * x, use_reentrant=False)


def watched(watch: Callable[[Tensor, Tensor], object]) -> Style:
    """A block whose gate has other readers, by `watch`."""

    def run(net: Network, x: Tensor) -> object:
        x = 2 * x
        return watch(x, net.taps(x.mean((2, 3)).unsqueeze(1)).sigmoid().transpose(1, 2).unsqueeze(-1))

    return Style(partial(Network, run, taps=conv1d))


def gate_kept(net: Network, x: Tensor) -> Tensor:
    """The gate stays as an attribute, for a plot."""
    x = 2 * x
    net.last = net.taps(x.mean((2, 3)).unsqueeze(1)).sigmoid()
    return x * net.last.transpose(1, 2).unsqueeze(-1)


def computed_weight(parametrize: Callable[[nn.Module], nn.Module]) -> Style:
    """The weight is computed in each call."""

    def run(net: Network, x: Tensor) -> Tensor:
        x = net.bn(2 * x)
        return F.relu(x * net.taps(x.mean((2, 3)).unsqueeze(1)).sigmoid().transpose(1, 2).unsqueeze(-1))

    return Style(partial(Network, run, taps=lambda: parametrize(conv1d())))


STYLES: dict[str, Style] = {
    "ResNetTail": Style(ResNetTail),
    "ResNetTail-no-affine": Style(lambda: ResNetTail(affine=False)),
    "ResNetTail-circular": Style(lambda: ResNetTail(attention=CecaModule(CHANNELS))),
    "ResNetTail-twice": Style(lambda: nn.Sequential(ResNetTail(), ResNetTail()), sites=2),
    "NFNetTail": Style(
        partial(Network, nfnet_tail, conv=lambda: conv1x1(bias=True), project=lambda: conv1x1(bias=True))
    ),
    # Attention in the middle of timm's ByobNet block.
    "ByobNetMiddle": Style(
        lambda: Network(
            lambda net, x: net.project(net.eca(F.silu(net.bn(net.conv(x)), inplace=True))), project=conv1x1
        )
    ),
    "VoVNetTail": Style(
        lambda: Network(
            lambda net, x: F.max_pool2d(net.eca(F.relu(net.bn(net.conv(x)), inplace=True)) + x, 2)
        )
    ),
    "MobileNetTail": Style(
        lambda: Network(
            lambda net, x: F.hardswish(net.attend(x)),
            conv=lambda: nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, groups=CHANNELS, bias=False),
            eca=lambda: EcaModule(CHANNELS, gate_layer="hard_sigmoid"),
        )
    ),
    "OwnResidual": Style(partial(Network, own_residual)),
    "BatchNormUsedTwice": Style(partial(Network, batch_norm_used_twice)),
    # One value per channel, not a map.
    "BroadcastShortcut": Style(
        lambda: Network(lambda net, x: F.relu(net.eca(net.conv(x)) + net.offset)),
    ),
    # More images than the rescaled map has, so that the sum is larger than the map.
    "BroadcastingShortcut": Style(lambda: Network(lambda net, x: net.eca(net.conv(x[:1])) + x)),
    "ReturnsRescaledMap": Style(partial(Network, returns_rescaled_map)),
    "SharedModule": Style(
        lambda: Network(lambda net, x: net.project(net.eca(net.conv(x))) + net.eca(x), project=conv1x1),
        sites=2,
    ),
    "TwoOfOneMap": Style(partial(Network, two_of_one_map, other=lambda: EcaModule(CHANNELS)), sites=2),
    "FrozenBatchNorm": Style(FrozenBatchNorm),
    "Checkpointed": Style(Checkpointed),
    "GateReturned": watched(lambda x, g: (x * g, g)),
    "GateReturnedFlat": watched(lambda x, g: (g.flatten(1), x * g)),
    "GateLogged": watched(lambda x, g: (x * g, g.detach().mean(), g.std())),
    "GateUsedTwice": watched(lambda x, g: x * g + g),
    "GateOfTwoMaps": watched(lambda x, g: x.flip(0) * g + x * g),
    "GateDoubledBehind": watched(lambda x, g: (x * g, g.flatten(1).clone().mul_(2))),
    "GateKept": Style(partial(Network, gate_kept, taps=conv1d)),
    "SpectralNorm": computed_weight(parametrizations.spectral_norm),
    "WeightNorm": computed_weight(parametrizations.weight_norm),
}
