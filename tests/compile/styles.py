"""What stands around the block in real networks: small networks with one or two sites each."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from timm.layers import CecaModule, EcaModule
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

CHANNELS = 8


@dataclass(frozen=True)
class Style:
    """A small network and the number of its ECA sites; its input is [N, 8, 6, 5]."""

    build: Callable[[], nn.Module]
    sites: int = 1

    def example(self, batch: int = 3) -> Tensor:
        return torch.randn(batch, CHANNELS, 6, 5)


STYLES: dict[str, Style] = {}


def style(sites: int = 1) -> Callable[[type[nn.Module]], type[nn.Module]]:
    def register(network: type[nn.Module]) -> type[nn.Module]:
        STYLES[network.__name__] = Style(network, sites)
        return network

    return register


def conv1x1(bias: bool = False) -> nn.Conv2d:
    return nn.Conv2d(CHANNELS, CHANNELS, 1, bias=bias)


def trained_batch_norm(affine: bool = True) -> nn.BatchNorm2d:
    """A batch norm whose statistics and parameters are not the initial zeros and ones."""
    bn = nn.BatchNorm2d(CHANNELS, affine=affine)
    nn.init.normal_(bn.running_mean, std=0.3)
    nn.init.uniform_(bn.running_var, 0.5, 2)
    if affine:
        nn.init.normal_(bn.weight, 1, 0.3)
        nn.init.normal_(bn.bias, std=0.3)
    return bn


@style()
class ResNetTail(nn.Module):
    """conv, batch norm, ECA, in-place shortcut, in-place ReLU: timm's Bottleneck."""

    def __init__(self, affine: bool = True, attention: nn.Module | None = None) -> None:
        super().__init__()
        self.conv, self.bn = conv1x1(), trained_batch_norm(affine)
        self.se = attention or EcaModule(CHANNELS)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x
        x = self.se(self.bn(self.conv(x)))
        x += shortcut
        return self.act(x)


STYLES["ResNetTail-no-affine"] = Style(lambda: ResNetTail(affine=False))
STYLES["ResNetTail-circular"] = Style(lambda: ResNetTail(attention=CecaModule(CHANNELS)))
STYLES["ResNetTail-twice"] = Style(lambda: nn.Sequential(ResNetTail(), ResNetTail()), sites=2)


@style()
class NFNetTail(nn.Module):
    """conv with bias, ECA, two gains, shortcut, SiLU; the sum before SiLU is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.eca, self.project = conv1x1(bias=True), EcaModule(CHANNELS), conv1x1(bias=True)

    def forward(self, x: Tensor) -> Tensor:
        out = 2.0 * self.eca(self.conv(x))
        out = out * 0.2 + x
        return out + self.project(F.silu(out))


@style()
class ByobNetMiddle(nn.Module):
    """conv, batch norm, SiLU, ECA, 1x1 conv: attention in the middle of timm's ByobNet block."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.act = conv1x1(), trained_batch_norm(), nn.SiLU(inplace=True)
        self.attn, self.project = EcaModule(CHANNELS), conv1x1()

    def forward(self, x: Tensor) -> Tensor:
        return self.project(self.attn(self.act(self.bn(self.conv(x)))))


@style()
class VoVNetTail(nn.Module):
    """conv, batch norm, ReLU, ECA, shortcut, max pool."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.act = conv1x1(), trained_batch_norm(), nn.ReLU(inplace=True)
        self.attn, self.pool = EcaModule(CHANNELS), nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(self.attn(self.act(self.bn(self.conv(x)))) + x)


@style()
class MobileNetTail(nn.Module):
    """Depthwise conv, batch norm, hard-sigmoid ECA, Hardswish."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, groups=CHANNELS, bias=False)
        self.bn, self.act = trained_batch_norm(), nn.Hardswish()
        self.attn = EcaModule(CHANNELS, gate_layer="hard_sigmoid")

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.attn(self.bn(self.conv(x))))


@style()
class OwnResidual(nn.Module):
    """The shortcut is the rescaled map itself."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.eca = conv1x1(), EcaModule(CHANNELS)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return F.gelu(x + self.eca(x))


@style()
class BatchNormUsedTwice(nn.Module):
    """The batch norm's output is rescaled and is the shortcut as well."""

    def __init__(self) -> None:
        super().__init__()
        self.bn, self.eca = trained_batch_norm(), EcaModule(CHANNELS)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(x)
        return F.relu6(self.eca(x) + x)


@style()
class BroadcastShortcut(nn.Module):
    """The shortcut is one value per channel, not a map."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.eca, self.offset = (
            conv1x1(),
            EcaModule(CHANNELS),
            nn.Parameter(torch.randn(1, CHANNELS, 1, 1)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.eca(self.conv(x)) + self.offset)


@style()
class BroadcastingShortcut(nn.Module):
    """The shortcut has more images than the rescaled map, so that the sum is larger than the map."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.eca = conv1x1(), EcaModule(CHANNELS)

    def forward(self, x: Tensor) -> Tensor:
        return self.eca(self.conv(x[:1])) + x


@style()
class ReturnsRescaledMap(nn.Module):
    """The rescaled map is returned beside the sum, so the sum cannot swallow it."""

    def __init__(self) -> None:
        super().__init__()
        self.bn, self.eca = trained_batch_norm(), EcaModule(CHANNELS)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        rescaled = self.eca(self.bn(x))
        return F.relu(rescaled + x), rescaled


@style(sites=2)
class SharedModule(nn.Module):
    """One module, called on two maps."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.eca = conv1x1(), conv1x1(), EcaModule(CHANNELS)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.eca(self.first(x))) + self.eca(x)


@style(sites=2)
class TwoOfOneMap(nn.Module):
    """Two blocks rescale the same map."""

    def __init__(self) -> None:
        super().__init__()
        self.bn, self.first, self.second = trained_batch_norm(), EcaModule(CHANNELS), EcaModule(CHANNELS)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(x)
        return self.first(x) + self.second(x)


@style()
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


@style()
class Checkpointed(FrozenBatchNorm):
    """The block is recomputed in the backward pass, so Dynamo puts it into a sub-graph.

    Batch norm is frozen because eager mode counts the recomputation as a second batch and Dynamo does not.
    """

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.tail, 2 * x, use_reentrant=False)


class Watched(nn.Module):
    """A block whose gate has other readers, by `watch`."""

    def __init__(self, watch: Callable[[Tensor, Tensor], object]) -> None:
        super().__init__()
        self.watch, self.conv = watch, nn.Conv1d(1, 1, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> object:
        x = 2 * x
        gate = self.conv(x.mean((2, 3)).unsqueeze(1)).sigmoid()
        return self.watch(x, gate.transpose(1, 2).unsqueeze(-1))


WATCHES: dict[str, Callable[[Tensor, Tensor], object]] = {
    "GateReturned": lambda x, g: (x * g, g),
    "GateReturnedFlat": lambda x, g: (g.flatten(1), x * g),
    "GateLogged": lambda x, g: (x * g, g.detach().mean(), g.std()),
    "GateUsedTwice": lambda x, g: x * g + g,
    "GateOfTwoMaps": lambda x, g: x.flip(0) * g + x * g,
    "GateDoubledBehind": lambda x, g: (x * g, g.flatten(1).clone().mul_(2)),
}
for name, watch in WATCHES.items():
    STYLES[name] = Style(lambda watch=watch: Watched(watch))


@style()
class GateKept(nn.Module):
    """The gate stays as an attribute, for a plot."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 1, 3, padding=1, bias=False)
        self.last: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        x = 2 * x
        self.last = self.conv(x.mean((2, 3)).unsqueeze(1)).sigmoid()
        return x * self.last.transpose(1, 2).unsqueeze(-1)


@style()
class SpectralNorm(nn.Module):
    """The weight is computed in each call, its largest singular value without gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.bn = trained_batch_norm()
        self.conv = nn.utils.parametrizations.spectral_norm(nn.Conv1d(1, 1, 3, padding=1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(2 * x)
        return F.relu(x * self.conv(x.mean((2, 3)).unsqueeze(1)).sigmoid().transpose(1, 2).unsqueeze(-1))


@style()
class WeightNorm(SpectralNorm):
    """The weight is computed from its direction and its length."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.utils.parametrizations.weight_norm(nn.Conv1d(1, 1, 3, padding=1, bias=False))


class Dropped(nn.Module):
    """A block with dropout, which is the identity in eval mode, on the pooled vector and the gate."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 1, 3, padding=1, bias=False)
        self.before, self.behind, self.at_last = nn.Dropout(0.2), nn.Dropout1d(0.1), nn.AlphaDropout(0.3)

    def forward(self, x: Tensor) -> Tensor:
        x = 2 * x
        gate = self.behind(self.conv(self.before(x.mean((2, 3)).unsqueeze(1)))).sigmoid()
        return x * self.at_last(gate).transpose(1, 2).unsqueeze(-1)
