"""Random weights of networks, such that whoever computes another network does not agree."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..shared.networks import attention


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
    """The model, in float32, with weights of its attention such that gates vary, by channel and by position.

    Random ones gate everything by about one half, and whoever computed another gate would agree.
    """
    hooks = [model.get_submodule(path).register_forward_pre_hook(_of_eca) for path in attention(model)]
    for module in model.modules():
        each: Any = module
        if type(module).__name__ in {"SE", "SEModule", "ChannelAttn"}:
            hooks.append(each.act.register_forward_pre_hook(partial(_open, each.fc1)))
            hooks.append(each.gate.register_forward_pre_hook(partial(_of_gate, each.fc2)))
        elif type(module).__name__ == "SpatialAttn":
            hooks.append(each.conv.bn.register_forward_pre_hook(_of_norm))
    with torch.no_grad():
        model.eval()(images.float())
    for hook in hooks:
        hook.remove()
    return model


def _of_eca(module: Any, inputs: tuple[Tensor, ...]) -> None:
    _scale(module.conv, module.conv(inputs[0].mean((2, 3)).unsqueeze(1)))


def _of_gate(last: nn.Module, gate: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
    """`last` is the layer whose results a gate is the sigmoid of."""
    return _scale(last, inputs[0])


def _scale(last: nn.Module, z: Tensor) -> Tensor:
    size = z.std().clamp_min(1e-6)
    for weight in last.parameters():
        weight /= size
    return z / size


def _open(layer: nn.Module, relu: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
    """Turn the sign of what ReLU would shut for most images: SE may have as few as four hidden numbers."""
    sign = inputs[0].mean((0, 2, 3)).sign()
    for weight in layer.parameters():
        weight *= sign.view(-1, *[1] * (weight.dim() - 1))
    return inputs[0] * sign[:, None, None]


def _of_norm(norm: Any, inputs: tuple[Tensor, ...]) -> None:
    """The statistics of what comes in: a maximum over channels is far from the random ones."""
    norm.running_mean.copy_(inputs[0].mean((0, 2, 3)))
    norm.running_var.copy_(inputs[0].var((0, 2, 3)))


@contextmanager
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield
