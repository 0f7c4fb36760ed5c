"""`python -m benchmarks op --backward`, with everything real but the GPU and its clock."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.__main__ import main
from benchmarks.op import contenders, figures, sites, tails, training
from benchmarks.op.sites import Row
from benchmarks.shared.tensors import LAYOUTS
from eca_triton.tuning.config import Device
from eca_triton.util import timing

CPU = torch.device("cpu")
H200 = Device(num_sms=132, warp_size=32)
SMALL = ["--shapes", "16x6x6", "--batch", "2"]


def fake_timer(calls: timing.Calls, sets: int, repeats: int) -> dict[str, list[float]]:
    """Ten microseconds each, once every call has run twice on every set, with other results on each."""
    for call in calls.values():
        once, again = ([call(index) for index in range(sets)] for _ in range(2))
        torch.testing.assert_close(once, again, rtol=0, atol=0)
        assert not torch.equal(once[0][0], once[1][0])
    return {name: [10.0] * repeats for name in calls}


def run(folder: Path, *arguments: str, timer: timing.Timer = fake_timer) -> tuple[int, list[dict[str, Any]]]:
    code = main(["op", "--backward", *SMALL, *arguments, "--out", str(folder)], timer=timer, device=CPU)
    return code, json.loads((folder / "op-backward.json").read_text())["rows"]


def row(variant: str, direction: str, layout: str = "contiguous", dtype: str = "bf16") -> Row:
    return Row((16, 6, 6), 2, layout, variant, dtype, direction)


class TestCommand:
    def test_times_backward_alone_and_with_its_forward(self, tmp_path: Path, capsys: Any) -> None:
        code, rows = run(tmp_path, "--contenders", "eager", "op")
        assert code == 0
        assert len(rows) == len(tails.HEADLINE) * len(LAYOUTS) * 2
        assert [each["direction"] for each in rows] == ["backward", "both"] * 6
        for each in rows:
            assert each["status"] == "ok"
            with_op = {"eager"} if each["variant"].startswith("bn") else {"eager", "op"}
            assert set(each["checks"]) == with_op, "the op's batch norm is that of inference"
            assert set(each["results"]) == with_op | {"copy"}
        assert main(["op", "--table", str(tmp_path / "op-backward.json")]) == 0
        assert "| 2x16x6x6 | contiguous | ECA, forward + backward | tile / tile |" in capsys.readouterr().out

    def test_every_tail_whose_gradients_can_be_judged(self, tmp_path: Path) -> None:
        code, rows = run(tmp_path, "--variants", "all", "--contenders", "eager", "op")
        assert code == 0
        measured = {each["variant"] for each in rows if "op" in each["results"]}
        assert measured == {name for name, kind in tails.TAILS.items() if not kind.normalises}
        assert "bn_relu_eca_add" not in {each["variant"] for each in rows}

    @pytest.mark.parametrize("tensor", [0, 1, 2], ids=["x", "residual", "conv.weight"])
    def test_a_wrong_gradient_has_no_figure(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, tensor: int
    ) -> None:
        class Wrong(torch.autograd.Function):
            """Of three tensors nothing in forward, 1.3 times one gradient in backward."""

            @staticmethod
            def forward(ctx: Any, *tensors: Tensor) -> tuple[Tensor, ...]:
                return tuple(each.clone() for each in tensors)

            @staticmethod
            def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
                return tuple(1.3 * grad if i == tensor else grad for i, grad in enumerate(grads))

        def op(tail: contenders.Tail, x: Tensor, residual: Tensor) -> Tensor:
            x, residual, weight = Wrong.apply(x, residual, tail.conv.weight)
            return torch.func.functional_call(tail, {"conv.weight": weight}, (x, residual))

        monkeypatch.setattr(contenders, "_op", op)
        code, rows = run(tmp_path, "--variants", "eca_add_relu", "--contenders", "eager", "op")
        assert code == 1
        assert all(each["status"] == "FAIL" and "results" not in each for each in rows)
        name = ("x", "residual", "conv.weight")[tensor]
        assert {each["checks"]["op"]["tensor"] for each in rows} == {name}
        assert f"contiguous eca_add_relu both: error of op of {name}'s gradient" in capsys.readouterr().out

    def test_what_has_no_backward_is_named(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(contenders, "_op", lambda tail, x: tail(x).detach())
        code, rows = run(tmp_path, "--variants", "eca", "--contenders", "eager", "op")
        assert code == 1
        assert all("does not require grad" in each["errors"]["op"] for each in rows)
        assert all(set(each["results"]) == {"copy", "eager"} for each in rows)

    def test_stops_in_time(self, tmp_path: Path) -> None:
        code, rows = run(tmp_path, "--variants", "eca", "--contenders", "eager", "--budget-s", "0.001")
        assert code == 0
        assert len(rows) == 1

    @pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
    def test_without_a_gpu_nothing_is_measured(self, tmp_path: Path, capsys: Any) -> None:
        assert main(["op", "--backward", "--out", str(tmp_path)]) == 2
        assert capsys.readouterr().out == "not measured: no CUDA device\n"
        assert not list(tmp_path.iterdir())


class TestRows:
    @pytest.mark.parametrize(
        ("variant", "forward", "backward"),
        [
            ("eca", 2, 3),
            ("eca_add_relu", 3.0625, 4.0625),
            ("bn_eca_add_relu", 4.0625, 6.0625),
            ("eca_gain_add", 3, 3),
            ("eca_add_silu", 3, 5),
        ],
    )
    def test_bytes(self, variant: str, forward: float, backward: float) -> None:
        s = row(variant, "both").map_bytes
        assert row(variant, "backward").least_bytes == backward * s
        assert row(variant, "both").least_bytes == (forward + backward) * s

    def test_one_of_ours_against_eager_and_stock_inductor(self) -> None:
        assert row("eca_add_relu", "both").contenders == ("eager", "inductor", "op")
        assert row("bn_eca_add_relu", "backward").contenders == ("eager", "inductor", "compiled")

    def test_kernels_are_those_that_the_launcher_picks(self) -> None:
        large = Row((256, 56, 56), 128, "channels_last", "eca_add_relu", direction="both")
        assert large.kernel(H200) == "lagged / lagged"
        assert Row((256, 56, 56), 128, "contiguous", "eca", direction="backward").kernel(H200) == "tile"
        assert row("bn_eca_add_relu", "both").kernel(H200) == "Inductor's", "whatever the layout"

    def test_either_direction_of_a_site_follows_the_other(self) -> None:
        rows = sites.rows(list(sites.TAPS), directions=("backward", "both"))
        assert len(rows) == len(set(rows)) == 13 * 4 * 2 * 3 * 2
        pairs = list(zip(rows[::2], rows[1::2], strict=True))
        assert all(
            a.direction == "backward" and str(a).removesuffix("backward") + "both" == str(b) for a, b in pairs
        )
        assert {(each.batch, each.variant) for each in rows[:48]} == {(128, name) for name in tails.HEADLINE}


def test_a_relu_that_rounding_opens_is_no_error() -> None:
    """The residual all but cancels the map, so that the last bit decides what passes."""
    torch.manual_seed(0)
    site = row("eca_add_relu", "both", dtype="fp32")
    tail, inputs = contenders.tail_of(site, CPU), contenders.inputs_of(site, CPU)
    x, residual, _ = inputs
    with torch.no_grad():
        residual.copy_(-tail.before_activation(x, torch.zeros_like(x)))

    def one_bit_more(x: Tensor, residual: Tensor) -> Tensor:
        return torch.relu(tail.before_activation(x, residual) + 1e-7)

    assert training.check_step({"one bit more": one_bit_more}, tail, inputs)["one bit more"].passed


def test_goals_are_those_of_the_direction() -> None:
    samples = {"copy": [100.0], "inductor": [135.0], "op": [100.0]}
    lines = figures.goals(
        figures.record(each, "tile", status="ok", results=figures.figures(each, samples))
        for direction in ("backward", "both")
        for each in [Row((256, 56, 56), 128, "contiguous", "eca", direction=direction)]
    )
    assert len(lines) == 2
    assert lines[0].startswith(
        "goal met: op at least 1.33 x Inductor, ECA, backward, S >= 50 MB: 1 of 1 rows"
    )
    assert lines[1].startswith("goal MISSED: op at least 1.40 x Inductor, ECA, forward + backward")
    assert lines[1].endswith("worst 1.35 at 128x256x56x56 contiguous eca both")


def test_a_forward_runs_before_its_backward_is_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the stream of the capture, since autograd runs a backward where the forward ran."""
    log: list[str] = []
    stream = type("Stream", (), {"wait_stream": lambda *_: None})()

    class Inside:
        def __init__(self, name: str, *_: Any, **__: Any) -> None:
            self.name = name

        def __enter__(self) -> None:
            log.append(self.name)

        def __exit__(self, *_: Any) -> None:
            log.append("end")

    monkeypatch.setattr(timing, "_stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: Inside("on the stream"))
    monkeypatch.setattr(torch.cuda, "graph", lambda *_, **__: Inside("capture"))

    def forward(x: Tensor) -> Tensor:
        log.append("forward")
        return x * 2

    tail: Any = torch.nn.Module()
    inputs = [(torch.ones(1, requires_grad=True), torch.ones(1)) for _ in range(5)]
    timing._captured(training.backward_alone(forward, tail, inputs), 5, 10)
    assert log == ["on the stream", *["forward"] * 5, "end", "capture", "end"]
