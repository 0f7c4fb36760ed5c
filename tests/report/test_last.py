"""`last_report` has what torch.compile has met; a line after each compilation says so to those who ask."""

import copy
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from paths import ROOT
from torch import Tensor, fx, nn
from torch._guards import CompileContext
from torch._inductor import config

import eca_triton
from eca_triton.compile import backend, record
from eca_triton.compile.record import recording
from eca_triton.compile.settings import Settings

FORCED = {"backend": "eca_triton", "options": {"eca.force": True}}


class Block(nn.Module):
    """A convolution and its channel attention."""

    def __init__(self, channels: int, apart: bool = False) -> None:
        super().__init__()
        self.conv, self.attention, self.apart = nn.Conv2d(3, channels, 1), eca_triton.ECA(channels), apart

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if self.apart:
            torch._dynamo.graph_break()
        return self.attention(x)


class Twice(nn.Module):
    """Two blocks with a graph break between them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Block(8), Block(16)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        first = self.first(x)
        torch._dynamo.graph_break()
        return first, self.second(x)


@pytest.fixture(autouse=True)
def _as_new() -> Iterator[None]:
    """No compilation yet; C++ is scalar, and nothing comes from a cache unless a test says so."""
    torch.compiler.reset()
    with config.patch({"fx_graph_cache": False, "cpp.simdlen": 0}):
        yield
    eca_triton.disable()


def images(batch: int = 2, size: int = 8) -> Tensor:
    return torch.randn(batch, 3, size, size)


def shapes() -> list[tuple[int, ...]]:
    return [site.shape for site in eca_triton.last_report().sites]


def by_backend(model: nn.Module) -> Callable:
    return torch.compile(model, dynamic=False, **FORCED)


def by_enable(model: nn.Module) -> Callable:
    eca_triton.enable(force=True)
    return torch.compile(model, dynamic=False)


def by_options(model: nn.Module) -> Callable:
    return torch.compile(model, dynamic=False, options=eca_triton.inductor_options(force=True))


@pytest.mark.parametrize("door", [by_backend, by_enable, by_options])
@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
def test_the_report_has_the_sites_of_what_was_compiled(door: Callable, training: bool) -> None:
    compiled = door(Twice().train(training))
    with torch.set_grad_enabled(training):
        first, second = compiled(images())
    if training:
        (first.sum() + second.sum()).backward()  # compiled later, and a part of the same compilations
    report = eca_triton.last_report()
    assert shapes() == [(2, 8, 8, 8), (2, 16, 8, 8)]
    assert (report.lowered, report.cached) == (2, 0)
    assert str(report).splitlines()[-1] == "2 of 2 channel attentions lowered"
    assert [site["shape"] for site in report.as_dict()["sites"]] == [[2, 8, 8, 8], [2, 16, 8, 8]]


def test_before_a_compilation_the_report_says_what_to_do() -> None:
    by_backend(nn.Linear(3, 3))(torch.ones(1, 3))  # ends what was noted before the reset
    report = eca_triton.last_report()
    assert (report.sites, report.lowered, report.cached) == ((), 0, 0)
    assert 'torch.compile(model, backend="eca_triton")' in str(report)


def test_what_is_left_alone_has_its_reason() -> None:
    torch.compile(Block(8), backend="eca_triton", dynamic=False)(images())
    report = eca_triton.last_report()
    assert (len(report.sites), report.lowered) == (1, 0)
    assert "ECA201" in str(report)


def test_the_same_code_for_another_size_takes_its_place() -> None:
    compiled = by_backend(Twice())
    compiled(images(2))
    compiled(images(4, size=6))
    assert shapes() == [(4, 8, 6, 6), (4, 16, 6, 6)]


def test_blocks_that_are_compiled_one_by_one_are_all_there() -> None:
    model = nn.ModuleList([Block(8), Block(8), Block(16), Block(24)])
    for block in model:
        block.compile(dynamic=False, **FORCED)
        block(images())
    assert [shape[1] for shape in shapes()] == [8, 16, 24]  # those of 8 channels share a graph


def test_a_graph_break_inside_a_block_keeps_its_site() -> None:
    by_backend(Block(8, apart=True))(images())
    assert shapes() == [(2, 8, 8, 8)]


def test_a_reset_begins_a_new_report() -> None:
    by_backend(Block(8))(images())
    torch.compiler.reset()
    assert shapes() == [(2, 8, 8, 8)], "a look at the report after a reset finds what there was"
    by_backend(Block(16))(images())
    assert shapes() == [(2, 16, 8, 8)]


def test_explain_and_a_recording_leave_the_report_as_it_is() -> None:
    by_backend(Block(8))(images())
    eca_triton.explain(Block(16), images(), target="none")
    with recording() as records:
        by_backend(Block(24))(images())
    assert [site.shape[1] for site in records] == [24]
    assert shapes() == [(2, 8, 8, 8)]


def test_a_compilation_that_dynamo_begins_anew_counts_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    lower = backend.lower_graph

    def again(gm: fx.GraphModule, settings: Settings) -> object:
        lower(copy.deepcopy(gm), settings)
        CompileContext.get().attempt += 1
        return lower(gm, settings)

    monkeypatch.setattr(backend, "lower_graph", again)
    monkeypatch.setattr(backend, "inductor_compile", lambda gm, *_: gm.forward)
    with caplog.at_level(logging.INFO, logger="eca_triton"):
        by_backend(Block(8))(images())
    assert len(shapes()) == len(caplog.messages) == 1


@pytest.mark.parametrize("name", ["_tell", "_noted", "compilation", "when_compiled"])
def test_what_fails_in_the_record_changes_nothing_else(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("planted")

    def keep(gm: fx.GraphModule, *_: object) -> object:
        graphs.append(gm)
        return gm.forward

    graphs: list[fx.GraphModule] = []
    model, x = Block(8).eval(), images()
    monkeypatch.setattr(record, name, fail)
    monkeypatch.setattr(backend, "inductor_compile", keep)
    with torch.no_grad():
        torch.testing.assert_close(by_backend(model)(x), model(x))
    assert any("eca_triton" in str(node.target) for node in graphs[0].graph.nodes), "it is lowered"


def test_the_line_is_said_to_who_listens(caplog: pytest.LogCaptureFixture) -> None:
    compiled = by_backend(Twice())
    with caplog.at_level(logging.INFO, logger="eca_triton"):
        compiled(images())
        compiled(images())
    assert [each.getMessage() for each in caplog.records if each.levelno == logging.INFO] == [
        "eca_triton: 1 of 1 channel attentions lowered; eca_triton.last_report()"
    ] * 2


def test_a_graph_without_attention_is_no_word_worth(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="eca_triton"):
        by_backend(nn.Conv2d(3, 4, 1))(images())
    assert caplog.messages == []


PROGRAM = """
import sys, torch, torch._inductor.config, eca_triton
torch._inductor.config.cpp_cache_precompile_headers = False

def network(x, weight):
    gate = torch.conv1d(x.mean((2, 3)).unsqueeze(1), weight, padding=1).sigmoid()
    return x * gate.view(x.size(0), -1, 1, 1)

if sys.argv[1] == "backend":
    compiled = torch.compile(network, backend="eca_triton")
else:
    eca_triton.enable()
    compiled = torch.compile(network)
compiled(torch.ones(2, 8, 4, 4), torch.ones(1, 1, 3))
print(eca_triton.last_report())
"""
LINE = "eca_triton: 1 of 1 channel attentions lowered; eca_triton.last_report()"


def run(door: str, cache: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run PROGRAM in a process of its own."""
    variables = {"ECA_TRITON_FORCE": "1", "PYTHONPATH": str(ROOT), "TORCHINDUCTOR_CACHE_DIR": str(cache)}
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, door],
        env=os.environ | variables | environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({}, 0),
        ({"ECA_TRITON_VERBOSE": "1"}, 1),
        ({"TORCH_LOGS": "eca_triton"}, 1),
        ({"TORCH_LOGS": "+eca_triton"}, 1),
        ({"TORCH_LOGS": "+eca_triton", "ECA_TRITON_VERBOSE": "1"}, 1),
    ],
    ids=["silent", "verbose", "logs", "debug logs", "both"],
)
def test_the_line_by_the_environment(environment: dict[str, str], said: int, tmp_path: Path) -> None:
    done = run("backend", tmp_path, **environment)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count(LINE) == said, done.stderr
    assert "1 of 1 channel attentions lowered" in done.stdout


@pytest.mark.slow
def test_a_warm_start_says_that_it_is_one(tmp_path: Path) -> None:
    verbose = {"ECA_TRITON_VERBOSE": "1"}
    assert LINE in run("enable", tmp_path, **verbose).stderr
    warm = run("enable", tmp_path, **verbose)
    assert LINE in warm.stderr or "a graph came from Inductor's cache" in warm.stderr, warm.stderr
    assert "1 of 1 channel" in warm.stdout or "1 graph came from Inductor's cache" in warm.stdout
    assert LINE in run("backend", tmp_path, **verbose).stderr


def test_a_wrong_value_of_the_variable_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ECA_TRITON_VERBOSE", "loud")
    with pytest.raises(ValueError, match="ECA_TRITON_VERBOSE must be one of"):
        eca_triton.inductor_options()
