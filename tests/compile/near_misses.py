"""Code that resembles Efficient Channel Attention and must be left alone, each with the reason.

The map is [8, 8, 8, 8], square and as wide as it has channels and images, where that lets a wrong axis run.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from spellings import Block, conv1d
from timm.layers import EcaModule
from torch import Tensor, nn


@dataclass(frozen=True)
class NearMiss:
    """`build()` makes a module with random weights for maps of the given shape and dtype.

    `only` names the one mode, "eval" or "train", in which the code runs or differs from ECA.
    """

    build: Callable[[], nn.Module]
    reason: str
    shape: tuple[int, ...] = (3, 8, 6, 5)
    dtype: torch.dtype = torch.float32
    only: str | None = None

    def example(self) -> Tensor:
        if self.dtype == torch.int64:
            return torch.randint(-5, 6, self.shape)
        return torch.randn(self.shape, dtype=self.dtype)


SQUARE = (8, 8, 8, 8)
NEAR_MISSES: dict[str, NearMiss] = {}
Rescale = Callable[[nn.Module, Tensor], object]


def near(reason: str, rescale: Rescale, conv: Callable[[], nn.Module] = conv1d, **facts: object) -> NearMiss:
    """The module that a function makes of a convolution."""
    return NearMiss(lambda: Block(rescale, conv()), reason, **facts)


def near_miss(reason: str, **facts: object) -> Callable[[Rescale], Rescale]:
    """Register the decorated function under its own name, with dashes."""

    def register(rescale: Rescale) -> Rescale:
        NEAR_MISSES[rescale.__name__.replace("_", "-")] = near(reason, rescale, **facts)
        return rescale

    return register


def pooled(x: Tensor) -> Tensor:
    """[N, 1, C], the mean of every channel."""
    return x.mean((2, 3)).unsqueeze(1)


def spread(g: Tensor) -> Tensor:
    """[N, 1, C] to [N, C, 1, 1]."""
    return g.transpose(1, 2).unsqueeze(-1)


def gate(conv: nn.Module, x: Tensor) -> Tensor:
    """The usual gate [N, C, 1, 1]."""
    return spread(conv(pooled(x)).sigmoid())


# A dtype is coarser, or finer, than that of our ops.
DTYPES: dict[str, tuple[str, Callable[[nn.Module, Tensor], Tensor]]] = {
    "gate-in-float8": ("ECA104",
        lambda conv, x: x * spread(conv(pooled(x)).sigmoid().to(torch.float8_e4m3fn).type_as(x))),
    "gate-in-float64": ("ECA104", lambda conv, x: x * spread(conv(pooled(x)).double().sigmoid().type_as(x))),
    "pool-in-float8": ("ECA108", lambda conv, x: x * gate(conv, x.to(torch.float8_e5m2).type_as(x))),
    "pool-in-float64": ("ECA108", lambda conv, x: x * spread(conv(pooled(x.double()).type_as(x)).sigmoid())),
    "pooled-in-float8": ("ECA108",
        lambda conv, x: x * spread(conv(pooled(x).to(torch.float8_e5m2).type_as(x)).sigmoid())),
}  # fmt: skip
# The convolution is another one.
CONVOLUTIONS: dict[str, tuple[str, Callable[[], nn.Module]]] = {
    "even-taps": ("the taps have no centre", partial(conv1d, 4, padding="same")),
    "two-taps": ("the taps have no centre", partial(conv1d, 2, padding="same")),
    "dilation": ("the taps are two channels apart", partial(conv1d, dilation=2, padding=2)),
    "dilation-same": ("the taps are two channels apart", partial(conv1d, dilation=2, padding="same")),
    "reflect-padding": ("the border is mirrored", partial(conv1d, padding_mode="reflect")),
    "replicate-padding": ("the border is repeated", partial(conv1d, padding_mode="replicate")),
    "transposed": ("the taps run backwards", lambda: nn.ConvTranspose1d(1, 1, 3, padding=1, bias=False)),
    "hidden-channels": ("two convolutions",
        lambda: nn.Sequential(nn.Conv1d(1, 4, 1), nn.Conv1d(4, 1, 3, padding=1))),
    "two-convolutions": ("two convolutions", lambda: nn.Sequential(conv1d(), conv1d())),
    "batch-norm-before-gate": ("z is normalised over the batch",
        lambda: nn.Sequential(conv1d(), nn.BatchNorm1d(1))),
    "relu-before-gate": ("z is clipped", lambda: nn.Sequential(conv1d(), nn.ReLU())),
    "dense": ("every channel sees every other, as in SE", lambda: nn.Linear(8, 8)),
    "banded-dense": ("one window per channel, not shared", lambda: nn.Conv1d(1, 8, 8)),
}  # fmt: skip
# The pooling is another one.
POOLS: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {
    "max-pool": ("maximum, not mean", lambda x: F.adaptive_max_pool2d(x, 1)),
    "amax": ("maximum, not mean", lambda x: x.amax((2, 3))),
    "nanmean": ("a NaN does not reach its gate", lambda x: x.nanmean((2, 3))),
    "standard-deviation": ("spread, not mean", lambda x: x.std((2, 3))),
    "sum": ("sum, not mean", lambda x: x.sum((2, 3))),
    "sum-over-wrong-area": ("the divisor is not H * W", lambda x: x.sum((2, 3)) / (x.size(2) * x.size(2))),
    "sum-over-degrees-of-freedom": ("divided by H * W - 1",
        lambda x: x.sum((2, 3)) / (x.size(2) * x.size(3) - 1)),
    "sum-divided-twice": ("divided by (H * W) ** 2", lambda x: x.mean((2, 3)) / (x.size(2) * x.size(3))),
    "mean-times-two": ("the mean is scaled", lambda x: 2 * x.mean((2, 3))),
    "mean-plus-one": ("the mean is shifted", lambda x: x.mean((2, 3)) + 1),
    "mean-over-the-batch": ("one gate for all images", lambda x: x.mean((0, 2, 3)).expand(x.size(0), -1)),
    "mean-of-squares": ("mean of another map", lambda x: (x**2).mean((2, 3))),
    "mean-of-absolute": ("mean of another map", lambda x: x.abs().mean((2, 3))),
    "mean-of-relu": ("mean of another map", lambda x: F.relu(x).mean((2, 3))),
    "mean-of-detached-map": ("no gradient flows through the gate into x", lambda x: x.detach().mean((2, 3))),
    "mean-of-other-image": ("the gate belongs to another image", lambda x: x.roll(1, 0).mean((2, 3))),
    "mean-of-reversed-channels": ("channels are reversed", lambda x: x.flip(1).mean((2, 3))),
    "mean-of-crop": ("a row is missing from the mean", lambda x: x[:, :, 1:].mean((2, 3))),
    "mean-of-every-second": ("columns are missing from the mean", lambda x: x[..., ::2].mean((2, 3))),
    "mean-of-center": ("a single position is no mean", lambda x: x[:, :, 2, 2]),
    "mean-of-other-corner": ("pooled to 2x2, of which one cell counts",
        lambda x: F.adaptive_avg_pool2d(x, 2)[..., 0, 0]),
    "small-window": ("the window does not cover the map", lambda x: F.avg_pool2d(x, 4)[..., 0, 0]),
    "padded-window": ("zeros around the map are counted", lambda x: F.avg_pool2d(x, (8, 7), padding=1)),
    "divisor-override": ("the divisor is not H * W", lambda x: F.avg_pool2d(x, (6, 5), divisor_override=29)),
    "detached-pool": ("no gradient flows through the gate into x", lambda x: x.mean((2, 3)).detach()),
    "pool-changed-in-place": ("the pooled vector is scaled in place", lambda x: x.mean((2, 3)).mul_(2)),
    "channels-flipped": ("channels are reversed", lambda x: x.mean((2, 3)).flip(1)),
    "channels-rolled": ("channels are shifted", lambda x: x.mean((2, 3)).roll(1, 1)),
    "channels-shuffled": ("channels are shuffled",
        lambda x: x.mean((2, 3)).view(-1, 2, 4).transpose(1, 2).reshape(-1, 8)),
    "images-reversed": ("the gate belongs to another image", lambda x: x.mean((2, 3)).flip(0)),
}  # fmt: skip
# The gate is another function.
GATES: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {
    "tanh": ("not a sigmoid", torch.tanh),
    "relu": ("not a sigmoid", F.relu),
    "exp": ("not a sigmoid", torch.exp),
    "identity": ("no gate function", lambda z: z),
    "softmax": ("channels compete", lambda z: z.softmax(-1)),
    "log-sigmoid": ("not a sigmoid", F.logsigmoid),
    "swish": ("z * sigmoid(z)", F.silu),
    "swish-by-hand": ("z * sigmoid(z)", lambda z: z * z.sigmoid()),
    "two-sigmoids": ("sigmoid of sigmoid", lambda z: z.sigmoid().sigmoid()),
    "twice-sigmoid": ("the gate is scaled", lambda z: 2 * z.sigmoid()),
    "one-plus-sigmoid": ("the gate is shifted", lambda z: 1 + z.sigmoid()),
    "one-minus-sigmoid": ("the gate is mirrored", lambda z: 1 - z.sigmoid()),
    "steeper-sigmoid": ("z is scaled", lambda z: (2 * z).sigmoid()),
    "shifted-sigmoid": ("z is shifted", lambda z: (z + 1).sigmoid()),
    "squared-sigmoid": ("the gate is squared", lambda z: z.sigmoid() ** 2),
    "rounded-sigmoid": ("the gate is a switch", lambda z: z.sigmoid().round()),
    "hard-sigmoid-other-offset": ("not relu6(z + 3) / 6", lambda z: F.relu6(z + 2) / 6),
    "hard-sigmoid-other-divisor": ("not relu6(z + 3) / 6", lambda z: F.relu6(z + 3) / 5),
    "hard-sigmoid-of-keras": ("clip(0.2 * z + 0.5), another slope", lambda z: (0.2 * z + 0.5).clamp(0, 1)),
    "hard-sigmoid-twice": ("hard-sigmoid of sigmoid", lambda z: F.hardsigmoid(z.sigmoid())),
    "clipped-sigmoid": ("probabilities are clipped, as detectors do",
        lambda z: z.sigmoid().clamp(1e-4, 1 - 1e-4)),
    "less-clipped-sigmoid": ("probabilities are clipped", lambda z: z.sigmoid().clamp(1e-6, 1 - 1e-6)),
    "slightly-clipped-sigmoid": ("the gate never gets to 0", lambda z: z.sigmoid().clamp(min=1e-30)),
    "clipped-above": ("the gate never gets to 1", lambda z: z.sigmoid().clamp(max=1 - 1e-12)),
    "clipped-logits": ("z is clipped", lambda z: z.clamp(-10, 10).sigmoid()),
    "clipped-logits-above": ("z is clipped", lambda z: z.clamp(max=9).sigmoid()),
    "clipped-logits-far-out": ("z is clipped", lambda z: z.clamp(min=-500).sigmoid()),
    "hardtanh-of-logits": ("z is clipped", lambda z: F.hardtanh(z, -12, 12).sigmoid()),
    "barely-shifted-sigmoid": ("z is shifted", lambda z: (z + 1e-12).sigmoid()),
    "barely-scaled-sigmoid": ("the gate is scaled", lambda z: z.sigmoid() * (1 - 1e-12)),
    "hard-sigmoid-clipped": ("the gate never gets to 0", lambda z: F.hardsigmoid(z).clamp(min=1e-9)),
    "hard-sigmoid-clipped-near-its-corner": ("z is clipped", lambda z: F.hardsigmoid(z.clamp(max=2.999))),
    "hard-sigmoid-clipped-below": ("z is clipped", lambda z: F.relu6(z.clamp(min=-2.9999) + 3) / 6),
    "truncated-gate": ("the gate is an integer", lambda z: (2 * z.sigmoid()).to(torch.int32)),
    "detached-gate": ("no gradient flows through the gate", lambda z: z.sigmoid().detach()),
    "dropout": ("gates are dropped", lambda z: F.dropout(z.sigmoid(), 0.5, training=True)),
    "dropout-before-gate": ("z is dropped", lambda z: F.dropout(z, 0.5, training=True).sigmoid()),
    "gate-changed-in-place": ("the gate is clipped in place", lambda z: z.sigmoid().clamp_(0.4, 0.6)),
    "gate-flipped": ("channels are reversed", lambda z: z.sigmoid().flip(-1)),
    "gate-of-other-image": ("the gate belongs to another image", lambda z: z.sigmoid().roll(1, 0)),
    "gate-of-first-image": ("one gate for all images", lambda z: z.sigmoid()[:1].expand_as(z)),
    "gate-shuffled": ("channels are shuffled",
        lambda z: z.sigmoid().view(-1, 2, 4).transpose(1, 2).reshape(z.shape)),
}  # fmt: skip
# The gate meets another map, or meets it in another way; maps that are written to are in test_mutation.
PRODUCTS: dict[str, tuple[str, Callable[[Tensor, Tensor], object]]] = {
    "other-map": ("another map is rescaled", lambda x, g: (x + 1) * g),
    "other-image": ("another image's map is rescaled", lambda x, g: x.roll(1, 0) * g),
    "transposed-map": ("the transposed map is rescaled", lambda x, g: x.transpose(2, 3) * g),
    "half-of-the-channels": ("some channels only are rescaled", lambda x, g: x[:, :4] * g[:, :4]),
    "one-channel-for-all": ("one channel is multiplied with all gates", lambda x, g: x[:, :1] * g),
    "gate-of-rows": ("the gate is spread along H", lambda x, g: x * g.view(g.size(0), 1, -1, 1)),
    "gate-of-columns": ("the gate is spread along W", lambda x, g: x * g.view(g.size(0), 1, 1, -1)),
    "gate-of-images": ("the gate is spread along N", lambda x, g: x * g.transpose(0, 1)),
    "division": ("the map is divided", lambda x, g: x / g),
    "addition": ("the gate is added", lambda x, g: x + g),
    "power": ("the map is raised to a power", lambda x, g: x.abs() ** g),
    "gate-changed-before": ("the gate is doubled before the product", lambda x, g: (g.mul_(2), x * g)),
    "gate-changed-through-a-view": ("as before", lambda x, g: (g.view(-1)[:4].zero_(), x * g)[1]),
}  # fmt: skip
for name, (reason, rescale) in DTYPES.items():
    NEAR_MISSES[name] = near(reason, rescale)
for name, (reason, conv) in CONVOLUTIONS.items():
    NEAR_MISSES[name] = near(
        reason, lambda conv, x: x * spread(conv(pooled(x)).sigmoid().reshape(x.size(0), 1, -1)), conv
    )
for name, (reason, pool) in POOLS.items():
    NEAR_MISSES[name] = near(
        reason, lambda conv, x, pool=pool: x * spread(conv(pool(x).reshape(x.size(0), 1, -1)).sigmoid())
    )
for name, (reason, function) in GATES.items():
    NEAR_MISSES[name] = near(reason, lambda conv, x, function=function: x * spread(function(conv(pooled(x)))))
for name, (reason, product) in PRODUCTS.items():
    shape = SQUARE if name.startswith(("gate-of", "transposed")) else (3, 8, 6, 5)
    NEAR_MISSES[name] = near(reason, lambda conv, x, product=product: product(x, gate(conv, x)), shape=shape)
# Several steps are others.
NEAR_MISSES |= {
    "timm-mlp": NearMiss(partial(EcaModule, channels=8, use_mlp=True), "two convolutions with an activation"),
    "stride": near("every second channel has a gate, shared by two",
        lambda conv, x: x * spread(conv(pooled(x)).sigmoid().repeat_interleave(2, dim=-1)),
        partial(conv1d, stride=2)),
    "groups": near("each half of the channels has its own taps",
        lambda conv, x: x * spread(conv(pooled(x).view(x.size(0), 2, -1)).sigmoid().view(x.size(0), 1, -1)),
        lambda: nn.Conv1d(2, 2, 3, padding=1, groups=2, bias=False)),
    "shifted-window": near("the window is not centred",
        lambda conv, x: x * spread(conv(pooled(x))[..., : x.size(1)].sigmoid()), partial(conv1d, padding=2)),
    "causal-padding": near("the window looks back only",
        lambda conv, x: x * spread(conv(F.pad(pooled(x), (2, 0))).sigmoid()), partial(conv1d, padding=0)),
    "causal-circular-padding": near("the window looks back only, around the end",
        lambda conv, x: x * spread(conv(F.pad(pooled(x), (2, 0), mode="circular")).sigmoid()),
        partial(conv1d, padding=0)),
    "padding-with-ones": near("the border is padded with ones",
        lambda conv, x: x * spread(conv(F.pad(pooled(x), (1, 1), value=1.0)).sigmoid()),
        partial(conv1d, padding=0)),
    "conv2d-across-the-channels": near("the taps lie along the axis of size one",
        lambda conv, x: x * conv(pooled(x).unsqueeze(-1)).sigmoid().transpose(1, 2),
        lambda: nn.Conv2d(1, 1, (1, 3), padding=(0, 1), bias=False)),
    "conv2d-with-three-rows": near("a 3x3 kernel, of which one row counts",
        lambda conv, x: x * conv(pooled(x).unsqueeze(-1)).sigmoid().transpose(1, 2),
        lambda: nn.Conv2d(1, 1, 3, padding=1, bias=False)),
    "convolution-across-images": near("the convolution runs from one image into the next",
        lambda conv, x: x * conv(x.mean((2, 3)).view(1, 1, -1)).sigmoid().view(x.size(0), -1, 1, 1)),
    "convolution-over-the-batch": near("the convolution runs over images, not channels",
        lambda conv, x: x * conv(x.mean((2, 3)).t().unsqueeze(1)).sigmoid().squeeze(1).t()[:, :, None, None],
        shape=SQUARE),
    "transposed-gate": near("gates of images and channels are swapped",
        lambda conv, x: x * conv(pooled(x)).sigmoid().squeeze(1).t()[:, :, None, None], shape=SQUARE),
    "average-and-maximum": near("average and maximum share the convolution, as in CBAM",
        lambda conv, x: x * spread((conv(pooled(x)) + conv(x.amax((2, 3)).unsqueeze(1))).sigmoid())),
    "mean-over-channels": near("mean over channels: rows are gated",
        lambda conv, x: x * conv(x.mean((1, 3)).unsqueeze(1)).sigmoid().view(x.size(0), 1, -1, 1),
        shape=SQUARE),
    "mean-over-channels-gates-channels": near("rows are pooled and channels gated",
        lambda conv, x: x * spread(conv(x.mean((1, 3)).unsqueeze(1)).sigmoid()), shape=SQUARE),
    "gate-only": near("the gate itself is the result", lambda conv, x: gate(conv, x)),
    "complex-map": near("the map is complex",
        lambda conv, x: x * gate(conv, x), partial(conv1d, dtype=torch.complex64), dtype=torch.complex64),
    "integer-map": near("the map is an integer map",
        lambda conv, x: x * spread(conv(x.mean((2, 3), dtype=torch.float32).unsqueeze(1)).sigmoid()),
        dtype=torch.int64),
}  # fmt: skip


@near_miss("mean over columns only: every row has its own gate")
def mean_over_one_dim(conv: nn.Module, x: Tensor) -> Tensor:
    n, c, h, _ = x.shape
    y = conv(x.mean(3).transpose(1, 2).reshape(n * h, 1, c)).sigmoid()
    return x * y.view(n, h, c).transpose(1, 2).unsqueeze(-1)


@near_miss("the mean is weighted by a mask")
def masked_mean(conv: nn.Module, x: Tensor) -> Tensor:
    mask = (x > 0).float()
    return x * spread(conv(((x * mask).sum((2, 3)) / mask.sum((2, 3))).unsqueeze(1)).sigmoid())


@near_miss("x is changed through a view between pool and product")
def map_changed_through_a_view(conv: nn.Module, x: Tensor) -> Tensor:
    rows = x.view(x.size(0), -1)
    g = gate(conv, x)
    rows.mul_(2)
    return x * g


@near_miss("one channel of x is overwritten between pool and product")
def channel_overwritten(conv: nn.Module, x: Tensor) -> Tensor:
    g = gate(conv, x)
    x[:, 0] = 0
    return x * g


@near_miss("the pooled vector is returned too")
def pool_returned(conv: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    y = pooled(x)
    return x * spread(conv(y).sigmoid()), y


@near_miss("the pooled vector is added to z")
def pool_added(conv: nn.Module, x: Tensor) -> Tensor:
    y = pooled(x)
    return x * spread((conv(y) + y).sigmoid())


@near_miss("z is returned too")
def logits_returned(conv: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    z = conv(pooled(x))
    return x * spread(z.sigmoid()), z


@near_miss("no gradient flows through the gate", only="train")
def gate_without_grad(conv: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        g = gate(conv, x)
    return x * g
