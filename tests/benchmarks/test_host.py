"""`python -m benchmarks host` and `compile`: what is on any machine."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from paths import ROOT
from torch import Tensor, nn

from benchmarks.__main__ import main
from benchmarks.host import measure as host
from benchmarks.network import compiling
from benchmarks.shared import twins

CPU = torch.device("cpu")
STATS = {"median": 7.2e-6, "q1": 7.1e-6, "q3": 7.5e-6, "rounds": 300}
FOUND = {
    "benchmarks": [
        {"name": "test_direct_launch[eca_triton.eca]", "params": {"name": "eca_triton.eca"}, "stats": STATS},
        {
            "name": "test_host_time[cuda-ops.gate-recorded for gradients]",
            "params": {"name": "ops.gate", "device": "cuda", "grad": True},
            "stats": STATS,
        },
    ]
}
SMALL = ["compile", "--directions", "inference", "--size", "32", "--batch", "16"]
SECONDS = {"inductor": 8.0, "ours": 9.5}


class TestHost:
    def test_launches_reach_a_stub_of_the_driver_of_this_triton(self) -> None:
        """In a process of its own, which then has a CUDA driver that runs nothing; one round, not timed."""
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--benchmark-disable"]
        command += ["-k", "ops.gate_from_pool", str(ROOT / "benchmarks" / "host" / "test_launch.py")]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stdout
        assert "2 passed" in done.stdout or "2 skipped" in done.stdout

    @pytest.mark.parametrize("bound", ["held", "missed"])
    def test_figures_are_pytest_benchmarks(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, bound: str
    ) -> None:
        def run(command: list[str], *, env: dict[str, str], **_: Any) -> Any:
            assert env["OMP_NUM_THREADS"] == "1", "as `make bench`"
            (path,) = (each.split("=")[1] for each in command if each.startswith("--benchmark-json="))
            Path(path).write_text(json.dumps(FOUND))
            code, said = (0, "") if bound == "held" else (1, "2.31 times, more than 2.2\n")
            return SimpleNamespace(returncode=code, stdout=said, stderr="")

        monkeypatch.setattr(host, "subprocess", SimpleNamespace(run=run))
        assert main(["host", "--out", str(tmp_path)]) == (bound == "missed")
        written, said = capsys.readouterr()
        assert ("a check or a bound failed" in written) == (bound == "missed")
        assert ("more than 2.2" in said) == (bound == "missed")
        assert "more than 2.2" not in written, "the answer alone"
        rows = json.loads((tmp_path / "host.json").read_text())["rows"]
        assert [(row["call"], row["how"], row["median_us"]) for row in rows] == [
            ("eca_triton.eca", "up to the driver", 7.2),
            ("ops.gate, recorded for gradients", "on the GPU, to its queue", 7.2),
        ]
        assert "7.2" in written

    @pytest.mark.parametrize("busy", [1.0, 7.0], ids=["idle", "busy for a while"])
    def test_the_bound_is_relative_to_what_this_machine_takes_to_allocate(self, busy: float) -> None:
        now, round_ = 0.0, 0

        def call() -> None:
            nonlocal now, round_
            round_ += 1
            now += 7.2 * speed()

        def base() -> None:
            nonlocal now
            now += 4.0 * speed()

        def speed() -> float:
            return busy if 3 < round_ < 8 else 1.0

        assert host.times_as_long(call, base, rounds=10, iterations=1, clock=lambda: now) == pytest.approx(
            1.8
        )


class TestCompile:
    def run(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch, once: Any, *arguments: str
    ) -> tuple[int, dict[str, Any]]:
        monkeypatch.setattr(compiling, "compiler", lambda device: (once, "by a test"))
        monkeypatch.setattr(twins, "own_size", lambda family: 32)
        code = main([*SMALL, *arguments, "--out", str(folder)])
        return code, json.loads((folder / "compile.json").read_text())

    def test_turns_are_interleaved_after_one_that_does_not_count(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
    ) -> None:
        log = []

        def once(setting: Any, contender: str) -> tuple[float, str]:
            log.append(contender)
            return SECONDS[contender] + 90 * (len(log) <= 2) + len(log), ""

        code, document = self.run(tmp_path, monkeypatch, once, "--repeats", "2")
        assert code == 0
        assert log == ["inductor", "ours"] * 3
        (row,) = document["rows"]
        assert row["seconds"] == {"inductor": [11.0, 13.0], "ours": [13.5, 15.5]}
        assert (row["inductor_s"], row["ours_s"], row["added_s"]) == (12.0, 14.5, 2.5)
        assert "+2.5" in capsys.readouterr().out

    @pytest.mark.parametrize("problem", ["a site was missed", RuntimeError("no compiler")], ids=str)
    def test_a_wrong_compilation_has_no_figure(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, problem: Any
    ) -> None:
        def once(setting: Any, contender: str) -> tuple[float, str]:
            if isinstance(problem, Exception):
                raise problem
            return 1.0, problem if contender == "ours" else ""

        code, document = self.run(tmp_path, monkeypatch, once)
        assert code == 1
        assert "seconds" not in document["rows"][0]
        assert str(problem) in capsys.readouterr().out

    @pytest.mark.parametrize("command", ["compile", "network"])
    def test_help_names_the_networks(self, command: str, capsys: Any) -> None:
        with pytest.raises(SystemExit, match="0"):
            main([command, "--help"])
        written = " ".join(capsys.readouterr().out.split())
        assert ", ".join(twins.FAMILIES) in written

    def test_stops_in_time(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        now = count(0, 10)
        monkeypatch.setattr(compiling, "time", SimpleNamespace(monotonic=lambda: float(next(now))))
        networks = ["--networks", "ecaresnet50d", "ecaresnet26t", "--budget-s", "60"]
        code, document = self.run(tmp_path, monkeypatch, lambda *_: (1.0, ""), *networks, "--repeats", "9")
        assert code == 0
        assert len(document["rows"]) == len(document["left_out"]) == 1
        assert 1 <= len(document["rows"][0]["seconds"]["ours"]) < 9

    def test_any_machine_lowers_for_an_absent_gpu_and_counts_the_sites(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        timm = pytest.importorskip("timm")

        class Net(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.conv, self.se = nn.Conv2d(3, 64, 3), timm.layers.EcaModule(64)

            def forward(self, x: Tensor) -> Tensor:
                return self.se(self.conv(x)).relu()

        setting = compiling.Setting("ecaresnet50d", "inference", "channels_last", 16, 32, "bf16")
        once, how = compiling.compiler(None)
        assert "all but the compilation" in how
        monkeypatch.setattr(twins, "build", lambda *_: Net().to("meta"))
        monkeypatch.setattr(compiling, "attention", lambda model: ["se", "another"])
        seconds, problem = once(setting, "ours")
        assert seconds > 0
        assert problem == "1 of 2 sites were planned"

    def test_a_gpus_figure_needs_results_that_agree(self, monkeypatch: pytest.MonkeyPatch) -> None:
        setting = compiling.Setting("ecaresnet50d", "inference", "contiguous", 4, 8, "bf16")
        net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 1000))
        monkeypatch.setattr(twins, "build", lambda *_: copy.deepcopy(net))
        monkeypatch.setattr(torch, "compile", lambda module, **_: module)
        assert compiling.compile_and_run(CPU, setting, "ours")[1] == ""
        monkeypatch.setattr(torch, "compile", lambda module, **_: lambda x: module(x) * 1.1)
        assert "out off by" in compiling.compile_and_run(CPU, setting, "ours")[1]
