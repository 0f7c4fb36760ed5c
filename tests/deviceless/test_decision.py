"""What surrounds a site decides its plan: predictions beside Inductor's own count, without a GPU.

A table of neighbourhoods. Lowered networks never move more than stock ones and never launch more; what the
plan predicts to save is what Inductor's count says, up to `MARGIN`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from deviceless_models import Eca
from torch import Tensor, nn

from eca_triton.deviceless import Comparison, compare

MARGIN = 0.05  # of S: gates, partial sums, weights


class Around(nn.Module):
    """Layers to build a neighbourhood from; `forward` calls it with them, their input and a map."""

    def __init__(self, forward: Callable[..., Any], channels: int = 256) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels // 4, channels, 1, bias=False)
        self.biased = nn.Conv2d(channels // 4, channels, 1)
        self.bn = nn.BatchNorm2d(channels)
        self.other = nn.BatchNorm2d(channels)
        self.eca = Eca()
        self.next = nn.Conv2d(channels, channels // 4, 1, bias=False)
        self.neighbourhood = forward

    def forward(self, u: Tensor, r: Tensor) -> Any:
        return self.neighbourhood(self, u, r)

    def y(self, u: Tensor) -> Tensor:
        return self.bn(self.conv(u))


def compared(forward: Callable[..., Any], *, images: int = 128, **arguments: Any) -> tuple[Comparison, int]:
    """Stock and lowered, at 256 x 28 x 28 in bf16; and S."""
    with torch.device("meta"):
        model = Around(forward)
        inputs = torch.empty(images, 64, 28, 28), torch.empty(images, 256, 28, 28)
    result = compare(model, inputs, dtype=torch.bfloat16, channels_last=True, **arguments)
    return result, inputs[1].numel() * 2


def saved(result: Comparison) -> int:
    """Bytes."""
    return result.stock.bytes_moved - result.lowered.bytes_moved


def both(y: Tensor, f: Callable[[Tensor], Any]) -> tuple[Any, Any]:
    """A map with a second reader."""
    return y, f(y)


INFERENCE: dict[str, tuple[Callable[..., Any], list[str]]] = {
    "residual and relu": (lambda m, u, r: m.next(torch.relu(m.eca(m.y(u)) + r)), ["convblock"]),
    "alone": (lambda m, u, r: m.eca(r), ["block"]),
    "silu before": (lambda m, u, r: m.next(m.eca(F.silu(m.y(u)))), ["block"]),
    "relu of an input": (lambda m, u, r: m.eca(torch.relu(r)), ["block"]),
    "the map has a second reader": (lambda m, u, r: both(m.y(u), lambda y: m.next(m.eca(y))), ["skip"]),
    "a sum before": (lambda m, u, r: m.next(m.eca(m.y(u) + r)), ["skip"]),
    "a biased convolution": (lambda m, u, r: m.eca(m.biased(torch.relu(u))) + r, ["convblock"]),
    "a concatenation after": (lambda m, u, r: torch.cat([m.eca(m.y(torch.relu(u))), r], 1), ["convfold"]),
    "only pooled": (lambda m, u, r: torch.relu(m.eca(m.y(torch.relu(u))) + r).mean((2, 3)), ["convfold"]),
    "padded behind silu": (lambda m, u, r: m.next(F.pad(F.silu(m.eca(m.y(u))), (1, 1, 1, 1))), ["skip"]),
    "split in two": (lambda m, u, r: torch.mul(*m.eca(m.y(u)).chunk(2, 1)), ["skip"]),
    "group norm after": (lambda m, u, r: F.group_norm(m.eca(m.y(u)), 8), ["skip"]),
    "another site after": (lambda m, u, r: m.eca(m.eca(m.y(u))), ["skip", "skip"]),
}  # fmt: skip
TRAINING: dict[str, tuple[Callable[..., Any], list[str]]] = {
    "residual and relu": (lambda m, u, r: m.next(torch.relu(m.eca(m.y(u)) + r)), ["batch_norm"]),
    "batch norm after": (lambda m, u, r: m.next(torch.relu(m.other(m.eca(m.y(u))))), ["pool"]),
    "a sum of two sites": (lambda m, u, r: m.next(m.eca(m.y(u)) + m.eca(m.other(r))), ["batch_norm"] * 2),
}  # fmt: skip


@pytest.mark.parametrize("name", INFERENCE)
def test_inference_saves_what_is_predicted_and_never_loses(name: str) -> None:
    forward, plans = INFERENCE[name]
    result, s = compared(forward)
    decisions = [record.decision for record in result.records]
    assert [decision.plan for decision in decisions] == plans
    predicted = sum(decision.traffic_before - decision.traffic_after for decision in decisions)
    assert saved(result) / s == pytest.approx(predicted, abs=MARGIN)
    assert len(result.lowered.kernels) <= len(result.stock.kernels)


@pytest.mark.parametrize("name", TRAINING)
def test_training_never_loses(name: str) -> None:
    """What is saved depends on who else needs gradients, and on what Inductor keeps for backward."""
    forward, plans = TRAINING[name]
    result, s = compared(forward, training=True)
    assert [record.decision.plan for record in result.records] == plans
    assert saved(result) > -0.001 * s
    assert (saved(result) > 2 * s) == (set(plans) != {"pool"})
    assert len(result.lowered.kernels) <= len(result.stock.kernels)


def test_few_images_save_at_least_what_is_predicted() -> None:
    """Stock pools them in two steps, and then stores and reads once more."""
    forward, _ = INFERENCE["residual and relu"]
    result, s = compared(forward, images=32)
    (record,) = result.records
    assert saved(result) / s > record.decision.traffic_before - record.decision.traffic_after + 0.5
