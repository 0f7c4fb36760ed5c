"""`python -m eca_triton explain`: a row per ECA-like site, one JSON object, errors that help."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from own_model import OWN_MODEL
from paths import ROOT

import eca_triton
from eca_triton import report
from eca_triton.__main__ import main
from eca_triton.compile.reasons import REASONS

SITE_KEYS = [
    "name", "shape", "k", "plan", "lowered", "fused", "reason", "traffic_before", "traffic_after", "detail",
    "module", "source", "map_bytes", "time_before_us", "time_after_us",
]  # fmt: skip
TOTAL_KEYS = ["sites", "lowered"] + [
    f"{quantity}_{when}"
    for quantity in ("kernels", "external_calls", "bytes")
    for when in ("before", "after")
]


@pytest.fixture
def own_model(tmp_path: Path) -> str:
    file = tmp_path / "own_model.py"
    file.write_text(OWN_MODEL)
    return str(file)


def explain(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    """The JSON object that a successful run prints."""
    assert main(["explain", *arguments, "--json"]) == 0
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    return answer


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The message of a run that exits with 2 and prints nothing else."""
    assert main(["explain", *arguments]) == 2
    out, message = capsys.readouterr()
    assert out == ""
    return message


def test_every_site_of_a_timm_network_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    answer = explain(capsys, "timm:ecaresnet26t", "--batch", "8", "--size", "224", "--dtype", "bf16")
    assert (answer["schema"], answer["model"], answer["batch"]) == (1, "timm:ecaresnet26t", 8)
    assert all(list(site) == SITE_KEYS for site in answer["sites"])
    assert [site["name"] for site in answer["sites"]] == [
        f"layer{layer}.{block}.se" for layer in (1, 2, 3, 4) for block in (0, 1)
    ]
    first = answer["sites"][0]
    assert (first["shape"], first["k"], first["plan"], first["lowered"]) == (
        [8, 256, 56, 56],
        5,
        "convblock",
        True,
    )
    assert first["fused"] == ["conv", "batch_norm", "residual", "relu"]
    assert (first["reason"], first["traffic_before"], first["traffic_after"]) == (None, 5.0, 1.0)


def test_every_site_of_our_network_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    answer = explain(capsys, "eca_triton:eca_mobilenet_v2", "--batch", "4", "--size", "160")
    assert (answer["model"], answer["batch"]) == ("eca_triton:eca_mobilenet_v2", 4)
    assert answer["totals"]["sites"] == 17
    first = answer["sites"][0]
    assert (first["name"], first["shape"], first["k"]) == ("features.1.conv.3", [4, 16, 80, 80], 3)


def test_without_a_target_the_totals_of_the_network_are_null(
    capsys: pytest.CaptureFixture[str], own_model: str
) -> None:
    totals = explain(capsys, f"{own_model}:network", "--target", "none")["totals"]
    assert list(totals) == TOTAL_KEYS
    assert (totals["sites"], totals["lowered"]) == (2, 1)
    assert all(totals[key] is None for key in TOTAL_KEYS[2:])


def test_training_is_planned_differently(capsys: pytest.CaptureFixture[str], own_model: str) -> None:
    inference, training = (explain(capsys, f"{own_model}:network", *mode) for mode in ([], ["--training"]))
    assert [site["plan"] for site in inference["sites"]] == ["block", "skip"]
    assert [site["plan"] for site in training["sites"]] == ["batch_norm", "skip"]
    assert training["sites"][0]["fused"] == ["batch_norm", "relu"]


def test_a_target_changes_no_plan() -> None:
    """Maps without data have the layout, which plans depend on, that they would have on a GPU."""
    with torch.device("meta"):
        convolution = torch.nn.Conv2d(64, 64, 1, bias=False)
        model = torch.nn.Sequential(
            convolution, torch.nn.BatchNorm2d(64), eca_triton.ECA(64), torch.nn.ReLU()
        )
        x = torch.empty(8, 64, 32, 32).contiguous(memory_format=torch.channels_last)
    model = model.bfloat16().to(memory_format=torch.channels_last)
    planned, lowered = (
        report.explain(model, x.bfloat16(), target=target, training=True).sites for target in ("none", "h200")
    )
    assert planned[0].decision == lowered[0].decision


def test_a_site_left_alone_has_its_reason_and_no_traffic(
    capsys: pytest.CaptureFixture[str], own_model: str
) -> None:
    left = explain(capsys, f"{own_model}:network")["sites"][1]
    assert (left["plan"], left["lowered"], left["reason"], left["fused"]) == ("skip", False, "ECA104", [])
    assert left["traffic_before"] is left["traffic_after"] is None


@pytest.mark.parametrize("layout", [[], ["--channels-last"]], ids=["contiguous", "channels_last"])
def test_with_a_target_bytes_and_kernels_fall(
    capsys: pytest.CaptureFixture[str], own_model: str, layout: list[str]
) -> None:
    totals = explain(capsys, f"{own_model}:network", "--dtype", "bf16", "--target", "h200", *layout)["totals"]
    assert totals["lowered"] == 1
    assert totals["bytes_after"] < totals["bytes_before"]
    assert totals["kernels_after"] <= totals["kernels_before"]
    assert totals["external_calls_after"] <= totals["external_calls_before"]


def test_the_table_names_sites_reasons_and_totals(capsys: pytest.CaptureFixture[str], own_model: str) -> None:
    assert main(["explain", f"{own_model}:network", "--training"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^4 +64x32x32 +3 +batch_norm, relu +batch_norm ", out, re.MULTILINE)
    assert re.search(r"^1 .* skip ECA104 +- +-$", out, re.MULTILINE)
    assert "ECA104: an operation between convolution and multiplication" in out
    assert "1 of 2 sites lowered" in out


def test_stdout_holds_nothing_but_the_object(own_model: str) -> None:
    noisy = Path(own_model)
    noisy.write_text("print('a library that talks')\n" + noisy.read_text())
    done = subprocess.run(
        [sys.executable, "-m", "eca_triton", "explain", f"{own_model}:network", "--json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout)["totals"]["sites"] == 2
    assert "a library that talks" in done.stderr


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm:ecaresnet50", r"timm has no model 'ecaresnet50'; did you mean .*ecaresnet50"),
        ("eca_triton:eca_resnet51", r"eca_triton has no model 'eca_resnet51'; did you mean .*eca_resnet50"),
        ("eca_triton:", r"eca_triton has no model ''"),
        ("resnet", r"a model is timm:NAME, eca_triton:NAME or FILE.py:FACTORY, got 'resnet'"),
        ("missing.py:network", r"no such file: missing.py"),
        ("{own}:absent", r"has no function 'absent'"),
        ("{own}:not_a_pair", r"not_a_pair\(\) must return \(model, example_inputs\), got int"),
    ],
)
def test_what_cannot_be_found_is_named(
    capsys: pytest.CaptureFixture[str], own_model: str, name: str, message: str
) -> None:
    assert re.search(message, refused(capsys, name.replace("{own}", own_model)))


def test_a_page_is_written_beside_the_answer(
    capsys: pytest.CaptureFixture[str], own_model: str, tmp_path: Path
) -> None:
    page = tmp_path / "report.html"
    explain(capsys, f"{own_model}:network", "--target", "none", "--html", str(page))
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert f"{own_model}:network" in page.read_text(encoding="utf-8")


def test_a_difference_for_the_worse_exits_with_3(
    capsys: pytest.CaptureFixture[str], own_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [f"{own_model}:network", "--target", "none"]
    old = tmp_path / "old.json"
    old.write_text(json.dumps(explain(capsys, *arguments)))
    assert main(["explain", *arguments, "--diff", str(old)]) == 0
    assert capsys.readouterr().out == "nothing changed\n"
    monkeypatch.setenv("ECA_TRITON_DISABLE", "1")
    assert main(["explain", *arguments, "--diff", str(old)]) == 3
    assert "4: block -> skip ECA204\n" in capsys.readouterr().out
    assert main(["explain", *arguments, "--diff", str(old), "--json"]) == 3
    assert json.loads(capsys.readouterr().out)["diff"]["worse"] == ["4 is not lowered any more"]


def test_a_mode_goes_into_the_answer(capsys: pytest.CaptureFixture[str], own_model: str) -> None:
    arguments = f"{own_model}:network", "--target", "none", "--mode"
    assert explain(capsys, *arguments, "max-autotune")["mode"] == "max-autotune"
    assert "mode must be one of default" in refused(capsys, *arguments, "fast")


def test_an_old_file_that_does_not_fit_is_refused(
    capsys: pytest.CaptureFixture[str], own_model: str, tmp_path: Path
) -> None:
    old = tmp_path / "old.json"
    assert f"{old}: " in refused(capsys, f"{own_model}:network", "--diff", str(old))
    old.write_text('{"schema": 0}')
    assert "schema: expected 1, got 0" in refused(capsys, f"{own_model}:network", "--diff", str(old))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to measure on")
def test_nothing_is_measured_without_a_gpu(capsys: pytest.CaptureFixture[str], own_model: str) -> None:
    assert "--measure needs a GPU" in refused(capsys, f"{own_model}:network", "--measure")


def test_an_unknown_target_is_named_with_the_choices(
    capsys: pytest.CaptureFixture[str], own_model: str
) -> None:
    message = refused(capsys, f"{own_model}:network", "--target", "tpu")
    assert "unknown target 'tpu'; choose h200, h100, a100" in message


def test_a_factory_chooses_its_own_batch(capsys: pytest.CaptureFixture[str], own_model: str) -> None:
    assert "--batch and --size are for timm:NAME and eca_triton:NAME" in refused(
        capsys, f"{own_model}:network", "--batch", "4"
    )


def test_a_missing_timm_is_named(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    assert "timm is not installed; pip install 'eca_triton[timm]'" in refused(capsys, "timm:ecaresnet26t")


def test_without_timm_our_networks_say_what_they_need() -> None:
    code = """
        import sys
        sys.modules["timm"] = None  # every import of it fails
        from eca_triton.__main__ import main
        sys.exit(main(["explain", "eca_triton:eca_resnet50"]))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "eca_triton: eca_triton.models needs timm and torchvision: pip install 'eca_triton[timm]'\n"
    )


def test_a_model_that_cannot_run_exits_with_1(capsys: pytest.CaptureFixture[str], own_model: str) -> None:
    assert main(["explain", f"{own_model}:broken", "--json"]) == 1
    out, message = capsys.readouterr()
    assert out == ""
    assert f"{own_model}:broken could not be compiled" in message


class Terminal(io.StringIO):
    """Output that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_on_a_terminal_the_table_is_drawn_without_colour(
    monkeypatch: pytest.MonkeyPatch, own_model: str
) -> None:
    pytest.importorskip("rich", reason="the extra `cli` draws tables on terminals")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr(sys, "stdout", Terminal())
    assert main(["explain", f"{own_model}:network"]) == 0
    out = sys.stdout.getvalue()  # type: ignore[attr-defined]  # the Terminal set above
    assert "\x1b[1m" in out, "the heading is bold"
    assert not re.search(r"\x1b\[[0-9;]*(3|4|9|10)[0-9][;m]", out)


def test_without_rich_the_table_is_plain(monkeypatch: pytest.MonkeyPatch, own_model: str) -> None:
    monkeypatch.setitem(sys.modules, "rich.console", None)
    monkeypatch.setattr(sys, "stdout", Terminal())
    assert main(["explain", f"{own_model}:network"]) == 0
    out = sys.stdout.getvalue()  # type: ignore[attr-defined]  # as above
    assert "\nsite  CxHxW" in out
    assert "\x1b" not in out


def test_every_reason_has_its_line_in_the_documentation() -> None:
    described = re.findall(
        r"^\| <a .*></a>(ECA\d+) \|", (ROOT / "docs" / "reasons.md").read_text(), re.MULTILINE
    )
    assert described == sorted(REASONS)


def test_lowering_that_is_switched_off_is_a_reason(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, own_model: str
) -> None:
    monkeypatch.setenv("ECA_TRITON_DISABLE", "1")
    assert explain(capsys, f"{own_model}:network")["sites"][0]["reason"] == "ECA204"
