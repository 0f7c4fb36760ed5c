"""`python -m eca_triton autotune`: what it lists without a GPU, and what it writes with one."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from autotune_machine import Bench
from deviceless_models import Eca, Plain, Tail
from paths import TESTS

from eca_triton import deviceless
from eca_triton.__main__ import main
from eca_triton.autotune import command
from eca_triton.autotune.search import name_of, tasks_of
from eca_triton.autotune.sites import sites_of
from eca_triton.compile.inductor import lowering, lowering_projection
from eca_triton.tuning import store
from eca_triton.tuning.candidates import candidates
from eca_triton.tuning.choice import choose
from eca_triton.tuning.key import Key
from eca_triton.tuning.problem import Problem
from eca_triton.tuning.table import parse
from eca_triton.tuning.targets import TARGETS

NETWORK = f"""
import sys

import torch

sys.path.append({str(TESTS / "deviceless")!r})
from deviceless_models import Plain, Tail


class Network(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = Plain(256), Plain(256), torch.nn.Conv2d(256, 64, 1)

    def forward(self, x, residual):
        return self.last(self.second(self.last(self.first(x, residual)), residual))


def network():
    with torch.device("meta"):
        return Network(), (torch.empty(64, 64, 14, 14), torch.empty(64, 256, 14, 14))


class Bottleneck(Tail):
    def forward(self, x, residual):
        return super().forward(torch.relu(x), residual)


def bottleneck():
    with torch.device("meta"):
        return Bottleneck(256), (torch.empty(128, 64, 56, 56), torch.empty(128, 256, 56, 56))


def without():
    with torch.device("meta"):
        return torch.nn.Conv2d(64, 64, 1), torch.empty(1, 64, 7, 7)
"""


@pytest.fixture
def model(tmp_path: Path) -> str:
    file = tmp_path / "networks.py"
    file.write_text(NETWORK)
    return f"{file}:network"


def test_without_a_gpu_it_says_so_with_a_code_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    with mock.patch.object(torch.cuda, "is_available", return_value=False):
        assert main(["autotune", "timm:no_such_model"]) == 4
    out, err = capsys.readouterr()
    assert not out
    assert "there is none; --dry-run lists what would be" in err


def test_wrong_arguments_are_told_before_anything_is_traced(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["autotune", "timm:no_such_model", "--dry-run", "--target", "h2000"]) == 2
    assert main(["autotune", "timm:no_such_model", "--target", "h200"]) == 2
    assert "--target is for --dry-run" in capsys.readouterr().err
    assert main(["autotune", "timm:no_such_model", "--dry-run", "--target", "none"]) == 2
    assert "--target none has no kernels" in capsys.readouterr().err


def test_a_dry_run_lists_sites_keys_and_candidates(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--dry-run", "--dtype", "bf16", "--channels-last", "--training", "--target", "a100"]
    assert main(["autotune", model, *options]) == 0
    out = capsys.readouterr().out
    assert out.count("64x256x14x14  5  block") == 2
    for direction in ("forward", "backward"):
        key = f"{direction}/bfloat16/channels_last/c256/hw196/k5/maps3+bits/8.0/part"
        assert f"{key}  (NVIDIA A100-SXM4-80GB; 2 calls, " in out
    assert out.count("<- heuristic") == 2
    assert out.count("    two_pass\n") == 2


def test_our_networks_are_planned_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--batch", "8", "--size", "64", "--dtype", "bf16", "--dry-run", "--target", "h200"]
    assert main(["autotune", "eca_triton:eca_resnet18", *options]) == 0
    assert "8x64x16x16  3  block" in capsys.readouterr().out
    assert main(["autotune", "eca_triton:eca_resnet81", *options]) == 2
    assert "did you mean eca_resnet18" in capsys.readouterr().err


@pytest.mark.parametrize("layout", [["--channels-last"], []], ids=["channels-last", "contiguous"])
def test_a_dry_run_lists_the_products_of_convblock(
    layout: list[str], model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model = model.replace(":network", ":bottleneck")
    assert main(["autotune", model, "--dry-run", "--dtype", "bf16", *layout]) == 0
    site, _, key, heuristic, *others = capsys.readouterr().out.split("\n", 1)[1].splitlines()
    assert site.endswith("128x256x56x56  5  convblock")
    product = "product/bfloat16/channels_last/c256/hw3136/i64/maps2+summand/9.0/many"
    assert key == f"{product}  (NVIDIA H200; 1 calls, 32 candidates)"
    config = "block_hw: 64, block_c: 128, block_i: 64, num_warps: 4, num_stages: 2"
    assert heuristic == f"    product, {config}  <- heuristic"
    assert len(others) == 31
    assert all(line.startswith("    product, block_hw: ") for line in others)


def test_a_model_without_sites_has_nothing_to_tune(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["autotune", model.replace(":network", ":without"), "--dry-run"]) == 0
    assert command.NOTHING_TO_TUNE in capsys.readouterr().out


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> tuple[torch.nn.Module, tuple[torch.Tensor, ...]]:
    """A site that is lowered in training, and small enough to be computed here."""
    monkeypatch.setenv("ECA_TRITON_FORCE", "1")
    module = Plain(16).to(memory_format=torch.channels_last)
    inputs = torch.empty(2, 4, 6, 6), torch.empty(2, 16, 6, 6)
    return module, tuple(x.to(memory_format=torch.channels_last) for x in inputs)


def test_with_a_gpu_it_writes_the_table_and_says_what_was_gained(tmp_path: Path, small: Any) -> None:
    module, inputs = small
    out, err, path = io.StringIO(), io.StringIO(), tmp_path / "tuned.json"
    bench = Bench()
    (task,) = tasks_of(sites_of(module, inputs, training=True).examples, bench.properties)[:1]
    winner = candidates(task.problem)[1]
    bench.time_us = lambda name: 25.0 if name == name_of(winner) else 100.0
    assert command.measure(module, inputs, True, path, out, err, bench.machine()) == 0
    assert store.load(path)[0][task.key].choice == winner
    assert "75.0% less" in out.getvalue()
    assert f"keys written to {path}" in out.getvalue()
    assert f"1/2 {task.key}" in err.getvalue()


def test_a_table_that_cannot_be_written_stops_no_search(
    tmp_path: Path, small: Any, caplog: pytest.LogCaptureFixture
) -> None:
    module, inputs = small
    bench = Bench()
    tasks = tasks_of(sites_of(module, inputs, training=True).examples, bench.properties)
    winners = {name_of(candidates(task.problem)[1]) for task in tasks}
    bench.time_us = lambda name: 25.0 if name in winners else 100.0
    out, path = io.StringIO(), tmp_path / "file" / "tuned.json"
    path.parent.write_text("no directory")
    assert command.measure(module, inputs, True, path, out, io.StringIO(), bench.machine()) == 1
    assert out.getvalue().count("75.0% less") == len(tasks) == 2
    assert "keys written" not in out.getvalue()
    assert f"{path} could not be written" in caplog.text
    unsaved, problems = parse(out.getvalue().partition("merged by tune-cache:\n")[2])
    assert unsaved.keys() == {task.key for task in tasks}
    assert not problems


def test_a_heuristic_that_is_wrong_is_an_error(
    tmp_path: Path, small: Any, caplog: pytest.LogCaptureFixture
) -> None:
    module, inputs = small
    bench = Bench(launch=lambda call, choice: None)
    path = tmp_path / "tuned.json"
    said = io.StringIO()
    assert command.measure(module, inputs, True, path, said, said, bench.machine()) == 1
    assert not path.exists()
    assert "the heuristic's choice fails: wrong result" in caplog.text


@pytest.mark.parametrize(
    ("plan", "channels_last"),
    [("block", False), ("block", True), ("convblock", True)],
    ids=["block, contiguous", "block, channels_last", "convblock, channels_last"],
)
def test_the_keys_of_a_compiled_model_are_those_that_its_code_is_generated_by(
    plan: str, channels_last: bool
) -> None:
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    sizes, module = {
        "block": ([(64, 256, 28, 28)], Eca()),
        "convblock": ([(128, 64, 56, 56), (128, 256, 56, 56)], Tail(256).eval()),
    }[plan]
    module = module.to(device="meta", dtype=torch.bfloat16, memory_format=memory_format)
    inputs = tuple(
        torch.empty(size, dtype=torch.bfloat16, device="meta").to(memory_format=memory_format)
        for size in sizes
    )
    asked: set[Key | None] = set()

    def asking(problem: Problem, **options: bool):
        if problem.layout.c == 256:  # not what is lowered on trial, to see whether templates work
            asked.add(Key.of(problem))
        return choose(problem)

    place = lowering if plan == "block" else lowering_projection
    with mock.patch.object(place, "select", asking):
        deviceless.lower(module, inputs, target="h200", backend="eca_triton")
    tasks = tasks_of(sites_of(module, inputs, training=False).examples, TARGETS["h200"].device)
    assert asked
    assert asked <= {task.key for task in tasks}
