"""Times on a GPU, as far as a CPU can tell: correctness first, networks in turn, quartiles."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from reports import Attention
from torch import Tensor, nn

import eca_triton
from eca_triton.report.measure import disagreement, in_turn, measure_networks, quartiles
from eca_triton.report.predict import Band


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), Attention())


IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Wrong(nn.Module):
    """A compiled network whose result is off by a tenth."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        return 1.1 * self.module(x)


def uncompiled(module: nn.Module, backend: str) -> Callable[..., Any]:
    return module


@pytest.mark.parametrize("training", [False, True])
def test_networks_are_timed_in_turn_on_copies(training: bool) -> None:
    model = network()
    before, asked = copy.deepcopy(model.state_dict()), []

    def compiled(module: nn.Module, backend: str) -> Callable[..., Any]:
        asked.append(backend)
        return module

    times = iter(range(100))
    measured = measure_networks(
        model, model[:2], (IMAGES,), training=training, clock=lambda step: float(next(times)),
        compiled=compiled, rounds=3,
    )  # fmt: skip
    assert measured.problem == ""
    assert asked == ["inductor", "eca_triton", "inductor"]
    # The clock ticks in the rounds (stock, ours, plain), (plain, stock, ours) and (ours, plain, stock).
    assert {name: band.likely for name, band in measured.step_us.items()} == {
        "stock": 4.0, "ours": 5.0, "plain": 3.0,
    }  # fmt: skip
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(weight.grad is None for weight in model.parameters())


def test_nothing_is_timed_if_the_results_are_wrong() -> None:
    def compiled(module: nn.Module, backend: str) -> Callable[..., Any]:
        return Wrong(module) if backend == "eca_triton" else module

    def clock(step: object) -> float:
        raise AssertionError("timed all the same")

    measured = measure_networks(
        network(), None, (IMAGES,), training=False, clock=clock, compiled=compiled, rounds=3
    )
    assert measured.step_us == {}
    assert measured.problem.startswith("our results are off by 0.1,")
    out = io.StringIO()
    measured.write(out)
    assert out.getvalue() == f"not measured on cpu: {measured.problem}\n"


def test_an_error_may_be_twice_that_of_stock_and_no_more() -> None:
    exact, stock = ([torch.zeros(4, dtype=torch.float64)], []), ([torch.full((4,), 1e-3)], [])
    assert disagreement(exact, stock, ([torch.full((4,), 1.9e-3)], [])) == ""
    assert "our results" in disagreement(exact, stock, ([torch.full((4,), 2.1e-3)], []))
    assert "our results" in disagreement(exact, stock, ([torch.full((4,), torch.nan)], []))
    assert "our gradients" in disagreement(
        (exact[0], exact[0]), (exact[0], stock[0]), (exact[0], [torch.ones(4)])
    )


def test_each_round_starts_with_another_network() -> None:
    order: list[str] = []
    steps = {name: lambda: None for name in ("stock", "ours")}
    names = {id(step): name for name, step in steps.items()}
    in_turn(steps, lambda step: order.append(names[id(step)]) or 1.0, rounds=2)
    assert order == ["stock", "ours", "ours", "stock"]


def test_quartiles() -> None:
    assert quartiles([1.0, 2.0, 3.0, 4.0, 100.0]) == Band(2.0, 3.0, 4.0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("training", [False, True])
def test_on_a_gpu_a_report_has_times(training: bool) -> None:
    report = eca_triton.explain(network().cuda(), IMAGES.cuda(), training=training)
    assert report.measured is not None
    assert report.measured.problem == ""
    assert report.measured.step_us.keys() == {"stock", "ours", "plain"}
    assert all(0 < band.low <= band.likely <= band.high for band in report.measured.step_us.values())
