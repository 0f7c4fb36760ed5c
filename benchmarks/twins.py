"""ECA networks beside the same networks without attention, and with SE in its place."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .networks import attention, without_attention

KINDS = ("eca", "plain", "se")
MOBILENET = "eca_mobilenetv2_100"


class Family(NamedTuple):
    """Names of the three: timm's own, so that results can be joined with timm's, where timm has the network.

    Attributes:
        plain: Its tensors are those of the ECA network less the attention's.
        se: timm's counterpart; a name with a plus sign: the ECA network with timm's SE of the same width, and
            timm's reduction by 16, in place of each ECA module.
    """

    plain: str
    se: str


FAMILIES = {
    "ecaresnet50d": Family("resnet50d", "resnet50d+se"),
    "ecaresnet50t": Family("resnet50t", "seresnet50t"),
    "eca_nfnet_l0": Family("eca_nfnet_l0-eca", "nfnet_l0"),
    "eca_resnet33ts": Family("resnet33ts", "seresnet33ts"),
    "ecaresnet26t": Family("resnet26t", "resnet26t+se"),
    MOBILENET: Family("mobilenetv2_100", "mobilenetv2_100+se"),
}


def model_name(family: str, kind: str) -> str:
    """Of a network of a family, as the tables have it."""
    return family if kind == "eca" else getattr(FAMILIES[family], kind)


def build(family: str, kind: str) -> nn.Module:
    """A network of a family on the meta device, without weights."""
    import timm

    se = FAMILIES[family].se
    with torch.device("meta"):
        if kind == "se" and "+" not in se:
            own: nn.Module = timm.create_model(se)
            return own
        model = _eca_mobilenet() if family == MOBILENET else timm.create_model(family)
        if kind == "plain":
            return without_attention(model)
        return with_se(model, own_size(family)) if kind == "se" else model


def own_size(family: str) -> int:
    """Side of the images that timm trains the network with."""
    import timm

    config: Any = timm.get_pretrained_cfg(FAMILIES[family].plain if family == MOBILENET else family)
    return int(config.input_size[-1])


def with_se(model: nn.Module, size: int) -> nn.Module:
    """The model, changed: timm's SE module of the same width stands in place of each ECA module."""
    from timm.layers import SEModule  # type: ignore[attr-defined]

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
        model.set_submodule(path, SEModule(width))
    return model


def _eca_mobilenet() -> nn.Module:
    """ECA-MobileNetV2 as its authors place ECA: behind each block's last batch norm, before the addition.

    One tap below 96 channels, three from there on (https://github.com/BangguWu/ECANet).
    """
    import timm
    from timm.layers import EcaModule  # type: ignore[attr-defined]

    model: nn.Module = timm.create_model("mobilenetv2_100")
    last = {"DepthwiseSeparableConv": "bn2", "InvertedResidual": "bn3"}
    blocks = [
        (path, last[kind]) for path, each in model.named_modules() if (kind := type(each).__name__) in last
    ]
    for block, name in blocks:
        norm: Any = model.get_submodule(f"{block}.{name}")
        taps = 1 if norm.num_features < 96 else 3
        model.set_submodule(f"{block}.{name}", nn.Sequential(norm, EcaModule(kernel_size=taps)))
    return model


def fill(model: nn.Module, device: torch.device) -> nn.Module:
    """Random weights on a device, such that no branch is silent: timm starts residual branches at zero."""
    model = model.to_empty(device=device)
    with torch.no_grad(), _seeded():
        for module in model.modules():
            reset = getattr(module, "reset_parameters", None)
            if callable(reset):
                reset()
        for name, weight in model.named_parameters():
            if weight.dim() <= 1 and name.endswith("bias"):
                weight.normal_(0, 0.1)
            elif weight.dim() <= 1:
                weight.uniform_(0.5, 1.5)
        for name, statistic in model.named_buffers():
            if name.endswith("running_mean"):
                statistic.normal_(0, 0.1)
            elif name.endswith("running_var"):
                statistic.uniform_(0.5, 1.5)
    return model


def vary_gates(model: nn.Module, images: Tensor) -> nn.Module:
    """The model, in float32, with ECA weights scaled so that gates vary from channel to channel.

    Random ones gate everything by about one half, and whoever computed another gate would agree.
    """

    def scale(module: Any, inputs: tuple[Tensor, ...]) -> None:
        z = module.conv(inputs[0].mean((2, 3)).unsqueeze(1))
        module.conv.weight /= z.std().clamp_min(1e-6)

    hooks = [model.get_submodule(path).register_forward_pre_hook(scale) for path in attention(model)]
    with torch.no_grad():
        model.eval()(images.float())
    for hook in hooks:
        hook.remove()
    return model


@contextmanager
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield
