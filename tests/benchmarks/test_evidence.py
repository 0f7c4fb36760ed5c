"""`python -m benchmarks evidence` and `copy`: steps, limits and the summary, with processes that pretend."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib import metadata
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TextIO

import pytest
import torch
from paths import ROOT
from tuned import forward, product, table

from benchmarks.__main__ import main, parser
from benchmarks.evidence import command
from benchmarks.evidence import steps as evidence
from benchmarks.evidence.steps import Task
from benchmarks.evidence.summary import summary
from benchmarks.network import compiling
from benchmarks.network import figures as network_figures
from benchmarks.network.measure import Setting
from benchmarks.op import bandwidth, figures, sites
from benchmarks.shared import checkout
from benchmarks.shared.document import load, save
from eca_triton.__main__ import _parser
from eca_triton.tuning import store
from eca_triton.tuning.store import fingerprint
from eca_triton.tuning.table import serialize

CPU = torch.device("cpu")
MACHINE = {
    "gpu": "NVIDIA H200", "driver": "570.1", "torch": "2.11.0", "triton": "3.6.0", "eca_triton": "0.1.0",
    "cpu": "EPYC",
}  # fmt: skip
US = {"eca/inductor": [12400.0], "plain/inductor": [10000.0], "eca/ours": [10100.0]}
SMOKE = '<testsuites><testsuite tests="30" failures="1" errors="0" skipped="2" /></testsuites>'


def network_document(direction: str = "inference", gpu: str = "NVIDIA H200") -> dict[str, Any]:
    row = {
        "family": "ecaresnet50d", "direction": direction, "layout": "channels_last", "batch": 128,
        "size": 224, "dtype": "bf16", "status": "ok", "checks": {}, "errors": {}, "left_out": [],
        "parameters": {"eca": 25_576_350, "plain": 25_576_270}, **network_figures.figures(US, 128),
    }  # fmt: skip
    machine = MACHINE | {"gpu": gpu}
    return {"command": "network", "date": "now", "machine": machine, "left_out": [], "rows": [row]}


def op_document() -> dict[str, Any]:
    us = {"copy": [100.0], "inductor": [200.0], "op": [105.0], "compiled": [100.0]}
    rows = [
        figures.record(row, "tile", status="ok", errors={}, checks={}, results=figures.figures(row, us))
        for row in sites.rows([(256, 56, 56)], [128], variants=["eca"])
    ]
    return {"command": "op", "date": "now", "machine": MACHINE, "left_out": ["another"], "rows": rows}


def compile_document() -> dict[str, Any]:
    setting = Setting("ecaresnet26t", "inference", "channels_last", 128, 320, "bf16")
    row = {**setting._asdict(), "status": "ok", "errors": {}}
    row |= compiling.figures({"inductor": [8.0], "ours": [9.5]})
    return {"command": "compile", "how": compiling.LOWERED, "left_out": [], "rows": [row]}


class Steps:
    """Pretends to be the processes; each writes what its step would."""

    def __init__(self, folder: Path, **codes: int | None) -> None:
        self.folder, self.codes, self.limits = folder, codes, list[float]()

    def __call__(self, arguments: Sequence[str], limit_s: float, log: Path) -> int | None:
        self.limits.append(limit_s)
        (name,) = {"doctor", "copy", "pytest", "op", "autotune", "network", "host", "compile"} & set(
            arguments
        )
        log.write_text(log.read_text() + name)
        if name == "copy":
            rows = [{"bytes": 206e6, "median_us": 103.0, "p20_us": 102.0, "p80_us": 104.0, "gbps": 4000.0}]
            save({"command": "copy", "rows": rows}, self.folder / "copy.json")
        if name == "pytest":
            (self.folder / "smoke.xml").write_text(SMOKE)
        if name == "op":
            save(op_document(), self.folder / "op.json")
        if name == "host":
            rows = [{"call": "eca_triton.eca", "how": "up to the driver", "median_us": 7.2}]
            save({"command": "host", "rows": rows}, self.folder / "host.json")
        if name == "compile":
            save(compile_document(), self.folder / "compile.json")
        if name == "network":
            save(network_document(), self.folder / "network.json")
        if name == "autotune":
            tuned = table(product(128, 256, 3136, 64), *(forward(128, c, 784) for c in (128, 256)))
            gains = zip(tuned.items(), (1.0, 1.1, 1.5), strict=True)
            tuned = {key: replace(entry, heuristic_us=entry.time_us * gain) for (key, entry), gain in gains}
            (self.folder / "tuned.json").write_text(serialize(tuned))
        return self.codes.get(name, 0)


def collect(folder: Path, steps: Any, budget_s: float = 560.0, gpu: bool = True) -> dict[str, Any]:
    wanted = evidence.tasks(folder) if gpu else evidence.tasks_without_a_gpu(folder)
    return evidence.collect(wanted, MACHINE, "now", folder, budget_s, steps, lambda line: None, gpu=gpu)


class TestSteps:
    def test_one_that_fails_or_is_stopped_leaves_the_others(self, tmp_path: Path) -> None:
        document = collect(tmp_path, Steps(tmp_path, pytest=1, op=None))
        status = {row["step"]: row["status"] for row in document["rows"]}
        assert status == {
            "versions": "ok", "copy": "ok", "smoke": "failed", "op": "stopped at its limit", "tune": "ok",
            "network": "ok",
        }  # fmt: skip
        assert load(tmp_path / "evidence.json", "evidence") == document

    def test_all_fit_into_ten_minutes(self, tmp_path: Path) -> None:
        assert command.BUDGET_S + evidence.GRACE_S * 2 <= 590
        assert sum(task.share_s for task in evidence.tasks(tmp_path)) == command.BUDGET_S
        assert sum(task.share_s for task in evidence.tasks_without_a_gpu(tmp_path) if not task.gpu) <= 560

    def test_a_step_may_use_what_those_before_it_left(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        now = count(0, 2)  # a second or so for each step
        monkeypatch.setattr(evidence, "time", SimpleNamespace(monotonic=lambda: float(next(now))))
        steps = Steps(tmp_path)
        collect(tmp_path, steps, budget_s=280.0)
        assert steps.limits == [8.0, 16.5, 42.5, 88.5, 119.5, 258.0]

    def test_the_results_so_far_are_saved_when_it_is_interrupted(self, tmp_path: Path) -> None:
        def interrupted(arguments: Sequence[str], limit_s: float, log: Path) -> int | None:
            if "op" in arguments:
                raise KeyboardInterrupt
            return 0

        with pytest.raises(KeyboardInterrupt):
            collect(tmp_path, interrupted)
        saved = load(tmp_path / "evidence.json", "evidence")
        assert [row["step"] for row in saved["rows"]] == ["versions", "copy", "smoke"]

    def test_commands_with_a_budget_of_their_own_end_before_their_limit(self) -> None:
        task = Task("op", 100, ("-m", "benchmarks", "op"), margin_s=25)
        assert task.command(100.0)[1:] == ["-m", "benchmarks", "op", "--budget-s", "75"]

    @pytest.mark.parametrize("gpu", [True, False], ids=["with a GPU", "without"])
    def test_each_command_is_one_of_ours(self, tmp_path: Path, gpu: bool) -> None:
        wanted = evidence.tasks(tmp_path) if gpu else evidence.tasks_without_a_gpu(tmp_path)
        ours = [task.command(60.0)[3:] for task in wanted if "benchmarks" in task.arguments]
        assert len(ours) == 3 if gpu else 5
        for arguments in ours:
            assert parser(arguments).parse_args(arguments).out == tmp_path
        (tune,) = (task.command(60.0)[3:] for task in wanted if task.name == "tune")
        assert _parser().parse_args(tune).out == tmp_path / "tuned.json"

    def test_a_process_and_its_children_end_at_the_limit(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The limit comes as soon as the child runs: the pipe that it holds open ends with it."""
        log, pipe = tmp_path / "log", tmp_path / "pipe"
        os.mkfifo(pipe)
        waits = []

        class Process(subprocess.Popen):
            def wait(self, timeout: float | None = None) -> int:
                waits.append(timeout)
                if len(waits) > 1:
                    return super().wait(timeout)
                reading.append(pipe.open())  # as soon as the child opens it
                raise subprocess.TimeoutExpired(self.args, timeout)

        reading: list[TextIO] = []
        monkeypatch.setattr(subprocess, "Popen", Process)
        child = f"import time; f = open({str(pipe)!r}, 'w'); time.sleep(30); f.write('went on')"
        start = f"subprocess.run([sys.executable, '-c', {child!r}])"
        code = f"import subprocess, sys; print('here', flush=True); {start}"
        assert evidence.run_limited([sys.executable, "-c", code], 1.0, log) is None
        assert waits[0] == 1.0
        with reading[0] as file:
            assert file.read() == ""
        assert "here" in log.read_text()

    def test_a_process_that_ends_before_the_limit_has_an_exit_code(self, tmp_path: Path) -> None:
        code = "raise SystemExit(3)"
        assert evidence.run_limited([sys.executable, "-c", code], 300.0, tmp_path / "log") == 3


class TestSummary:
    def test_fits_one_screen_and_names_each_step(self, tmp_path: Path) -> None:
        collect(tmp_path, Steps(tmp_path, pytest=1))
        lines = summary(tmp_path)
        assert len(lines) < 40
        text = "\n".join(lines)
        assert "NVIDIA H200, driver 570.1, torch 2.11.0, Triton 3.6.0, eca_triton 0.1.0, now" in text
        assert "  smoke      failed, exit code 1, 0 s" in text
        assert "copy       4000 GB/s at 206 MB" in text
        assert "smoke      27 tests passed, 1 failed, 2 skipped" in text
        assert (
            "inference, 128x224, bf16, channels-last: ECA tax +24.0% stock, +1.0% ours; 1.228x stock" in text
        )
        assert "goal met: ecaresnet50d on an H200: ECA tax in compiled inference at most 2 %: +1.0 %" in text
        assert "goal not measured: ecaresnet50d on an H200: training step at least 1.1x" in text
        assert "tuned      3 keys: 1.10x as fast as the heuristic's choice, at best 1.50x" in text
        assert "op         2 rows of 2 agree; 1 were left out" in text
        assert "  goal met: op at least 0.90 of copy bandwidth" in text

    def test_has_what_a_machine_without_a_gpu_measured(self, tmp_path: Path) -> None:
        collect(tmp_path, Steps(tmp_path), gpu=False)
        text = "\n".join(summary(tmp_path))
        assert "host       eca_triton.eca up to the driver: 7.2 us" in text
        how = "lowered for an H200 that is not there"
        assert f"compile    ecaresnet26t inference channels-last: stock 8.0 s, ours 9.5 s ({how}" in text

    @pytest.mark.parametrize(("code", "says"), [(0, True), (1, False), (None, False)])
    def test_says_that_nothing_was_won(self, tmp_path: Path, code: int | None, says: bool) -> None:
        """The table is not written then; where tuning broke off, its step says so."""
        collect(tmp_path, Steps(tmp_path, autotune=code))
        (tmp_path / "tuned.json").unlink()
        text = "\n".join(summary(tmp_path))
        assert ("tuned      0 keys: none takes 2 % less time than the heuristic's choice" in text) == says

    def test_broken_files_are_no_figures(self, tmp_path: Path) -> None:
        collect(tmp_path, Steps(tmp_path, network=None))
        (tmp_path / "network.json").write_text('{"command": "network", "rows": [')
        (tmp_path / "smoke.xml").write_text("")
        text = "\n".join(summary(tmp_path))
        assert "  network    stopped at its limit, 0 s" in text
        assert "network    ecaresnet50d" not in text
        assert "tests passed" not in text


class TestCommand:
    def test_prints_the_summary_and_writes_it(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
    ) -> None:
        monkeypatch.setattr(command, "run_limited", Steps(tmp_path))
        assert main(["evidence", "--out", str(tmp_path)], device=CPU) == 0
        printed, written = capsys.readouterr().out, (tmp_path / "summary.txt").read_text()
        assert printed.endswith(written)
        assert (tmp_path / "evidence.log").read_text().endswith("network")

    def test_a_step_that_fails_is_an_exit_code(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(command, "run_limited", Steps(tmp_path, copy=1))
        assert main(["evidence", "--out", str(tmp_path)], device=CPU) == 1

    def test_a_folder_is_of_one_run(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
    ) -> None:
        (tmp_path / "copy.json").write_text("of another run")
        steps = Steps(tmp_path)
        monkeypatch.setattr(command, "run_limited", steps)
        assert main(["evidence", "--out", str(tmp_path)], device=CPU) == 2
        assert f"nothing was measured: {tmp_path} is not empty" in capsys.readouterr().out
        assert steps.limits == []
        assert [path.name for path in tmp_path.iterdir()] == ["copy.json"]

    def test_each_run_of_a_day_has_a_folder_of_its_own(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
    ) -> None:
        monkeypatch.setattr(command, "RESULTS", tmp_path)
        monkeypatch.setattr(command, "now", lambda: "2026-11-28 09:00 UTC")
        names = [f"cpu-2026-11-28{end}" for end in ("", "-2", "-3")]
        for name in names:
            monkeypatch.setattr(command, "run_limited", Steps(tmp_path / name))
            assert main(["evidence"], device=CPU) == 0
            assert capsys.readouterr().out.endswith(f"written to {tmp_path / name}\n")
        assert sorted(path.name for path in tmp_path.iterdir()) == names

    def test_the_tables_that_it_names_are_those_that_its_steps_read(
        self, tmp_path: Path, table_folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The shipped ones: not the user's, which is in force around it."""
        store.save(table(forward(128, 256, 784)))
        users = fingerprint()
        read: list[str] = []

        def step(arguments: Sequence[str], limit_s: float, log: Path) -> int:
            read.append(os.environ["ECA_TRITON_TUNED"])
            return 0

        monkeypatch.setattr(command, "run_limited", step)
        assert main(["evidence", "--out", str(tmp_path / "evidence")], device=CPU) == 0
        machine = load(tmp_path / "evidence" / "evidence.json", "evidence")["machine"]
        assert users
        assert machine["tuned"] == "none"
        assert set(read) == {"shipped"}
        assert fingerprint() == users

    @pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
    def test_without_a_gpu_host_and_compile_run_and_the_others_are_named(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
    ) -> None:
        steps = Steps(tmp_path)
        monkeypatch.setattr(command, "run_limited", steps)
        assert main(["evidence", "--out", str(tmp_path)]) == 2
        assert (tmp_path / "evidence.log").read_text().endswith("doctorhostcompile")
        assert (
            "left out, for there is no CUDA device: copy, smoke, op, tune, network" in capsys.readouterr().out
        )


def test_copy_has_the_bandwidth_of_each_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bandwidth, "MEGABYTES", (2, 1))
    monkeypatch.setattr(bandwidth.measure, "__defaults__", ((2, 1),))

    def timer(calls: Any, sets: int, repeats: int) -> dict[str, list[float]]:
        return {
            name: [call(0).nbytes / 1e6 * (1 + i) for i in range(repeats)] for name, call in calls.items()
        }

    assert main(["copy", "--repeats", "3", "--out", str(tmp_path)], timer=timer, device=CPU) == 0
    rows = load(tmp_path / "copy.json", "copy")["rows"]
    assert [(row["bytes"], row["median_us"], row["gbps"]) for row in rows] == [
        (2_000_000, 4.0, 1000.0), (1_000_000, 2.0, 1000.0),
    ]  # fmt: skip


class TestCheckout:
    def test_torch_finds_the_backend_without_an_installation(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(metadata, "entry_points", lambda **_: metadata.EntryPoints())
        with checkout.found_by_torch():
            folder = sys.path[-1]
            (found,) = metadata.distributions(path=[folder])
            (point,) = found.entry_points
            assert point.load().__name__ == "eca_triton"
        assert folder not in sys.path
        assert not Path(folder).exists()

    def test_its_entry_point_is_the_packages(self) -> None:
        text = (ROOT / "pyproject.toml").read_text()
        assert f'[project.entry-points.{checkout.GROUP}]\n{checkout.NAME} = "{checkout.VALUE}"\n' in text


def test_goals_speak_of_one_gpu() -> None:
    from benchmarks.evidence.goals import verdicts

    assert all("goal not measured" in line for line in verdicts([network_document(gpu="NVIDIA A100")]))
    (line,) = (line for line in verdicts([network_document("training")]) if "training" in line)
    assert line.startswith(
        "goal met: ecaresnet50d on an H200: training step at least 1.1x stock torch.compile: 1.228x"
    )
