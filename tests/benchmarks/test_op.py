"""`python -m benchmarks op`, with everything real but the GPU and its clock."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from paths import ROOT
from tuned import H200, entry, key_of

from benchmarks.__main__ import main
from benchmarks.op import contenders, figures, sites, tails
from benchmarks.op import measure as op
from benchmarks.op.sites import Row
from benchmarks.shared.document import load, percentile
from benchmarks.shared.machine import folder_name
from benchmarks.shared.tensors import LAYOUTS
from eca_triton.activations import ACTIVATIONS, PRE_ACTIVATIONS
from eca_triton.launch.call import BackwardCall, EcaCall
from eca_triton.reference.arguments import BackwardArguments, SiteArguments
from eca_triton.tuning import store
from eca_triton.tuning.choice import choose
from eca_triton.tuning.config import Choice
from eca_triton.tuning.targets import TARGETS
from eca_triton.util import timing

CPU = torch.device("cpu")
SMALL = ["op", "--shapes", "16x6x6", "--batch", "2", "--contenders", "eager", "op"]
TWO_ROWS = [*SMALL, "--variants", "eca"]
US = {"copy": 10.0, "eager": 40.0, "inductor": 24.0, "op": 12.0}


def map_of(layout: str) -> torch.Tensor:
    return torch.empty(2, 16, 6, 6, dtype=torch.bfloat16).to(memory_format=LAYOUTS[layout])


def fake_timer(calls: timing.Calls, sets: int, repeats: int) -> dict[str, list[float]]:
    """`US`, with a spread of 10 %, once every call has run on every set."""
    for call in calls.values():
        assert all(call(index).shape == (2, 16, 6, 6) for index in range(sets))
    return {name: [US[name] * (0.9 + 0.2 * i / (repeats - 1)) for i in range(repeats)] for name in calls}


def run(folder: Path, *arguments: str, timer: timing.Timer = fake_timer) -> tuple[int, dict[str, Any]]:
    code = main([*arguments, "--out", str(folder)], timer=timer, device=CPU)
    return code, json.loads((folder / "op.json").read_text())


@pytest.fixture
def wrong_op(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contenders, "_op", lambda tail, *inputs: tail(*inputs) * 1.1)


class TestCommand:
    def test_measures_every_row_and_writes_a_table_and_json(self, tmp_path: Path, capsys: Any) -> None:
        code, document = run(tmp_path, *SMALL)
        assert code == 0
        assert document["left_out"] == []
        assert {"gpu", "driver", "cpu", "torch", "triton", "commit", "tuned"} <= set(document["machine"])
        assert len(document["rows"]) == len(tails.HEADLINE) * len(LAYOUTS)
        assert {row["status"] for row in document["rows"]} == {"ok"}
        assert all(row["checks"]["op"]["passed"] for row in document["rows"])
        written = capsys.readouterr().out
        assert "of copy" in written
        assert written.count("2x16x6x6") >= len(document["rows"])
        assert main(["op", "--table", str(tmp_path / "op.json")]) == 0
        assert "| 2x16x6x6 | channels-last | ECA | tile_channels_last |" in capsys.readouterr().out

    def test_a_wrong_result_has_no_figure_and_a_nonzero_exit(
        self, tmp_path: Path, capsys: Any, wrong_op: None
    ) -> None:
        code, document = run(tmp_path, *TWO_ROWS)
        assert code == 1
        assert all(row["status"] == "FAIL" and "results" not in row for row in document["rows"])
        written = capsys.readouterr().out
        assert "FAIL 2x16x6x6 contiguous eca: error of op" in written
        assert " us" not in written.split("GB/s")[1].split("FAIL 2x")[0]

    def test_every_tail_of_the_op_can_be_asked_for(self, tmp_path: Path) -> None:
        code, document = run(tmp_path, *SMALL, "--variants", "all")
        assert code == 0
        assert {row["variant"] for row in document["rows"]} == set(tails.TAILS)
        assert all(set(row["results"]) == {"copy", "eager", "op"} for row in document["rows"])
        used = [
            {getattr(kind, name) for kind in tails.TAILS.values()}
            for name in ("activation", "pre_activation")
        ]
        assert used == [set(ACTIVATIONS), set(PRE_ACTIVATIONS)], "every one that the op has"

    def test_nan_is_a_wrong_result(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(contenders, "_op", lambda tail, x: tail(x) * torch.nan)
        code, document = run(tmp_path, *TWO_ROWS)
        assert code == 1
        assert document["rows"][0]["checks"]["op"]["error"] == "nan"

    def test_what_cannot_run_is_named_beside_the_figures_of_the_others(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
    ) -> None:
        def broken(*_: object) -> None:
            raise RuntimeError("no kernel image")

        monkeypatch.setattr(contenders, "_op", broken)
        code, document = run(tmp_path, *TWO_ROWS)
        assert code == 1
        assert document["rows"][0]["errors"] == {"op": "RuntimeError: no kernel image"}
        assert set(document["rows"][0]["results"]) == {"copy", "eager"}
        assert "op: RuntimeError: no kernel image" in capsys.readouterr().out

    def test_a_timer_that_breaks_off_leaves_a_row_without_figures(self, tmp_path: Path) -> None:
        def broken(*_: object) -> dict[str, list[float]]:
            raise torch.OutOfMemoryError("too large")

        code, document = run(tmp_path, *TWO_ROWS, timer=broken)
        assert code == 1
        assert [row["status"] for row in document["rows"]] == ["ERROR"] * 2

    def test_stops_in_time_and_says_what_was_left_out(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
    ) -> None:
        now = iter(range(0, 10_000, 3))  # each look at the clock is 3 s after the one before
        monkeypatch.setattr(op, "time", SimpleNamespace(monotonic=lambda: float(next(now))))
        code, document = run(tmp_path, *SMALL, "--budget-s", "20")
        assert code == 0
        done = len(document["rows"])
        assert 0 < done < 6
        assert len(document["left_out"]) == 6 - done
        assert f"not measured, {6 - done} rows" in capsys.readouterr().out

    def test_an_interrupted_run_keeps_what_it_has(self, tmp_path: Path) -> None:
        rows = []

        def interrupted(*arguments: Any) -> dict[str, list[float]]:
            if rows:
                raise KeyboardInterrupt
            rows.append(1)
            return fake_timer(*arguments)

        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, *TWO_ROWS, timer=interrupted)
        document = load(tmp_path / "op.json", "op")
        assert len(document["rows"]) == len(document["left_out"]) == 1

    @pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
    def test_without_a_gpu_nothing_is_measured(self, tmp_path: Path, capsys: Any) -> None:
        assert main(["op", "--out", str(tmp_path)]) == 2
        assert capsys.readouterr().out == "not measured: no CUDA device\n"
        assert not list(tmp_path.iterdir())

    def test_a_dry_run_lists_rows_bytes_and_kernels(self, capsys: Any) -> None:
        assert main(["op", "--dry-run", "--shapes", "resnet", "--batch", "128", "--variants", "eca"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) == 1 + 8 + 1
        assert lines[2].split() == ["128x256x56x56", "contiguous", "ECA", "5", "205.52", "411.04", "tile"]

    @pytest.mark.parametrize("arguments", [["--shapes", "resnet50"], ["--shapes", "0x7x7"], ["--batch", "0"]])
    def test_wrong_arguments(self, arguments: list[str], capsys: Any) -> None:
        with pytest.raises(SystemExit, match="2"):
            main(["op", *arguments])
        assert arguments[1] in capsys.readouterr().err


class TestRows:
    def test_the_default_set_is_every_combination_once(self) -> None:
        rows = sites.rows(list(sites.TAPS))
        assert len(rows) == len(set(rows)) == 13 * 4 * 2 * 3

    def test_the_most_telling_come_first(self) -> None:
        rows = sites.rows(list(sites.TAPS))
        assert {(row.batch, row.variant) for row in rows[:16]} == {(128, "eca"), (128, "bn_eca_add_relu")}
        assert all(row.shape in sites.NETWORKS["resnet"] for row in rows[:48])
        assert rows[-1].batch == 32
        assert rows[-1].shape in sites.NETWORKS["mobilenet_v2"]

    def test_bytes(self) -> None:
        row = Row((256, 56, 56), 128, "contiguous", "eca")
        assert row.map_bytes == 128 * 256 * 56 * 56 * 2
        assert row.least_bytes == 2 * row.map_bytes
        assert Row((8, 4, 4), 1, "contiguous", "bn_eca_add_relu", "fp32").least_bytes == 3 * 8 * 16 * 4

    def test_max_autotune_joins_where_it_matters_most(self) -> None:
        assert "max-autotune" in Row((256, 56, 56), 128, "contiguous", "eca").contenders
        assert "max-autotune" not in Row((256, 56, 56), 8, "contiguous", "eca").contenders

    def test_maps_that_are_not_of_a_network_have_the_adaptive_taps(self) -> None:
        assert sites.parse_shapes(["64x9x9", "64x9x9"]) == [(64, 9, 9)]
        assert Row((64, 9, 9), 1, "contiguous", "eca").taps == 3


class TestKernel:
    """The column says what the op launches, so it asks as the op does."""

    @pytest.mark.parametrize("layout", LAYOUTS)
    @pytest.mark.parametrize("variant", tails.TAILS)
    def test_the_forward_asks_as_its_launch_does(self, variant: str, layout: str) -> None:
        row = Row((16, 6, 6), 2, layout, variant)
        tail, x, residual = row.tail, map_of(layout), map_of(layout) if row.tail.adds else None
        bn = (torch.ones(16), torch.ones(16)) if tail.normalises else (None, None)
        options = (1e-5, tail.pre_activation, tail.circular, tail.gate, tail.gain, tail.activation)
        a = SiteArguments(x, torch.ones(3), None, *bn, None, None, residual, *options)
        assert row.problems(H200) == [EcaCall(a, x).problem(H200)]

    @pytest.mark.parametrize("layout", LAYOUTS)
    @pytest.mark.parametrize(
        ("variant", "bits", "residual", "d_residual"),
        [
            ("eca", False, False, False),
            ("eca_add_relu", True, False, True),
            ("eca_add_silu", False, True, True),
            ("eca_gain_add", False, False, False),
        ],
    )
    def test_the_backward_asks_as_its_launch_does(
        self, variant: str, layout: str, bits: bool, residual: bool, d_residual: bool
    ) -> None:
        row, x = Row((16, 6, 6), 2, layout, variant, direction="backward"), map_of(layout)
        tail, gates = row.tail, torch.ones(2, 16)
        a = BackwardArguments(
            x, x, torch.ones(3), *[None] * 5, x if residual else None, gates, gates if bits else None,
            activation=tail.activation,
        )  # fmt: skip
        call = BackwardCall(a, x, x if d_residual else None, gates, None, None)
        assert row.problems(H200) == [call.problem(H200)]

    def test_a_table_has_its_say_on_a_gpu_that_it_knows(
        self, table_folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        row = Row((256, 56, 56), 128, "contiguous", "eca")
        (problem,) = row.problems(H200)
        assert choose(problem).kernel == "tile"
        store.save({key_of(problem): entry(Choice("two_pass", None))})
        known = TARGETS["h200"].properties()
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: known)
        assert row.kernel(op.tables_know(torch.device("cuda", 0))) == "two_pass"
        assert row.kernel(op.tables_know(CPU)) == "tile"


class TestFigures:
    @pytest.mark.parametrize(("share", "value"), [(0.0, 1.0), (0.2, 1.8), (0.5, 3.0), (1.0, 5.0)])
    def test_percentiles(self, share: float, value: float) -> None:
        assert percentile([5.0, 1.0, 4.0, 2.0, 3.0], share) == pytest.approx(value)

    def test_no_samples_are_no_figure(self) -> None:
        with pytest.raises(ValueError, match="at least one sample"):
            percentile([], 0.5)

    def test_bandwidth_share_of_copy_and_speedup(self) -> None:
        row = Row((256, 56, 56), 128, "contiguous", "eca_add_relu")
        found = figures.figures(
            row, {"copy": [100.0] * 3, "inductor": [250.0] * 3, "op": [120.0, 125.0, 130.0]}
        )
        assert found["op"]["median_us"] == 125.0
        assert (found["op"]["p20_us"], found["op"]["p80_us"]) == (122.0, 128.0)
        assert found["op"]["gbps"] == pytest.approx(3 * row.map_bytes / 125e-6 / 1e9, abs=0.1)
        assert found["op"]["share_of_copy"] == pytest.approx(3 / 125 / (2 / 100))
        assert found["op"]["speedup"] == 2.0
        assert found["copy"]["gbps"] == pytest.approx(2 * row.map_bytes / 100e-6 / 1e9, abs=0.1)
        assert "share_of_copy" not in found["copy"]

    def test_ratios_are_those_of_each_round(self) -> None:
        """A clock that slows down changes none, whatever it does to the medians."""
        row, speed = Row((256, 56, 56), 128, "contiguous", "eca"), [1.0, 2.0, 4.0]
        us = {"copy": [100.0, 100.0, 130.0], "inductor": [210.0, 200.0, 200.0], "op": [100.0, 125.0, 100.0]}
        slowing = {name: [a * b for a, b in zip(each, speed, strict=True)] for name, each in us.items()}
        found = figures.figures(row, slowing)["op"]
        assert found == figures.figures(row, us)["op"] | {
            name: found[name] for name in ("median_us", "p20_us", "p80_us", "gbps")
        }
        parts = ("", "_p20", "_p80")
        assert [found[f"share_of_copy{part}"] for part in parts] == [1.0, 0.88, 1.18]
        assert [found[f"speedup{part}"] for part in parts] == [2.0, 1.76, 2.06]
        assert figures.figures(row, us)["op"]["median_us"] == 100.0

    def test_ratios_have_their_spread_in_the_table(self) -> None:
        row = Row((256, 56, 56), 128, "contiguous", "eca")
        us = {"copy": [100.0] * 2, "inductor": [200.0, 240.0], "op": [100.0] * 2}
        record = figures.record(
            row, "tile", status="ok", plan=None, errors={}, results=figures.figures(row, us)
        )
        columns, (cells,) = figures.table({"rows": [record]})
        first = columns.index("of copy")
        assert columns[first : first + 4] == ["of copy", "p20-p80", "x Inductor", "p20-p80"]
        assert cells[first : first + 4] == ["100%", "100%-100%", "2.20", "2.08-2.32"]

    def test_goals_name_the_worst_row(self) -> None:
        samples = {"copy": [100.0], "inductor": [200.0], "op": [105.0]}
        slow = samples | {"op": [150.0]}
        rows = [
            figures.record(row, "tile", status="ok", results=figures.figures(row, each))
            for batch, each in ((128, samples), (128, slow), (1, samples))
            for row in [Row((256, 56, 56), batch, "contiguous", "eca")]
        ]
        lines = figures.goals(rows)
        assert any(
            line.startswith("goal MISSED: op at least 0.90 of copy") and "1 of 2" in line for line in lines
        )
        assert any("worst 1.33 at 128x256x56x56 contiguous eca" in line for line in lines)
        assert any("batch <= 8: 0 of 1 rows" in line for line in lines)


class TestTiming:
    @pytest.mark.parametrize("input_bytes", [10**3, 10**5, 10**6, 10**7, 10**8, 10**9])
    def test_inputs_change_over_more_than_four_times_the_l2(self, input_bytes: int) -> None:
        l2_bytes = 60 << 20
        sets = timing.input_sets(input_bytes, l2_bytes)
        calls = timing.calls_per_replay(sets)
        assert sets >= 2
        assert calls >= timing.LEAST_CALLS
        assert calls % sets == 0
        # Sets that do not fill it are used once, after everything else has been evicted.
        assert sets * input_bytes > 4 * l2_bytes or calls == sets == timing.MAX_SETS

    def test_graphs_are_replayed_in_turn_each_from_a_cold_l2(self, monkeypatch: pytest.MonkeyPatch) -> None:
        log: list[str] = []
        now_ms = 0.0

        def captured(call: Any, sets: int, count: int) -> SimpleNamespace:
            def replay() -> None:
                nonlocal now_ms
                now_ms += count * (0.5 if call == "slow" else 0.25)
                log.append(call)

            return SimpleNamespace(replay=replay)

        class Event:
            def record(self) -> None:
                self.time_ms = now_ms

            def elapsed_time(self, end: Event) -> float:
                return end.time_ms - self.time_ms

        monkeypatch.setattr(timing, "_captured", captured)
        monkeypatch.setattr(timing, "_event", Event)
        monkeypatch.setattr(timing, "_evict", lambda: log.append("evict"))
        monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
        calls: Any = {"fast": "fast", "slow": "slow"}
        assert timing.time_in_turn(calls, 2, 3) == {"fast": [250.0] * 3, "slow": [500.0] * 3}
        assert log[:2] == ["fast", "slow"], "warm"
        assert log[2::2] == ["evict"] * 6
        assert log[3::2] == ["fast", "slow", "slow", "fast", "fast", "slow"]


def test_a_folder_is_named_for_the_gpu_and_the_day() -> None:
    assert folder_name("NVIDIA H200", "2026-11-22 09:00 UTC") == "nvidia-h200-2026-11-22"


def test_every_benchmark_of_the_host_can_be_collected() -> None:
    command = [sys.executable, "-m", "pytest", "benchmarks", "--collect-only", "-q"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout
    assert "test_launch.py" in done.stdout
    assert "test_host.py" in done.stdout
