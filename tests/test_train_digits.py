"""examples/train_digits.py: what its runs must fulfil, what fails them, its plot; few images, no Inductor."""

from __future__ import annotations

import itertools
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest
import torch
from paths import ROOT

from eca_triton.compile import backend

pytestmark = pytest.mark.skipif(
    None in map(find_spec, ("matplotlib", "sklearn")),
    reason="the extra `demo` draws the plot and holds the images",
)

EXAMPLES = ROOT / "examples"
IMAGES = 128


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The script, with what its `main` changes for the whole process put back afterwards."""
    monkeypatch.syspath_prepend(EXAMPLES)
    import train_digits

    threads, cudnn = torch.get_num_threads(), torch.backends.cudnn.deterministic
    yield train_digits
    torch.set_num_threads(threads)
    torch.backends.cudnn.deterministic = cudnn
    torch.use_deterministic_algorithms(False)
    torch.compiler.reset()


@pytest.fixture
def short(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script on few images, its graphs run as they reach Inductor; no accuracy is asked."""
    whole, settings = script.load("cpu"), script.compilers("cpu")
    few = script.Digits(*(part[:IMAGES] for part in vars(whole).values()))
    for each in settings.values():
        each["backend"] = {"inductor": "eager"}.get(each["backend"], each["backend"])
    monkeypatch.setattr(script, "load", lambda device: few)
    monkeypatch.setattr(script, "compilers", lambda device: settings)
    monkeypatch.setattr(backend, "inductor_compile", lambda gm, *_: gm.forward)
    monkeypatch.setattr(script, "ACCURACY", 0.0)
    return script


def test_runs_that_agree_pass_and_are_drawn(
    short: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "plot.svg"
    assert short.main(["--epochs", "2", "--out", str(file)]) == 0
    out = capsys.readouterr().out
    assert "6 of 6 ECA sites lowered" in out
    assert "FAILED" not in out
    assert out.count("epoch  2") == 4  # a line per run and test where there is no terminal
    assert "train alike" in file.read_text()
    assert ElementTree.parse(file).getroot().tag.endswith("svg")


def test_sites_that_are_not_lowered_fail(
    short: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ECA_TRITON_DISABLE", "1")
    file = tmp_path / "plot.svg"
    assert short.main(["--epochs", "1", "--out", str(file)]) == 1
    assert "FAILED  0 of 6 ECA sites lowered" in capsys.readouterr().out
    assert "DIFFER" in file.read_text()


def curve(script: ModuleType, factor: float, final: float = 0.98) -> object:
    """A run of ten epochs of two steps whose losses are `factor` times a falling curve; no sites."""
    run = script.Run("run", steps=2)
    run.losses = [factor * 2.0**-step for step in range(20)]
    run.accuracies = [final] * 10
    return run


@pytest.mark.parametrize(
    ("factor", "accuracy", "passed"),
    [
        (1.01, 0.98, [True, True, True]),  # as far from stock as stock's orders are apart
        (1.09, 0.98, [True, False, False]),
        (0.91, 0.98, [True, False, False]),
        (float("nan"), 0.98, [True, False, False]),
        (1.00, 0.96, [False, True, True]),
    ],
)
def test_accuracy_and_distance_from_stock_are_judged(
    script: ModuleType, factor: float, accuracy: float, passed: list[bool]
) -> None:
    stock = [curve(script, each) for each in (1.0, 1.01, 1.02)]
    sites, *rest = script.checks(stock, curve(script, factor, accuracy))
    assert not sites.passed  # a network without sites proves nothing
    assert [check.passed for check in rest] == passed


def test_another_order_permutes_within_batches(script: ModuleType) -> None:
    plain, permuted = (list(script.batches(300, script.Setting(epochs=2), order)) for order in (0, 1))
    assert [len(epoch) for epoch in plain] == [4, 4]
    pairs = [zip(*epochs, strict=True) for epochs in zip(plain, permuted, strict=True)]
    for first, second in itertools.chain(*pairs):
        assert first.tolist() != second.tolist()
        assert sorted(first.tolist()) == sorted(second.tolist())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epochs", "0"], "--epochs must be 1 or more, got 0"),
        (["--seed", "-1"], "--seed must be 0 or more, got -1"),
        (["--out", "plot.gif"], "--out must end in .svg, .png, .pdf, got plot.gif"),
        (["--out", "nowhere/plot.svg"], "--out: there is no folder"),
        (["--device", "cuda"], "--device cuda: torch finds no CUDA device"),
    ],
)
def test_what_cannot_run_is_said_at_once(
    script: ModuleType,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as error:
        script.main(arguments)
    assert error.value.code == 2
    assert message in capsys.readouterr().err


def test_a_terminal_gets_bars(
    script: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("rich", reason="the extra `demo` draws bars on terminals")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    with script.progress(["run"], 20) as report:
        report(curve(script, 1.0))
    out = capsys.readouterr().out
    assert "100 %" in out
    assert "test  98.0 %" in out
