"""Checkpoints as the official training script saves them, made on the spot."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

TAPS = (3, 5, 7, 7)


def trained(model: nn.Module) -> nn.Module:
    """With statistics in its batch norms that are not the initial ones, in evaluation mode."""
    for name, buffer in model.named_buffers():
        if buffer.is_floating_point():
            nn.init.uniform_(buffer, 0.5, 1.5)
        else:
            buffer.fill_(len(name))
    return model.eval()


def official(model: nn.Module) -> dict[str, torch.Tensor]:
    """Under the names of the official code."""
    return {name.replace(".se.", ".eca."): value for name, value in model.state_dict().items()}


def image(seed: int = 0) -> torch.Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def assert_same(got: nn.Module, wanted: nn.Module) -> None:
    left, right = got.state_dict(), wanted.state_dict()
    assert list(left) == list(right)
    assert all(torch.equal(left[name], right[name]) for name in right)
    with torch.no_grad():
        assert torch.equal(got.eval()(image()), wanted(image()))


def training_dict(state: dict[str, Any], **more: Any) -> dict[str, Any]:
    """What the official main.py saves."""
    parameter = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([parameter], 0.1, momentum=0.9)
    parameter.sum().backward()
    optimizer.step()
    return {
        "epoch": 100,
        "arch": "eca_resnet18",
        "state_dict": {f"module.{name}": value for name, value in state.items()},
        "best_prec1": torch.tensor([77.5]),
        "optimizer": optimizer.state_dict(),
        **more,
    }
