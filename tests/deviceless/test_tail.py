"""Bytes of one bottleneck's tail on an H200 that is not there, in units of S, the bytes of its map.

The tail of ecaresnet50d's first stage at batch 128, with the plan `block` asked for: `convblock` beats it
there (test_convfold.py). Figures are sums of whole passes over the map; what vectors of N x C and
smaller add stays below 1 % of S.
"""

from __future__ import annotations

import deviceless_models
import pytest
import torch

import eca_triton
from eca_triton.deviceless import TARGETS, Comparison, compare, lower

SMALL = 0.01  # of S: gates, pooled vectors, weights
SCRATCH = 0.04  # of S: the partial sums of a map that fits no registers, written and read once
CONVOLUTION = 1.25  # S: reads a map of a quarter of the channels, writes one


@pytest.fixture(autouse=True)
def _block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ECA_TRITON_PLAN", "block")


def both(training: bool, channels_last: bool = True, **size: int) -> tuple[Comparison, int]:
    model, inputs, s = deviceless_models.tail(**size)
    arguments = {"dtype": torch.bfloat16, "channels_last": channels_last, "training": training}
    return compare(model, inputs, **arguments), s


def test_inference_costs_what_a_tail_without_attention_costs() -> None:
    result, s = both(training=False)
    assert result.stock.bytes_moved / s == pytest.approx(6.25, abs=SMALL)
    assert result.lowered.bytes_moved / s == pytest.approx(4.25, abs=SCRATCH)


def test_a_residual_in_another_order_leaves_the_gate() -> None:
    """Inductor makes the convolution channels-last: its map and a contiguous residual need two walks."""
    result, s = both(training=False, channels_last=False)
    copied = 0.5  # the convolution's input, a quarter of the map
    assert result.stock.bytes_moved / s == pytest.approx(6.25 + copied, abs=SMALL)
    assert result.lowered.bytes_moved / s == pytest.approx(5.25 + copied, abs=SMALL)


def test_the_plan_predicts_the_traffic_of_inference() -> None:
    result, s = both(training=False)
    (record,) = result.records
    assert record.lowered
    assert record.decision.plan == "block"
    assert result.stock.bytes_moved / s - CONVOLUTION == pytest.approx(
        record.decision.traffic_before, abs=SMALL
    )
    assert result.lowered.bytes_moved / s - CONVOLUTION == pytest.approx(
        record.decision.traffic_after, abs=SCRATCH
    )


def test_the_gate_reads_the_map_once_and_writes_a_vector() -> None:
    """Its five vectors (batch norm's four and the taps) are a few kilobytes beside it."""
    result, s = both(training=False, channels_last=False)
    (gate,) = [kernel for kernel in result.lowered.kernels if kernel.name == "eca_triton.gate.default"]
    x, *vectors = sorted(gate.reads, key=lambda buffer: -buffer.bytes_moved)
    (g,) = gate.writes
    assert (x.shape, x.bytes_moved) == ((128, 256, 56, 56), s)
    assert sorted(v.shape for v in vectors) == [(1, 1, 5), (256,), (256,), (256,), (256,)]
    assert g.shape == (128, 256)
    assert gate.bytes_moved == x.bytes_moved + g.bytes_moved + sum(v.bytes_moved for v in vectors)
    assert gate.bytes_moved / s == pytest.approx(1.0, abs=0.001)


def test_the_gates_map_is_the_convolutions_result_not_a_copy() -> None:
    result, _ = both(training=False, channels_last=False)
    convolution, gate = (
        next(kernel for kernel in result.lowered.kernels if kernel.name == name)
        for name in ("aten.convolution.default", "eca_triton.gate.default")
    )
    assert convolution.writes[0].name in {buffer.name for buffer in gate.reads}


def test_stock_is_stock_while_our_pass_is_enabled() -> None:
    model, inputs, s = deviceless_models.tail()
    arguments = {"dtype": torch.bfloat16, "channels_last": True}
    with eca_triton.enabled():
        result = compare(model, inputs, **arguments)
        through_the_hook = lower(model, inputs, backend="inductor", **arguments)
    assert result.stock.bytes_moved / s == pytest.approx(6.25, abs=SMALL)
    assert through_the_hook.kernels == result.lowered.kernels


@pytest.mark.parametrize("target", TARGETS)
def test_every_target_is_lowered_for(target: str) -> None:
    model, inputs, s = deviceless_models.tail()
    arguments = {"dtype": torch.float16, "channels_last": True, "target": target}
    assert lower(model, inputs, **arguments).bytes_moved / s == pytest.approx(6.25, abs=SMALL)
