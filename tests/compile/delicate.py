"""Code that may be lowered or left alone, but whose results must be eager's either way."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from near_misses import gate, pooled, spread
from spellings import Block, Spelling, conv1d
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

DELICATE: dict[str, Spelling] = {}


def delicate(dims: int = 2) -> Callable:
    """Register the decorated function under its own name, with dashes."""

    def register(rescale: Callable[[nn.Module, Tensor], Tensor]) -> Callable[[nn.Module, Tensor], Tensor]:
        DELICATE[rescale.__name__.replace("_", "-")] = Spelling(lambda: Block(rescale, conv1d()), dims)
        return rescale

    return register


@delicate()
def product_in_place_and_an_older_view(conv: nn.Module, x: Tensor) -> Tensor:
    rows = x.flatten(2)
    x.mul_(gate(conv, x))
    return rows + 1


@delicate()
def product_in_place_and_the_map_itself(conv: nn.Module, x: Tensor) -> Tensor:
    y = x.mul_(gate(conv, x))
    return x + y


@delicate()
def product_in_place_of_a_view(conv: nn.Module, x: Tensor) -> Tensor:
    half = x[:, 2:6]
    half *= gate(conv, half)
    return x


@delicate()
def product_changed_in_place(conv: nn.Module, x: Tensor) -> Tensor:
    y = x * gate(conv, x)
    y += x
    return F.relu(y, inplace=True)


@delicate()
def activation_in_place_whose_input_is_used_again(conv: nn.Module, x: Tensor) -> Tensor:
    before = x + 1
    after = F.relu(before, inplace=True)
    return after * gate(conv, after) + before


@delicate()
def activation_input_changed_before_the_gate(conv: nn.Module, x: Tensor) -> Tensor:
    before = x + 1
    after = F.relu(before)
    before.mul_(0)
    return after * gate(conv, after)


@delicate()
def pool_in_bfloat16(conv: nn.Module, x: Tensor) -> Tensor:
    low = torch.bfloat16 if x.dtype == torch.float32 else x.dtype
    return x * spread(conv(x.to(low).mean((2, 3)).type_as(x).unsqueeze(1)).sigmoid())


@delicate()
def autocast_switched_off_inside(conv: nn.Module, x: Tensor) -> Tensor:
    with torch.autocast("cpu", enabled=False):
        g = gate(conv, x.type_as(conv.weight))
    return x * g


@delicate()
def autocast_switched_on_inside(conv: nn.Module, x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return x * gate(conv, x)


@delicate()
def rescaled_twice(conv: nn.Module, x: Tensor) -> Tensor:
    y = x * gate(conv, x)
    return y * gate(conv, y)


@delicate(dims=1)
def channels_last_sequence(conv: nn.Module, x: Tensor) -> Tensor:
    """Maps are [N, L, C] here: [3, 8, 5], channels along the last dim."""
    return x * conv(x.mean(1, keepdim=True)).sigmoid()


@delicate()
def channels_last_map(conv: nn.Module, x: Tensor) -> Tensor:
    """Maps are [N, H, W, C] here."""
    return x * conv(x.mean((1, 2)).unsqueeze(1)).sigmoid().unsqueeze(1)


@delicate()
def output_written_through_a_slice(conv: nn.Module, x: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    out[:, :, 1:] = (x * gate(conv, x))[:, :, 1:]
    return out


EXPRESSIONS: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "pool-in-float64":
        lambda conv, x: x * spread(conv(x.mean((2, 3), dtype=torch.float64).type_as(x)[:, None]).sigmoid()),
    "conv-weight-changed-by-a-function":
        lambda conv, x: x * spread(F.conv1d(pooled(x), conv.weight.softmax(-1), padding=1).sigmoid()),
    "conv-weight-from-the-map":
        lambda conv, x: x * spread(F.conv1d(pooled(x), conv.weight * x.mean(), padding=1).sigmoid()),
    "einsum": lambda conv, x: torch.einsum("nchw,nc->nchw", x, conv(pooled(x)).sigmoid().squeeze(1)),
    "gate-repeated": lambda conv, x: x * gate(conv, x).repeat(1, 1, x.size(2), x.size(3)),
    "rescaled-map-plus-map": lambda conv, x: torch.addcmul(x, x, gate(conv, x)),
    "dropout-that-drops-nothing": lambda conv, x: x * F.dropout(gate(conv, x), 0.5, training=False),
    "gate-checkpointed":
        lambda conv, x: x * checkpoint(lambda x: gate(conv, x), x, use_reentrant=False),
}  # fmt: skip
DELICATE |= {
    name: Spelling(lambda rescale=rescale: Block(rescale, conv1d())) for name, rescale in EXPRESSIONS.items()
}
