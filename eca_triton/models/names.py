"""Networks by the names that people give them: `eca_resnet50`, `cbam_mobilenet_v2`, `resnet18`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from ..util.near_names import near_names
from .attention import ATTENTION
from .mobilenetv2 import mobilenet_v2
from .resnet import OFFICIAL_K_SIZES, resnet

NETWORKS: dict[str, Callable[..., nn.Module]] = {
    **{name: partial(resnet, name) for name in OFFICIAL_K_SIZES},
    "mobilenet_v2": mobilenet_v2,
}


def names() -> list[str]:
    """All that `create` takes: each network by itself, and behind the name of each attention."""
    return [*NETWORKS, *(f"{attention}_{network}" for attention in ATTENTION for network in NETWORKS)]


def create(name: str, **arguments: Any) -> nn.Module:
    """The network of that name.

    Args:
        name: one of `names()`.
        arguments: of `resnet` or `mobilenet_v2`.

    Raises:
        ValueError: there is no such network, or an argument is wrong.

    Examples:
        >>> model = create("se_resnet50", num_classes=10)
    """
    if name not in names():
        raise ValueError(f"no network {name!r}{near_names(name, names())}")
    network = next(each for each in NETWORKS if name.endswith(each))
    attention = name.removesuffix(network).rstrip("_") or None
    return NETWORKS[network](attention=attention, **arguments)
