"""The decision: a pure function of facts, never a loss by its own count."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from eca_triton.compile import plan
from eca_triton.compile.plan import PACKED_MASK, STORED_MASK, Facts, Settings, decide
from eca_triton.compile.reasons import DEVICE, DISABLED, KERNEL_DTYPE, NO_TRITON, TINY

H200 = Settings(device="cuda")
BOTTLENECK = Facts(
    numel=128 * 256 * 56 * 56,
    positions=56 * 56,
    dtype=torch.bfloat16,
    device="cuda",
    grad=False,
    batch_norm="eval",
    tail=("residual", "relu"),
)


@pytest.mark.parametrize(
    ("changes", "chosen", "before", "after"),
    [
        pytest.param({}, "block", 5.0, 3.0, id="batch norm, residual, relu"),
        pytest.param({"activation": "silu", "tail": ()}, "block", 4.0, 2.0, id="batch norm and silu before"),
        pytest.param({"batch_norm": None, "tail": ()}, "block", 3.0, 2.0, id="alone"),
        pytest.param({"templates": False}, "gate", 5.0, 4.0, id="an Inductor that takes no templates"),
        pytest.param({"in_place": True}, "gate", 5.0, 4.0, id="rescaled in place"),
        pytest.param(
            {"batch_norm": None, "source_is_stored": False}, "pool", 4.0, 4.0, id="biased convolution"
        ),
        pytest.param({"expansion": 0.25}, "block", 5.0, 3.0, id="after a 1x1 convolution"),
        pytest.param({"expansion": 0.25, "epilogues": True}, "convfold", 5.0, 1.25, id="which takes it in"),
        pytest.param(
            {"expansion": 6.0, "epilogues": True}, "block", 5.0, 3.0, id="of six times the channels"
        ),
        pytest.param(
            {"expansion": 0.25, "batch_norm": None, "source_is_stored": False},
            "convfold",
            4.0,
            3.25,
            id="with a bias",
        ),
        pytest.param(
            {"expansion": 0.25, "one_kernel": False}, "convfold", 5.0, 3.25, id="where no kernel takes it"
        ),
        pytest.param({"folds": False}, "block", 5.0, 4.0, id="eps unknown"),
        pytest.param({"grad": True, "batch_norm": "train"}, "pool", 15.0, 15.0, id="training at 56x56"),
        pytest.param(
            {"grad": True, "batch_norm": "train", "positions": 28 * 28},
            "pool",
            13.0,
            13.0,
            id="training at 28x28",
        ),
        pytest.param(
            {"grad": True, "batch_norm": None}, "pool", 10.0, 10.0, id="training without batch norm"
        ),
        pytest.param({"grad": True, "batch_norm": None, "tail": ()}, "pool", 7.0, 7.0, id="training alone"),
        pytest.param(
            {"grad": True, "batch_norm": None, "tail": (), "whole": True},
            "block",
            7.0,
            5.0,
            id="one op alone",
        ),
        pytest.param(
            {"grad": True, "batch_norm": None, "whole": True}, "block", 10.0, 7.125, id="one op each way"
        ),
        pytest.param(
            {"grad": True, "batch_norm": None, "tail": ("residual", "silu"), "whole": True},
            "block",
            10.0,
            8.0,
            id="one op each way, which recomputes SiLU",
        ),
        pytest.param({"batch_norm": "train"}, "pool", 6.0, 6.0, id="batch statistics without gradients"),
        pytest.param(
            {"batch_norm": "train", "takes_over": True},
            "batch_norm",
            6.0,
            4.0,
            id="one op, without gradients",
        ),
        pytest.param(
            {"grad": True, "batch_norm": "train", "takes_over": True, "mask": PACKED_MASK},
            "batch_norm",
            15.0,
            10.125,
            id="one op, its mask in bits",
        ),
        pytest.param(
            {"grad": True, "batch_norm": "train", "takes_over": True, "mask": STORED_MASK, "positions": 196},
            "batch_norm",
            13.0,
            11.0,
            id="one op below 56x56, its mask in bools",
        ),
        pytest.param(
            {"grad": True, "batch_norm": "train", "takes_over": True, "tail": ()},
            "batch_norm",
            12.0,
            8.0,
            id="one op without a tail",
        ),
    ],
)
def test_the_plan_of_a_site(changes: dict[str, object], chosen: str, before: float, after: float) -> None:
    decision = decide(replace(BOTTLENECK, **changes), H200)
    assert (decision.plan, decision.reason) == (chosen, None)
    assert (decision.traffic_before, decision.traffic_after) == (before, after)


def test_what_is_absorbed_is_named_before_the_tail() -> None:
    decision = decide(replace(BOTTLENECK, activation="relu", tail=("gain", "residual")), H200)
    assert decision.fused == ("batch_norm", "relu", "gain", "residual")


@pytest.mark.parametrize(
    ("facts", "settings", "reason"),
    [
        (BOTTLENECK, Settings(disabled=True, force=True), DISABLED),
        (replace(BOTTLENECK, device="cpu"), Settings(), DEVICE),
        (replace(BOTTLENECK, dtype=torch.float64), H200, KERNEL_DTYPE),
        (replace(BOTTLENECK, numel=16 * 1024 - 1), H200, TINY),
    ],
    ids=["disabled", "device", "dtype", "tiny"],
)
def test_a_reason_to_leave_it(facts: Facts, settings: Settings, reason: str) -> None:
    decision = decide(facts, settings)
    assert (decision.plan, decision.reason, decision.fused) == ("skip", reason, ())
    assert decision.traffic_after == decision.traffic_before


def test_without_triton_nothing_is_lowered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan.importlib.util, "find_spec", lambda _: None)
    assert decide(BOTTLENECK, Settings()).reason == NO_TRITON


def test_force_lowers_on_any_device_and_size() -> None:
    facts = replace(BOTTLENECK, device="cpu", numel=8, dtype=torch.float64)
    assert decide(facts, Settings(force=True)).plan == "block"


@given(
    st.builds(
        Facts,
        numel=st.integers(0, 2**40),
        positions=st.integers(1, 2**20),
        dtype=st.sampled_from([torch.float64, torch.float32, torch.float16, torch.bfloat16]),
        device=st.sampled_from(["cpu", "cuda", "mps"]),
        grad=st.booleans(),
        batch_norm=st.sampled_from([None, "eval", "train"]),
        folds=st.booleans(),
        source_is_stored=st.booleans(),
        activation=st.sampled_from(["identity", "relu", "silu"]),
        tail=st.sampled_from([(), ("relu",), ("residual",), ("gain", "residual", "silu")]),
        in_place=st.booleans(),
        templates=st.booleans(),
    )
)
def test_no_plan_moves_more_than_stock(facts: Facts) -> None:
    decision = decide(facts, Settings())
    assert decision.traffic_after <= decision.traffic_before
    assert (decision.plan == "skip") == (decision.reason is not None)
    assert decision.plan in ("pool", "skip") or not (facts.grad or facts.batch_norm == "train")
    assert decision.plan != "block" or (facts.templates and not facts.in_place)
