"""Tuning on a CUDA device, from the model to the call that goes by the table. Skipped where there is none."""

from __future__ import annotations

import copy
import io
from pathlib import Path

import pytest
import torch
from eager_block import assert_as_good_as, eager_eca, to_double

import eca_triton
from eca_triton.autotune import command
from eca_triton.autotune.machine import this_machine
from eca_triton.autotune.search import search, tasks_of
from eca_triton.autotune.sites import sites_of
from eca_triton.tuning import store
from eca_triton.tuning.candidates import candidates
from eca_triton.tuning.select import select
from eca_triton.tuning.table import Entry

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

SHAPE = (32, 256, 28, 28)
layouts = pytest.mark.parametrize(
    "layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"]
)


def network(layout: torch.memory_format, channels: int = SHAPE[1]) -> tuple[torch.nn.Module, torch.Tensor]:
    x = torch.empty((SHAPE[0], channels, *SHAPE[2:]), dtype=torch.bfloat16, device="meta")
    return eca_triton.ECA(channels=channels).to(torch.bfloat16), x.to(memory_format=layout)


class Bottleneck(torch.nn.Module):
    """The end of a ResNet's block, behind a ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(64, 256, 1, bias=False)
        self.norm = torch.nn.BatchNorm2d(256)
        self.attention = eca_triton.ECA(channels=256)

    def forward(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.attention(self.norm(self.conv(torch.relu(x)))) + residual)


def bottleneck() -> tuple[torch.nn.Module, tuple[torch.Tensor, torch.Tensor]]:
    inputs = (
        torch.empty(64, channels, 56, 56, dtype=torch.bfloat16, device="meta").to(
            memory_format=torch.channels_last
        )
        for channels in (64, 256)
    )
    return Bottleneck().bfloat16().to(memory_format=torch.channels_last).eval(), tuple(inputs)


def test_the_product_before_a_site_is_searched_written_and_compiled_by_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ECA_TRITON_TUNED", "user")
    monkeypatch.setenv("ECA_TRITON_CACHE_DIR", str(tmp_path))
    module, inputs = bottleneck()
    machine = this_machine()
    tasks = tasks_of(sites_of(module, inputs, training=False).examples, machine.properties)
    (task,) = [each for each in tasks if each.key.kernel == "product"]
    outcome = search(task, machine)
    assert not outcome.problem
    assert outcome.choice is not None
    assert 0 < outcome.time_us <= outcome.heuristic_us
    assert not [why for why in outcome.dropped.values() if why.startswith("wrong")]
    second = candidates(task.problem)[1]
    store.save({task.key: Entry(second, outcome.time_us, outcome.heuristic_us)})
    assert select(task.problem) == second
    x, residual = (torch.randn_like(each, device="cuda") for each in inputs)
    module = module.cuda()
    exact = copy.deepcopy(module).double()
    with torch.no_grad():
        got = torch.compile(module, backend="eca_triton", fullgraph=True)(x, residual)
        assert_as_good_as(got, module(x, residual), exact(x.double(), residual.double()))


@pytest.mark.parametrize(
    ("channels", "layout", "training", "kernels"),
    [
        (256, torch.contiguous_format, False, {"forward"}),
        (256, torch.channels_last, False, {"forward"}),
        (171, torch.channels_last, False, {"pool", "rescale"}),
        (171, torch.channels_last, True, {"pool", "affine", "moments", "affine_backward"}),
    ],
    ids=["contiguous", "channels_last", "two passes", "two passes in training"],
)
def test_a_search_times_what_it_compiled_and_verifies_the_winner(
    channels: int, layout: torch.memory_format, training: bool, kernels: set[str]
) -> None:
    module, x = network(layout, channels)
    machine = this_machine()
    x.requires_grad_(training)
    tasks = tasks_of(sites_of(module, (x,), training=training).examples, machine.properties)
    assert {task.key.kernel for task in tasks} == kernels
    for task in tasks:
        outcome = search(task, machine)
        assert not outcome.problem
        assert outcome.choice is not None
        assert 0 < outcome.time_us <= outcome.heuristic_us
        assert not [why for why in outcome.dropped.values() if why.startswith("wrong")]


@layouts
def test_a_call_goes_by_the_table_that_was_written(
    layout: torch.memory_format, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ECA_TRITON_TUNED", "user")
    monkeypatch.setenv("ECA_TRITON_CACHE_DIR", str(tmp_path))
    module, x = network(layout)
    said = io.StringIO()
    assert command.measure(module, (x,), False, None, said, said) == 0
    assert str(store.user_table()) in said.getvalue()
    weight = torch.randn(1, 1, 5, device="cuda", dtype=torch.bfloat16)
    real = torch.randn(SHAPE, device="cuda", dtype=torch.bfloat16).contiguous(memory_format=layout)
    got = eca_triton.eca(real, weight)
    exact = eager_eca(*to_double((real, weight)))
    assert_as_good_as(got, eager_eca(real, weight), exact)
