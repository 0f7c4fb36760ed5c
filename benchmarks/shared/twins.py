"""ECA networks beside the same networks without attention, and with SE or CBAM in its place."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .networks import PAPER, attention, network, of_paper, without_attention

KINDS = ("eca", "plain", "se", "cbam")


class Family(NamedTuple):
    """Names of the twins: timm's own, so that results can be joined with timm's, where timm has the network.

    Attributes:
        plain: Its tensors are those of the ECA network less the attention's.
        se: timm's counterpart; a name with a plus sign: the ECA network with timm's SE of the same width, and
            timm's reduction by 16, in place of each ECA module.
        cbam: The same of CBAM.
    """

    plain: str
    se: str
    cbam: str


FAMILIES = {
    "ecaresnet50d": Family("resnet50d", "resnet50d+se", "resnet50d+cbam"),
    "ecaresnet50t": Family("resnet50t", "seresnet50t", "resnet50t+cbam"),
    "eca_nfnet_l0": Family("eca_nfnet_l0-eca", "nfnet_l0", "eca_nfnet_l0-eca+cbam"),
    "eca_resnet33ts": Family("resnet33ts", "seresnet33ts", "resnet33ts+cbam"),
    "ecaresnet26t": Family("resnet26t", "resnet26t+se", "resnet26t+cbam"),
    **{
        name: Family(base, f"se_{base}", f"cbam_{base}")
        for name in PAPER
        for base in (name.removeprefix("eca_"),)
    },
}


def model_name(family: str, kind: str) -> str:
    """Name a network of a family as the tables do."""
    return family if kind == "eca" else getattr(FAMILIES[family], kind)


def build(family: str, kind: str, *, whole: bool = True) -> nn.Module:
    """A network of a family on the meta device, without weights.

    Any ECA network of `network` has itself and its plain twin, and may be cut as there; the other kinds are
    of `FAMILIES`.
    """
    model = network(family, whole=whole)
    if kind == "eca":
        return model
    if kind == "plain":
        return without_attention(model)
    import timm

    name = model_name(family, kind)
    with torch.device("meta"):
        if family in PAPER:
            return of_paper(name)
        own: nn.Module = with_other(model, own_size(family), kind) if "+" in name else timm.create_model(name)
        return own


def own_size(family: str) -> int:
    """Side of the images that a network is trained with."""
    import timm

    config: Any = None if family in PAPER else timm.get_pretrained_cfg(family)
    return PAPER[family] if config is None else int(config.input_size[-1])


def with_other(model: nn.Module, size: int, kind: str) -> nn.Module:
    """The model, changed: timm's SE or CBAM module of the same width stands in place of each ECA module."""
    from timm.layers import SEModule  # type: ignore[attr-defined]
    from timm.layers.cbam import CbamModule

    make: Callable[[int], nn.Module] = {"se": SEModule, "cbam": CbamModule}[kind]
    widths: dict[str, int] = {}

    def note(path: str, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        widths[path] = inputs[0].shape[1]

    paths = attention(model)
    hooks = [model.get_submodule(path).register_forward_pre_hook(partial(note, path)) for path in paths]
    with torch.no_grad():
        model.eval()(torch.empty(1, 3, size, size, device="meta"))
    for hook in hooks:
        hook.remove()
    for path, width in widths.items():
        model.set_submodule(path, make(width))
    return model
