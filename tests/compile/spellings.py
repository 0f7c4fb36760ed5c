"""Ways to write Efficient Channel Attention that must all be found.

Every entry maps x [N, C, *spatial] to x * gate(conv(mean(x))) with one shared weight; the spelling differs.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from timm.layers import CecaModule, EcaModule
from torch import Tensor, nn


@dataclass(frozen=True)
class Spelling:
    """A way to write the block; `build()` makes a module with random weights, for `dims` spatial dims."""

    build: Callable[[], nn.Module]
    dims: int = 2
    k: int = 3
    gate: str = "sigmoid"
    circular: bool = False
    has_bias: bool = False

    def example(self, batch: int = 3) -> Tensor:
        """A map whose sizes all differ; [3, 8, 6, 5] in two dimensions."""
        return torch.randn(batch, 8, *(7, 6, 5)[-self.dims :])


class Block(nn.Module):
    """A convolution, and the function that spells ECA with it."""

    def __init__(self, rescale: Callable[..., Any], conv: nn.Module) -> None:
        super().__init__()
        self.rescale, self.conv = rescale, conv

    def forward(self, x: Tensor, *others: Any) -> Any:
        return self.rescale(self.conv, x, *others)


def conv1d(k: int = 3, bias: bool = False, **options: object) -> nn.Conv1d:
    return nn.Conv1d(1, 1, k, **{"padding": k // 2, "bias": bias, **options})


def usual(
    conv: nn.Module,
    x: Tensor,
    pool: Callable[[Tensor], Tensor] = lambda x: x.mean((2, 3)),
    gate: Callable[[Tensor], Tensor] = torch.sigmoid,
    product: Callable[[Tensor, Tensor], Tensor] = lambda x, g: x * g,
) -> Tensor:
    """The block in its simplest form, of which a spelling replaces one step. gate takes z [N, 1, C]."""
    b, c = x.shape[:2]
    g = gate(conv(pool(x).reshape(b, 1, c)))
    return product(x, g.reshape(b, c, *[1] * (x.dim() - 2)))


SPELLINGS: dict[str, Spelling] = {}


def spelling(conv: Callable[[], nn.Module] = conv1d, **facts: object) -> Callable:
    """Register the decorated function under its own name, with dashes."""

    def register(rescale: Callable[[nn.Module, Tensor], Tensor]) -> Callable[[nn.Module, Tensor], Tensor]:
        SPELLINGS[rescale.__name__.replace("_", "-")] = Spelling(lambda: Block(rescale, conv()), **facts)
        return rescale

    return register


def replacing(conv: Callable[[], nn.Module] = conv1d, **steps: Callable) -> Callable[[], nn.Module]:
    """Make the factory of a block whose `steps` (pool, gate, product) differ from the usual ones."""
    return lambda: Block(partial(usual, **steps), conv())


# Published code


def official(conv: nn.Module, x: Tensor) -> Tensor:
    """eca_layer of the paper's repository."""
    y = F.adaptive_avg_pool2d(x, 1)
    y = conv(y.squeeze(-1).transpose(-1, -2)).transpose(-1, -2).unsqueeze(-1)
    y = F.sigmoid(y)
    return x * y.expand_as(x)


SPELLINGS |= {
    "official": Spelling(lambda: Block(official, conv1d())),
    "official-k1": Spelling(lambda: Block(official, conv1d(1)), k=1),
    "official-k7": Spelling(lambda: Block(official, conv1d(7)), k=7),
    "timm": Spelling(partial(EcaModule, kernel_size=5), k=5),
    "timm-hard-sigmoid": Spelling(partial(EcaModule, gate_layer="hard_sigmoid"), gate="hard_sigmoid"),
    "timm-circular": Spelling(partial(CecaModule, kernel_size=5), k=5, circular=True),
    "timm-circular-bias": Spelling(partial(CecaModule, act_layer=nn.ReLU), circular=True, has_bias=True),
}


@spelling()
def hand_written(conv: nn.Module, x: Tensor) -> Tensor:
    b, c, _, _ = x.size()
    y = F.adaptive_avg_pool2d(x, 1).view(b, 1, c)
    y = torch.sigmoid(conv(y).view(b, c, 1, 1))
    return x * y.expand_as(x)


@spelling(partial(conv1d, bias=True), has_bias=True)
def permute_with_bias(conv: nn.Module, x: Tensor) -> Tensor:
    y = F.adaptive_avg_pool2d(x, 1).squeeze(-1).permute(0, 2, 1)
    y = torch.sigmoid(conv(y)).permute(0, 2, 1).unsqueeze(-1)
    return x * y.expand_as(x)


# Views between the steps


@spelling()
def index_with_none(conv: nn.Module, x: Tensor) -> Tensor:
    return x * conv(x.mean((2, 3))[:, None])[:, 0].sigmoid()[:, :, None, None]


@spelling()
def index_with_ellipsis(conv: nn.Module, x: Tensor) -> Tensor:
    y = F.adaptive_avg_pool2d(x, (1, 1))[..., 0, 0].unsqueeze(1)
    return x * conv(y).sigmoid().squeeze(1)[..., None, None]


@spelling()
def flatten_unflatten(conv: nn.Module, x: Tensor) -> Tensor:
    z = conv(F.adaptive_avg_pool2d(x, 1).flatten(1).unsqueeze(1))
    return x * z.flatten(1).unflatten(1, (-1, 1, 1)).sigmoid()


@spelling()
def einops_both_ways(conv: nn.Module, x: Tensor) -> Tensor:
    y = reduce(x, "n c h w -> n 1 c", "mean")
    return x * rearrange(torch.sigmoid(conv(y)), "n 1 c -> n c 1 1")


@spelling()
def squeeze_twice_and_swapaxes(conv: nn.Module, x: Tensor) -> Tensor:
    y = x.mean(dim=[2, 3], keepdim=True).squeeze(-1).squeeze(-1).unsqueeze(-1).swapaxes(1, 2)
    return x * conv(y).mT.unsqueeze(-1).sigmoid()


@spelling()
def movedim_and_contiguous(conv: nn.Module, x: Tensor) -> Tensor:
    y = x.mean((2, 3), keepdim=True).squeeze(3).movedim(1, 2).contiguous()
    return x * conv(y).movedim(2, 1).contiguous().unsqueeze(3).sigmoid()


@spelling()
def view_as_pooled(conv: nn.Module, x: Tensor) -> Tensor:
    y = F.adaptive_avg_pool2d(x, 1)
    return x * conv(y.view(y.size(0), 1, -1)).sigmoid().view_as(y)


@spelling()
def sigmoid_after_expand(conv: nn.Module, x: Tensor) -> Tensor:
    z = conv(x.mean((2, 3)).view(x.size(0), 1, -1))
    return x * z.view(x.size(0), -1, 1, 1).expand_as(x).sigmoid()


# Convolutions


@spelling(lambda: nn.Conv2d(1, 1, (1, 3), padding=(0, 1), bias=False))
def conv2d_along_the_row(conv: nn.Module, x: Tensor) -> Tensor:
    z = conv(F.adaptive_avg_pool2d(x, 1).view(x.size(0), 1, 1, -1))
    return x * z.sigmoid().view(x.size(0), -1, 1, 1)


@spelling(lambda: nn.Conv2d(1, 1, (5, 1), padding=(2, 0)), k=5, has_bias=True)
def conv2d_along_the_column(conv: nn.Module, x: Tensor) -> Tensor:
    z = conv(F.adaptive_avg_pool2d(x, 1).transpose(1, 2))
    return x * z.sigmoid().transpose(1, 2)


@spelling(lambda: nn.Conv2d(1, 1, (3, 1), padding="same", bias=False))
def conv2d_padding_same(conv: nn.Module, x: Tensor) -> Tensor:
    return x * conv(x.mean((2, 3), keepdim=True).permute(0, 2, 1, 3)).permute(0, 2, 1, 3).sigmoid()


@spelling()
def map_changed_in_place_before(conv: nn.Module, x: Tensor) -> Tensor:
    x += 1
    return usual(conv, F.hardtanh(x, inplace=True))


@spelling()
def functional_conv(conv: nn.Module, x: Tensor) -> Tensor:
    y = F.conv1d(x.mean((2, 3)).unsqueeze(1), conv.weight, padding=1)
    return x * y.sigmoid().view(x.size(0), x.size(1), 1, 1)


SPELLINGS |= {
    "padding-same": Spelling(replacing(partial(conv1d, 5, padding="same")), k=5),
    "padding-mode-circular": Spelling(replacing(partial(conv1d, padding_mode="circular")), circular=True),
    "more-taps-than-channels": Spelling(replacing(partial(conv1d, 9)), k=9),
    "one-tap-with-bias": Spelling(replacing(partial(conv1d, 1, bias=True)), k=1, has_bias=True),
}

# One step of the usual form spelled differently

POOLS: dict[str, Callable[[Tensor], Tensor]] = {
    "mean-of-negative-dims": lambda x: torch.mean(x, dim=(-2, -1)),
    "mean-in-two-stages": lambda x: x.mean(3).mean(2),
    "mean-in-two-stages-keeping-dims": lambda x: x.mean(2, keepdim=True).mean(3, keepdim=True),
    "mean-of-flattened-map": lambda x: x.flatten(2).mean(-1),
    "mean-of-reshaped-map": lambda x: x.reshape(x.size(0), x.size(1), -1).mean(dim=2),
    "avg-pool-over-the-full-map": lambda x: F.avg_pool2d(x, x.shape[2:]),
    "avg-pool-with-full-stride": lambda x: F.avg_pool2d(x, x.shape[2:], stride=x.shape[2:]),
    "sum-over-area": lambda x: x.sum((2, 3)) / (x.size(2) * x.size(3)),
    "sum-times-reciprocal-of-area": lambda x: x.sum((2, 3), keepdim=True) * (1 / (x.size(2) * x.size(3))),
    "sum-over-each-size": lambda x: x.sum(3).div(x.size(3)).sum(2).div(x.size(2)),
}
SPELLINGS |= {name: Spelling(replacing(pool=pool)) for name, pool in POOLS.items()}

HARD_SIGMOIDS: dict[str, Callable[[Tensor], Tensor]] = {
    "hardsigmoid": F.hardsigmoid,
    "hardsigmoid-in-place": lambda z: F.hardsigmoid(z, inplace=True),
    "relu6-over-six": lambda z: F.relu6(z + 3) / 6,
    "relu6-in-place-over-six": lambda z: F.relu6(z + 3.0, inplace=True) / 6.0,
    "clamp-over-six": lambda z: (z + 3).clamp(0, 6).div(6),
}
SPELLINGS |= {
    name: Spelling(replacing(gate=gate), gate="hard_sigmoid") for name, gate in HARD_SIGMOIDS.items()
}

SIGMOIDS: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid-in-place": lambda z: z.sigmoid_(),
    "sigmoid-special": torch.special.expit,
    "sigmoid-functional": F.sigmoid,
}
SPELLINGS |= {name: Spelling(replacing(gate=gate)) for name, gate in SIGMOIDS.items()}


def multiply_in_place(x: Tensor, g: Tensor) -> Tensor:
    x *= g
    return x


PRODUCTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "gate-times-map": lambda x, g: g * x,
    "gate-expanded-times-map": lambda x, g: torch.mul(g.expand_as(x), x),
    "mul-method": lambda x, g: x.mul(g),
    "multiply": torch.multiply,
    "mul-in-place": lambda x, g: x.mul_(g),
    "imul": multiply_in_place,
    "expand-with-sizes": lambda x, g: x * g.expand(x.size(0), x.size(1), x.size(2), x.size(3)),
    "expand-with-minus-one": lambda x, g: x * g.expand(-1, -1, x.size(2), x.size(3)),
    "broadcast-to": lambda x, g: x * g.broadcast_to(x.shape),
}
SPELLINGS |= {name: Spelling(replacing(product=product)) for name, product in PRODUCTS.items()}

# One and three spatial dims


@spelling(dims=1)
def sequence(conv: nn.Module, x: Tensor) -> Tensor:
    return x * torch.sigmoid(conv(x.mean(-1).unsqueeze(1))).transpose(1, 2)


@spelling(dims=1)
def sequence_pooled(conv: nn.Module, x: Tensor) -> Tensor:
    y = F.adaptive_avg_pool1d(x, 1)
    return x * torch.sigmoid(conv(y.transpose(-1, -2)).transpose(-1, -2)).expand_as(x)


@spelling(dims=3)
def volume(conv: nn.Module, x: Tensor) -> Tensor:
    y = F.adaptive_avg_pool3d(x, 1).squeeze(-1).squeeze(-1)
    y = conv(y.transpose(-1, -2)).transpose(-1, -2).unsqueeze(-1).unsqueeze(-1)
    return x * torch.sigmoid(y).expand_as(x)


SPELLINGS |= {
    "volume-mean": Spelling(replacing(pool=lambda x: x.mean((2, 3, 4))), dims=3),
    "volume-avg-pool": Spelling(replacing(pool=lambda x: F.avg_pool3d(x, x.shape[2:])), dims=3),
}
