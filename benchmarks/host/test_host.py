"""What one call costs the host, on maps so small that nothing else counts; `make bench` runs it.

`cuda` rows show what matters: dispatch, checks, allocation and launch. On a CPU the reference, written
for clarity and not for speed, does the arithmetic: there the rows only guard against a slower path to it.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

import eca_triton

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def plain_gate(x: Tensor, weight: Tensor) -> Tensor:
    """Its gate alone."""
    return torch.conv1d(x.mean((2, 3))[:, None], weight, padding=weight.shape[-1] // 2).sigmoid()[:, 0]


def plain(x: Tensor, weight: Tensor) -> Tensor:
    """ECA as a user writes it."""
    return x * plain_gate(x, weight)[:, :, None, None]


CALLS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]] = {
    "plain gate": (plain_gate, plain_gate),
    "ops.gate": (torch.ops.eca_triton.gate, plain_gate),
    "plain eca": (plain, plain),
    "ops.eca": (torch.ops.eca_triton.eca, plain),
    "eca_triton.eca": (eca_triton.eca, plain),
}


@pytest.mark.parametrize("grad", [False, True], ids=["not recorded", "recorded for gradients"])
@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("device", DEVICES)
def test_host_time(benchmark: BenchmarkFixture, device: str, name: str, grad: bool) -> None:
    """The forward alone; with `grad` autograd records it."""
    x = torch.randn(1, 8, 2, 2, device=device, requires_grad=grad)
    weight = torch.randn(1, 1, 3, device=device, requires_grad=grad)
    call, same = CALLS[name]
    torch.testing.assert_close(call(x, weight), same(x, weight))  # no figure without its check
    with torch.set_grad_enabled(grad):
        benchmark(call, x, weight)
