"""`python -m benchmarks network`, with everything real but the GPU, its clock, compilers and sizes."""

from __future__ import annotations

import csv
import json
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("timm")

import timm
from timm.layers import EcaModule, SEModule
from timm.layers.cbam import CbamModule

from benchmarks.__main__ import main
from benchmarks.network import figures as network_figures
from benchmarks.network import measure as network
from benchmarks.network import timm_counts
from benchmarks.network.measure import Plan, settings
from benchmarks.shared import twins
from eca_triton import ECA

CPU = torch.device("cpu")
SMALL = ["network", "--networks", "ecaresnet50d", "--layouts", "channels_last", "--size", "8", "--batch", "4"]


class Net(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8)
        make = {"eca": EcaModule, "plain": nn.Identity, "se": SEModule, "cbam": CbamModule}
        self.se = make[kind](8)
        self.head = nn.Linear(8, 1000)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x))
        return self.head(torch.relu(self.se(x) + x).mean((2, 3)))


@pytest.fixture(autouse=True)
def small_networks(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A convolution for each network, and no compiler; a test fills in by whom a network is made wrong."""
    wrong: dict[str, Any] = {}

    def build(family: str, kind: str) -> nn.Module:
        with torch.device("meta"):
            return Net(kind)

    monkeypatch.setattr(twins, "build", build)
    monkeypatch.setattr(network, "_compiled", lambda module, who: wrong.get(who, nn.Sequential)(module))
    return wrong


def ticking() -> Any:
    """A clock on which each call takes a microsecond more than the one before, once it has run."""
    ticks = count(100)

    def clock(step: Any) -> float:
        step()
        return float(next(ticks))

    return clock


def run(folder: Path, *arguments: str, clock: Any = None) -> tuple[int, dict[str, Any]]:
    code = main([*SMALL, *arguments, "--out", str(folder)], device=CPU, clock=clock or ticking())
    return code, json.loads((folder / "network.json").read_text())


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


class TestCommand:
    def test_each_network_beside_its_twins_in_both_directions(self, tmp_path: Path, capsys: Any) -> None:
        code, document = run(tmp_path, "--repeats", "3")
        assert code == 0
        assert [row["direction"] for row in document["rows"]] == ["inference", "training"]
        for row in document["rows"]:
            assert row["status"] == "ok"
            assert set(row["results"]) == set(row["checks"])
            assert set(row["results"]) == {
                f"{kind}/{who}" for kind in twins.KINDS for who in ("eager", "inductor")
            } | {"eca/ours"}
            assert row["results"]["eca/ours"]["samples"] == 3
            assert set(row["tax"]) == set(row["x_se"]) == set(row["x_cbam"]) == {"eager", "inductor", "ours"}
            assert set(row["speedup"]) == {"eager", "ours"}
        written = capsys.readouterr().out
        assert "resnet50d+se    inference" in written
        assert "resnet50d+cbam  inference" in written

    def test_timms_columns_come_first(self, tmp_path: Path) -> None:
        run(tmp_path, "--contenders", "inductor", "ours", clock=lambda step: 2000.0)
        infer, train = (rows_of(tmp_path / f"network-{name}.csv") for name in ("infer", "train"))
        timed = ["samples_per_sec", "step_time", "batch_size", "img_size"]
        for rows, prefix, counts in ((infer, "infer", ["infer_gmacs", "infer_macts"]), (train, "train", [])):
            theirs = ["model", *(f"{prefix}_{name}" for name in timed), "param_count", *counts]
            assert list(rows[0])[: len(theirs) + 1] == [*theirs, "contender"]
        assert [row["model"] for row in infer] == [
            "ecaresnet50d",
            "ecaresnet50d",
            "resnet50d",
            "resnet50d+se",
            "resnet50d+cbam",
        ]
        first = infer[0]
        assert (first["infer_samples_per_sec"], first["infer_step_time"]) == ("2000.0", "2.0")
        assert (first["infer_batch_size"], first["infer_img_size"], first["param_count"]) == (
            "4",
            "8",
            "0.01",
        )
        assert (first["infer_gmacs"], first["infer_macts"]) == ("0.0", "0.0")
        names = ("contender", "tax", "speedup", "x_se", "x_cbam_p80")
        assert [tuple(row[name] for name in names) for row in infer] == [
            ("inductor", "0.0", "", "1.0", "1.0"), ("ours", "0.0", "1.0", "1.0", "1.0"),
            ("inductor", "", "", "", ""), ("inductor", "0.0", "", "", ""), ("inductor", "0.0", "", "", ""),
        ]  # fmt: skip
        assert train[0]["train_samples_per_sec"] == "2000.0"

    @pytest.mark.parametrize("direction", ["inference", "training"])
    def test_a_wrong_result_has_no_figure(
        self, tmp_path: Path, small_networks: Any, capsys: Any, direction: str
    ) -> None:
        def attention_left_out(module: nn.Module) -> Any:
            module.se = nn.Sequential(module.se, nn.Hardsigmoid())
            return module

        small_networks["ours"] = attention_left_out
        code, document = run(tmp_path, "--directions", direction)
        assert code == 1
        (row,) = document["rows"]
        assert row["status"] == "FAIL"
        assert "eca/ours" not in row["results"]
        assert "ours" not in row["tax"]
        assert row["results"]["eca/inductor"]["samples"] == 20
        assert (
            f"FAIL ecaresnet50d {direction}, 4x8, bf16, channels-last eca/ours: " in capsys.readouterr().out
        )

    def test_a_gate_of_another_channel_is_a_wrong_result(self, tmp_path: Path, small_networks: Any) -> None:
        """Which gates of about one half everywhere would not show."""

        def mirrored(module: nn.Module) -> Any:
            module.se.conv.weight.data = module.se.conv.weight.data.flip(-1)
            return module

        small_networks["ours"] = mirrored
        code, document = run(tmp_path, "--directions", "inference", "--kinds", "eca")
        assert code == 1
        check = document["rows"][0]["checks"]["eca/ours"]
        assert check["error"] > 2 * check["allowed"]

    def test_a_wrong_gradient_of_an_attention_has_no_figure(
        self, tmp_path: Path, small_networks: Any
    ) -> None:
        """Of three numbers among thousands."""

        def half(module: nn.Module) -> Any:
            module.se.conv.weight.register_hook(lambda grad: grad / 2)
            return module

        small_networks["ours"] = half
        code, document = run(tmp_path, "--directions", "training", "--kinds", "eca")
        assert code == 1
        assert document["rows"][0]["checks"]["eca/ours"]["tensor"] == "attention"

    def test_what_cannot_run_is_named_beside_the_figures_of_the_others(
        self, tmp_path: Path, small_networks: Any
    ) -> None:
        def broken(module: nn.Module) -> Any:
            raise RuntimeError("no kernel image")

        small_networks["ours"] = broken
        code, document = run(tmp_path, "--directions", "inference", "--kinds", "eca", "plain")
        assert code == 1
        assert document["rows"][0]["errors"] == {"eca/ours": "RuntimeError: no kernel image"}
        assert set(document["rows"][0]["tax"]) == {"eager", "inductor"}

    def test_stops_in_time_with_what_tells_most(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        now = count()  # each look at the clock is a second after the one before
        monkeypatch.setattr(network, "time", SimpleNamespace(monotonic=lambda: float(next(now))))
        code, document = run(tmp_path, "--budget-s", "10")
        assert code == 0
        (row,) = document["rows"]
        assert list(row["checks"]) == ["eca/inductor", "plain/inductor", "eca/ours"]
        assert row["left_out"] == [
            f"{kind}/{who}"
            for kind, who in (
                ("eca", "eager"), ("plain", "eager"), ("se", "inductor"), ("se", "eager"),
                ("cbam", "inductor"), ("cbam", "eager"),
            )
        ]  # fmt: skip
        assert row["tax"].keys() == {"inductor", "ours"}
        assert document["left_out"] == ["ecaresnet50d training channels_last 4x8 bf16"]

    @pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
    def test_without_a_gpu_counts_are_shown_and_said_to_be_no_times(
        self, tmp_path: Path, capsys: Any
    ) -> None:
        wanted = ["--networks", "ecaresnet50d", "eca_resnet50", "--directions", "inference"]
        arguments = ["network", *wanted, "--layouts", "channels_last", "--out", str(tmp_path)]
        assert main(arguments) == 2
        first, *lines = capsys.readouterr().out.splitlines()
        assert first == "not measured: no CUDA device"
        headings = [line for line in lines if line.startswith("Inference")]
        assert len(headings) == 2
        assert all("; bf16, 128 images of 224 x 224, " in line for line in headings)
        assert all("channels-last, default" in line and ": counted, not timed; " in line for line in headings)
        shown = [line.split()[0] for line in lines if line.startswith("eca")]
        assert shown == ["ecaresnet50d", "eca_resnet50"]
        assert lines[-1] == "counted by `python -m benchmarks tax --set paper`"
        assert not list(tmp_path.iterdir())


def test_ratios_are_those_of_each_round() -> None:
    """A clock that slows down by the round changes no ratio."""
    speed = [1.0, 2.0, 3.0]
    us = {
        "eca/inductor": 120.0,
        "plain/inductor": 100.0,
        "eca/ours": 101.0,
        "se/inductor": 130.0,
        "cbam/inductor": 150.0,
    }
    found = network_figures.figures({name: [each * s for s in speed] for name, each in us.items()}, 128)
    same = dict.fromkeys(("median", "p20", "p80"))
    assert found["tax"] == {"inductor": dict.fromkeys(same, 0.2), "ours": dict.fromkeys(same, 0.01)}
    assert found["se_tax"] == {"inductor": dict.fromkeys(same, 0.3)}
    assert found["cbam_tax"] == {"inductor": dict.fromkeys(same, 0.5)}
    assert found["x_se"] == {"inductor": dict.fromkeys(same, 1.0833), "ours": dict.fromkeys(same, 1.2871)}
    assert found["x_cbam"]["inductor"]["median"] == 1.25, "CBAM takes a quarter longer than ECA"
    assert found["speedup"] == {"ours": dict.fromkeys(same, 1.1881)}
    assert found["results"]["eca/ours"]["images_per_s"] == pytest.approx(128 / 202e-6, abs=0.01)


def test_ours_under_max_autotune_is_held_against_max_autotune() -> None:
    us = {
        "eca/inductor": 9.0,
        "eca/max-autotune": 6.0,
        "eca/ours-max-autotune": 4.0,
        "plain/max-autotune": 5.0,
    }
    found = network_figures.figures({name: [each] for name, each in us.items()}, 1)
    assert found["speedup"]["ours-max-autotune"]["median"] == 1.5
    assert found["speedup"]["max-autotune"]["median"] == 1.5
    assert found["tax"]["ours-max-autotune"]["median"] == pytest.approx(-0.2)


def test_our_backend_runs_no_network_without_its_attention() -> None:
    entries = Plan([], twins.KINDS, list(network.BACKENDS), 0, 0).entries
    assert len(set(entries)) == len(entries) == 4 * 3 + 2
    assert entries[:3] == [("eca", "inductor"), ("plain", "inductor"), ("eca", "ours")]


@pytest.mark.parametrize(
    ("name", "size", "gmacs", "macts"),
    [
        ("resnet50", 224, 4.11, 11.11),
        ("resnet50d", 224, 4.35, 11.92),
        ("seresnet50t", 224, 4.32, 11.83),
        ("ecaresnet50t", 256, 5.64, 15.45),
        ("eca_resnet33ts", 256, 4.76, 11.66),
        ("eca_nfnet_l0", 224, 4.35, 10.47),
        ("nfnet_l0", 224, 4.36, 10.47),
    ],
)
def test_counts_are_those_that_timm_publishes(name: str, size: int, gmacs: float, macts: float) -> None:
    """In its results/benchmark-infer-amp-nhwc-pt240-cu124-rtx4090.csv."""
    with torch.device("meta"):
        model = timm.create_model(name)
    assert timm_counts.count(model, size) == (gmacs, macts)
    assert model.training


def test_our_op_counts_as_timms_module_does() -> None:
    many = 1 << 20  # of channels, so that theirs are in the last digits
    for module in (ECA(many, k_size=9), EcaModule(many, kernel_size=9)):
        model = nn.Sequential(nn.Conv2d(3, many, 1), module).to("meta")
        assert timm_counts.count(model, 1) == (round(many * (3 + 9) / 1e9, 2), round(2 * many / 1e6, 2))


def test_a_network_has_its_own_size_unless_another_is_asked_for() -> None:
    def sizes(size: int | None) -> list[int]:
        return [
            each.size for each in settings(twins.FAMILIES, ["inference"], ["contiguous"], 8, size, "bf16")
        ]

    assert sizes(None) == [224, 256, 224, 256, 256] + [224] * 6
    assert sizes(64) == [64] * 11
