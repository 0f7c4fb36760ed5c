"""Random networks around Efficient Channel Attention, or nearly that, each from one number."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from torch import Tensor, nn
from writes import READS, WRITES

from eca_triton.compile import settings

SHAPE = 8, 6, 5  # of maps that something is done to between gate and product
Step = Callable[[Tensor], Tensor]
PLANS = tuple(plan for plan in settings.PLANS if plan != "off")

# [N, C, H, W] -> [N, 1, C]
POOLS: dict[str, Step] = {
    "mean": lambda x: x.mean((2, 3)).unsqueeze(1),
    "mean-view": lambda x: x.mean((2, 3)).view(x.shape[0], 1, -1),
    "adaptive": lambda x: F.adaptive_avg_pool2d(x, 1).squeeze(-1).transpose(-1, -2),
    "adaptive-pair": lambda x: F.adaptive_avg_pool2d(x, (1, 1)).flatten(1).unsqueeze(1),
    "window": lambda x: F.avg_pool2d(x, x.shape[2:]).flatten(1)[:, None],
    "rows-then-columns": lambda x: x.mean(3).mean(2)[:, None, :],
    "sum": lambda x: (x.sum((2, 3)) / (x.shape[2] * x.shape[3])).unsqueeze(1),
    "flat": lambda x: x.flatten(2).mean(-1, keepdim=True).permute(0, 2, 1),
    "einops": lambda x: reduce(x, "n c h w -> n 1 c", "mean"),
    # Nearly.
    "maximum": lambda x: x.amax((2, 3)).unsqueeze(1),
    "half": lambda x: x[:, :, 1:].mean((2, 3)).unsqueeze(1),
    "crop": lambda x: x[:, :, :256].mean((2, 3)).unsqueeze(1),
    "last-rows": lambda x: x[:, :, -5:].mean((2, 3)).unsqueeze(1),
    "area-by-pieces": lambda x: (
        x.sum((2, 3)) / (x.shape[2] * x.shape[3] * (1 + x.shape[2] // 256))
    ).unsqueeze(1),
    "area-at-least": lambda x: (x.sum((2, 3)) / (torch.sym_max(x.shape[2], 6) * x.shape[3])).unsqueeze(1),
    "rounded": lambda x: x.to(torch.float8_e5m2).to(x.dtype).mean((2, 3)).unsqueeze(1),
    "shuffled": lambda x: x.mean((2, 3)).flip(1).unsqueeze(1),
    "square-area": lambda x: (x.sum((2, 3)) / (x.shape[2] * x.shape[2])).unsqueeze(1),
}
GATES: dict[str, Step] = {
    "sigmoid": torch.sigmoid,
    "method": lambda z: z.sigmoid(),
    "functional": F.sigmoid,
    "hard": F.hardsigmoid,
    "hard-by-hand": lambda z: F.relu6(z + 3) / 6,
    "dropped": lambda z: F.dropout(z.sigmoid(), 0.3, training=False),
    # Nearly.
    "clipped": lambda z: z.sigmoid().clamp(0.45, 0.55),
    "clipped-logits": lambda z: z.clamp(-0.1, 0.1).sigmoid(),
    "tanh": torch.tanh,
    "scaled": lambda z: 2 * z.sigmoid(),
    "rounded": lambda z: z.sigmoid().to(torch.float8_e4m3fn).to(z.dtype),
}
# With a number that the program is given: where shapes are dynamic, a symbol.
LIMITED: dict[str, Callable[[Tensor, int], Tensor]] = {
    "limited": lambda z, limit: (4 * z).clamp(max=limit).sigmoid(),
    "limited-both": lambda z, limit: F.hardsigmoid((4 * z).clamp(-limit, limit)),
    "limited-by-size": lambda z, limit: z.clamp(max=z.shape[2] - limit).sigmoid(),
}
# [N, 1, C] -> [N, C, 1, 1]
SPREADS: dict[str, Step] = {
    "transposed": lambda g: g.transpose(1, 2).unsqueeze(-1),
    "viewed": lambda g: g.view(g.shape[0], -1, 1, 1),
    "indexed": lambda g: g[:, 0, :, None, None],
    "permuted": lambda g: g.permute(0, 2, 1)[..., None],
    "einops": lambda g: rearrange(g, "n 1 c -> n c 1 1"),
}
PRODUCTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "times": lambda x, g: x * g,
    "gate-first": lambda x, g: g * x,
    "torch": torch.mul,
    "expanded": lambda x, g: x * g.expand_as(x),
    # Nearly.
    "in-place": lambda x, g: x.clone().mul_(1).mul_(g),
    "of-a-copy": lambda x, g: x.contiguous() * g,
    "other-map": lambda x, g: x.flip(2) * g,
}


@dataclass(frozen=True)
class Case:
    """A network, how it is run, and what it is made of."""

    network: nn.Module
    x: Tensor
    limit: int
    training: bool
    dynamic: bool
    plan: str
    device: str | None
    parts: str


class Network(nn.Module):
    """What comes before the block, the block, and what comes behind, drawn by chance."""

    def __init__(self, draw: random.Random, plan: str) -> None:
        super().__init__()
        self.parts: list[str] = []
        self.between = self._one_of(
            draw, {"nothing": None, **READS, **WRITES} if draw.random() < 0.25 else {"nothing": None}
        )
        self.plain = self.between is None
        channels = draw.choice([4, 8, 12, 16]) if self.plain else SHAPE[0]
        self.channels, taps = channels, draw.choice([1, 3, 3, 5])
        self.before = self._before(draw, channels, plan)
        self.pool = self._one_of(draw, POOLS, 9)
        self.gate = self._one_of(draw, GATES, 6)
        self.limited = self._one_of(draw, LIMITED) if draw.random() < 0.05 else None
        self.spread, self.product = self._one_of(draw, SPREADS), self._one_of(draw, PRODUCTS, 4)
        self.conv = nn.Conv1d(
            1, 1, taps, padding=draw.choice([taps // 2, "same"]), bias=draw.random() < 0.2,
            padding_mode=draw.choice(["zeros", "zeros", "circular"]),
        )  # fmt: skip
        self.reads_gate = draw.random() < 0.15
        self.tail = [draw.choice(sorted(TAILS)) for _ in range(draw.randrange(4))]
        self.last = nn.Conv2d(channels, channels, 1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.parts += [f"{taps} taps, {self.conv.padding} {self.conv.padding_mode}", *self.tail]
        self.parts += ["gate returned"] * self.reads_gate
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.running_mean, std=0.3)
                nn.init.uniform_(module.weight, 0.5, 2)

    def _one_of(self, draw: random.Random, table: dict, right: int = 0) -> Callable | None:
        """A row of a table; one of the first `right`, which are ECA, in nine cases of ten."""
        names = list(table)
        name = draw.choice(names[:right] if right and draw.random() < 0.9 else names)
        self.parts.append(name)
        return table[name]

    def _before(self, draw: random.Random, channels: int, plan: str) -> nn.Module:
        """What makes the map: mostly something that the plan can start from."""
        kinds: dict[str, Callable[[], list[nn.Module]]] = {
            "scaled": lambda: [Scaled()],
            "1x1": lambda: [nn.Conv2d(channels, channels, 1, bias=draw.random() < 0.5)],
            "3x3": lambda: [nn.Conv2d(channels, channels, 3, padding=1, bias=draw.random() < 0.2)],
            "norm": lambda: [Scaled(), nn.BatchNorm2d(channels)],
            "1x1-norm": lambda: [nn.Conv2d(channels, channels, 1, bias=False), nn.BatchNorm2d(channels)],
            "3x3-norm": lambda: [
                nn.Conv2d(channels, channels, 3, padding=1, bias=False),
                nn.BatchNorm2d(channels),
            ],
            "norm-silu": lambda: [nn.Conv2d(channels, channels, 1), nn.BatchNorm2d(channels), nn.SiLU()],
            "norm-relu": lambda: [nn.BatchNorm2d(channels), nn.ReLU(inplace=True)],
        }
        wanted = {"convfold": "1x1", "convblock": "1x1", "gate": "3x3", "block": "3x3"}.get(plan, "")
        fitting = {name: kind for name, kind in kinds.items() if name.startswith(wanted)}
        return nn.Sequential(*self._one_of(draw, fitting if draw.random() < 0.9 else kinds)())

    def forward(self, x: Tensor, limit: int) -> tuple[Tensor, ...]:
        y = self.before(x)
        z = self.conv(self.pool(y))
        gate = self.spread(self.gate(z) if self.limited is None else self.limited(z, limit))
        if self.between is not None:
            self.between(y)
        out = self.product(y, gate)
        for name in self.tail:
            out = TAILS[name](self, out, x)
        return (out, gate) if self.reads_gate else (out,)


class Scaled(nn.Module):
    """A map that is no input of the network."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 1.5


TAILS: dict[str, Callable[[Network, Tensor, Tensor], Tensor]] = {
    "shortcut": lambda net, y, x: y + x,
    "shortcut-in-place": lambda net, y, x: y.add_(x) if not y.requires_grad else y + x,
    "into-the-shortcut": lambda net, y, x: (x * 0.5).add_(y),
    "gain": lambda net, y, x: 0.7 * y,
    "relu": lambda net, y, x: F.relu(y),
    "relu6": lambda net, y, x: F.relu6(y),
    "silu": lambda net, y, x: F.silu(y),
    "gelu": lambda net, y, x: F.gelu(y),
    "hardswish": lambda net, y, x: F.hardswish(y),
    "convolution": lambda net, y, x: net.last(y),
    "norm": lambda net, y, x: net.norm(y),
    "pooling": lambda net, y, x: F.max_pool2d(y, 3, 1, 1),
    "padding": lambda net, y, x: F.pad(y, (1, 1, 1, 1))[:, :, 1:-1, 1:-1],
    "concatenation": lambda net, y, x: torch.cat([y, y.flip(1)], 2)[:, :, : y.shape[2]],
    "group-norm": lambda net, y, x: F.group_norm(y, 2),
    "again": lambda net, y, x: y * net.conv(y.mean((2, 3)).unsqueeze(1)).sigmoid().transpose(1, 2)[..., None],
}


def case(seed: int) -> Case:
    """The network of a seed; maps are float64 where nothing hinders, so that a wrong result shows."""
    draw = random.Random(seed)
    torch.manual_seed(seed)
    plan = PLANS[seed % len(PLANS)]
    network = Network(draw, plan)
    size = (draw.randrange(3, 9), draw.randrange(3, 9)) if network.plain else SHAPE[1:]
    if network.plain and draw.random() < 0.1:
        size = draw.randrange(250, 600), 2
    x = torch.randn(draw.randrange(1, 4), network.channels, *size)
    if network.plain:
        network, x = network.double(), x.double()
    if draw.random() < 0.4:
        x = x.contiguous(memory_format=torch.channels_last)
    # The other plans are mostly those of inference.
    training = draw.random() < (0.5 if plan in ("auto", "pool") else 0.2)
    return Case(
        network=network.train(training),
        x=x,
        limit=draw.randrange(2, 5),
        training=training,
        dynamic=draw.random() < 0.3,
        plan=plan,
        device=draw.choice(["cuda", None]),
        parts=", ".join(network.parts),
    )


@contextmanager
def described(one: Case, seed: int) -> Iterator[None]:
    """Within it an error says which case it is of."""
    try:
        yield
    except Exception as error:
        mode = "training" if one.training else "eval"
        raise AssertionError(
            f"seed {seed}: {one.parts}; {mode}, dynamic={one.dynamic}, plan={one.plan}, device={one.device}"
        ) from error
