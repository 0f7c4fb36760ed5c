"""The decision: a pure function of facts, never a loss by its own count."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from eca_triton.compile import reasons
from eca_triton.compile.plan import decide as plan
from eca_triton.compile.plan.cost import PACKED_MASK, STORED_MASK, stock
from eca_triton.compile.plan.decide import decide
from eca_triton.compile.plan.facts import Facts
from eca_triton.compile.plan.reach import _channels_last_in_bytes
from eca_triton.compile.settings import Settings
from eca_triton.tuning.targets import TARGETS

H200 = Settings(device="cuda")
BOTTLENECK = Facts(
    images=128, channels=256, positions=56 * 56, taps=5, dtype=torch.bfloat16, device="cuda",
    channels_last=True, grad=False, target="h200", batch_norm="eval", tail=("residual", "relu"),
)  # fmt: skip
ALONE = replace(BOTTLENECK, batch_norm=None, tail=())
SMALL = replace(BOTTLENECK, images=8, positions=28 * 28)  # 3 MB, which L2 holds


TRAINED = {"grad": True, "batch_norm": "train"}
TAKEN_OVER = TRAINED | {"takes_over": True}
PLAINLY_TRAINED = {"grad": True, "batch_norm": None}
# What is other than at the bottleneck, the plan, and the traffic before and after.
PLANS_OF: dict[str, tuple[dict[str, object], str, float, float]] = {
    "batch norm, residual, relu": ({}, "block", 5.0, 3.0),
    "batch norm and relu before": ({"activation": "relu", "tail": ()}, "block", 4.0, 2.0),
    "then silu in float32": ({"activation": "silu", "tail": ()}, "block", 6.0, 2.0),
    "silu alone": ({"activation": "silu", "batch_norm": None, "tail": ()}, "block", 3.0, 2.0),
    "alone": ({"batch_norm": None, "tail": ()}, "block", 3.0, 2.0),
    "an Inductor that takes no templates": ({"templates": False}, "gate", 5.0, 4.0),
    "rescaled in place": ({"in_place": True}, "gate", 5.0, 4.0),
    "a view of the result": ({"reindexed": True}, "gate", 5.0, 4.0),
    "only pooled": ({"reindexed": True, "inlined": True}, "gate", 4.0, 3.0),
    "casts": ({"batch_norm": None, "source_is_stored": False, "casts": True}, "pool", 4.0, 4.0),
    "padding": ({"batch_norm": None, "source_is_stored": False, "wraps": True}, "pool", 4.0, 4.0),
    "an epilogue": ({"expansion": 0.25, "epilogues": True}, "convfold", 5.0, 1.25),
    "a product of ours": ({"expansion": 0.25, "products": True}, "convblock", 5.0, 1.25),
    "a product with too much arithmetic": (
        {"expansion": 0.25, "products": True, "channels": 1024, "positions": 14 * 14}, "block", 5.0, 3.0),
    "a product of too many inputs": ({"expansion": 1.0, "products": True}, "block", 5.0, 3.0),
    "a product without epilogue": ({"expansion": 0.25}, "block", 5.0, 3.0),
    "more inputs than results": ({"expansion": 6.0, "epilogues": True}, "block", 5.0, 3.0),
    "a biased 1x1 convolution": (
        {"expansion": 0.25, "batch_norm": None, "source_is_stored": False}, "convfold", 4.0, 3.25),
    "where no kernel takes it": ({"expansion": 0.25, "one_kernel": False}, "convfold", 5.0, 3.25),
    "sizes that no kernel takes": ({"one_kernel": False}, "block", 5.0, 4.0),
    "training at 56x56": (TRAINED, "pool", 15.0, 15.0),
    "training at 28x28": (TRAINED | {"positions": 28 * 28}, "pool", 13.0, 13.0),
    "training without batch norm": (PLAINLY_TRAINED, "pool", 10.0, 10.0),
    "training alone": (PLAINLY_TRAINED | {"tail": ()}, "pool", 7.0, 7.0),
    "one op alone": (PLAINLY_TRAINED | {"tail": (), "trains_as_block": True}, "block", 7.0, 5.0),
    "one op each way": (PLAINLY_TRAINED | {"trains_as_block": True}, "block", 10.0, 7.125),
    "one op each way, which recomputes SiLU": (
        PLAINLY_TRAINED | {"tail": ("residual", "silu"), "trains_as_block": True}, "block", 10.0, 8.0),
    "one op, without gradients": ({"batch_norm": "train", "takes_over": True}, "batch_norm", 6.0, 4.0),
    "one op, its mask in bits": (TAKEN_OVER | {"mask_traffic": PACKED_MASK}, "batch_norm", 15.0, 10.125),
    "one op below 56x56, its mask in bools": (
        TAKEN_OVER | {"mask_traffic": STORED_MASK, "positions": 196}, "batch_norm", 13.0, 11.0),
    "one op without a tail": (TAKEN_OVER | {"tail": ()}, "batch_norm", 12.0, 8.0),
}  # fmt: skip


@pytest.mark.parametrize("name", PLANS_OF)
def test_the_plan_of_a_site(name: str) -> None:
    changes, chosen, before, after = PLANS_OF[name]
    decision = decide(replace(BOTTLENECK, **changes), H200)
    assert (decision.plan, decision.reason) == (chosen, None)
    assert (decision.traffic_before, decision.traffic_after) == (before, after)


TIES: dict[str, dict[str, object]] = {
    "biased convolution": {"batch_norm": None, "source_is_stored": False},
    "batch statistics without gradients": {"batch_norm": "train"},
    "group norm behind": {"reindexed": True, "repeated": True},
}


@pytest.mark.parametrize("changes", TIES.values(), ids=TIES)
def test_a_tie_is_left_alone(changes: dict[str, object]) -> None:
    decision = decide(replace(BOTTLENECK, **changes), H200)
    assert (decision.plan, decision.reason) == ("skip", reasons.NO_WIN)
    assert "pool is predicted to take" in decision.detail
    assert decision.time_after_s == decision.time_before_s


def test_a_batch_norm_behind_the_site_keeps_its_backward() -> None:
    """Its own moments would have the gradient between them stored in float32: 3 S more."""
    facts = replace(BOTTLENECK, grad=True, batch_norm="train", takes_over=True, normalized=True)
    assert decide(facts, H200).plan == "pool"


def test_what_is_absorbed_is_named_before_the_tail() -> None:
    decision = decide(replace(BOTTLENECK, activation="relu", tail=("gain", "residual")), H200)
    assert decision.fused == ("batch_norm", "relu", "gain", "residual")


def test_a_decision_tells_what_else_was_weighed() -> None:
    decision = decide(replace(BOTTLENECK, source_is_stored=False, expansion=0.25), H200)
    obstacles = {each.plan: each.obstacle for each in decision.alternatives}
    assert (obstacles["convfold"], obstacles["block"], obstacles["pool"]) == (None, reasons.NOT_STORED, None)
    assert decision.time_after_s == min(each.time_s for each in decision.alternatives if not each.obstacle)


def test_the_time_of_a_large_map_is_that_of_its_bytes() -> None:
    decision = decide(BOTTLENECK, H200)
    s, h200 = BOTTLENECK.numel * 2, TARGETS["h200"]
    assert decision.cost_before is not None
    assert decision.cost_before.dram_bytes == 5 * s
    assert decision.time_before_s == pytest.approx(5 * s / h200.copy_bytes_per_s + 3 * h200.launch_s)
    assert decide(replace(BOTTLENECK, target="a100"), H200).time_before_s > 2 * decision.time_before_s


def test_in_l2_bytes_do_not_separate_plans_and_launches_do() -> None:
    """The map is still in L2 for its second reader; there is one launch instead of three."""
    decision = decide(replace(SMALL, batch_norm=None), H200)
    assert decision.cost_before is not None
    assert decision.cost_after is not None
    assert decision.traffic_after < decision.traffic_before
    assert decision.cost_after.dram_bytes == decision.cost_before.dram_bytes
    assert decision.cost_after.launches < decision.cost_before.launches
    assert decision.time_after_s < decision.time_before_s


def test_where_instructions_bound_both_fewer_bytes_are_a_win() -> None:
    """Rows of 7x7, which no vector divides: as slow as stock by instructions, and a map less to move."""
    rows = replace(BOTTLENECK, images=8, channels=512, positions=49, channels_last=False)
    decision = decide(replace(rows, reindexed=True, inlined=True), H200)
    assert decision.plan == "gate"
    assert decision.time_after_s == decision.time_before_s


def test_a_map_that_comes_back_from_l2_is_read_twice_there() -> None:
    """56x56 channels-last, by the lagged kernel; a tile reads its neighbours' channels alone."""
    s = ALONE.numel * 2
    lagged, tile = (decide(replace(ALONE, channels_last=last), H200).cost_after for last in (True, False))
    assert lagged is not None
    assert tile is not None
    assert lagged.l2_bytes == 2 * s
    assert s < tile.l2_bytes < 2 * s


@pytest.mark.parametrize(
    ("facts", "settings", "reason"),
    [
        (BOTTLENECK, Settings(plan="off", force=True), reasons.DISABLED),
        (replace(BOTTLENECK, device="cpu"), Settings(), reasons.DEVICE),
        (replace(BOTTLENECK, device="mps"), Settings(), reasons.DEVICE),
        (replace(BOTTLENECK, served=False), Settings(), reasons.DEVICE),
        (replace(BOTTLENECK, dtype=torch.float64), H200, reasons.KERNEL_DTYPE),
        (replace(BOTTLENECK, images=1, channels=64, positions=255), H200, reasons.TINY),
    ],
    ids=["off", "cpu", "another GPU", "old GPU", "dtype", "tiny"],
)
def test_a_reason_to_leave_it(facts: Facts, settings: Settings, reason: str) -> None:
    decision = decide(facts, settings)
    assert (decision.plan, decision.reason, decision.fused) == ("skip", reason, ())
    assert decision.traffic_after == decision.traffic_before


def test_without_triton_nothing_is_lowered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan.importlib.util, "find_spec", lambda _: None)
    assert decide(BOTTLENECK, Settings()).reason == reasons.NO_TRITON


def test_force_lowers_on_any_device_and_size_and_without_a_win() -> None:
    facts = replace(BOTTLENECK, device="cpu", images=1, channels=8, positions=1, dtype=torch.float64)
    assert decide(facts, Settings(force=True)).plan == "block"
    assert decide(replace(facts, source_is_stored=False), Settings(force=True)).plan == "pool"


@pytest.mark.parametrize("asked", ["gate", "block", "pool"])
def test_a_plan_that_is_asked_for_is_taken_where_it_fits(asked: str) -> None:
    tiny = replace(BOTTLENECK, images=1, channels=8, positions=1)
    assert [decide(facts, Settings(plan=asked)).plan for facts in (BOTTLENECK, tiny)] == [asked, asked]


def test_many_inputs_of_a_convolution_cost_nothing_where_nobody_has_to_read_them_again() -> None:
    many = replace(BOTTLENECK, expansion=6.0, pooled_by_producer=True)
    assert decide(many, Settings(plan="convfold")).plan == "convfold"


def test_only_contiguous_rows_need_whole_vectors() -> None:
    def instructions(positions: int, channels_last: bool) -> float:
        return stock(replace(BOTTLENECK, positions=positions, channels_last=channels_last)).instructions

    assert instructions(49, True) == instructions(48, True)
    assert instructions(49, False) > instructions(48, False)


@pytest.mark.parametrize(
    ("asked", "changes", "obstacle"),
    [
        ("gate", {"grad": True}, reasons.TRAINING),
        ("block", {"source_is_stored": False}, reasons.NOT_STORED),
        ("convfold", {}, reasons.NO_CONVOLUTION),
        ("convblock", {}, reasons.NO_CONVOLUTION),
        ("convblock", {"expansion": 0.25}, reasons.NO_PRODUCT),
        ("convblock", {"expansion": 0.25, "products": True, "in_place": True}, reasons.RESCALED_IN_PLACE),
        ("convblock", {"expansion": 0.25, "products": True, "reindexed": True}, reasons.SPREAD),
    ],
)
def test_a_plan_that_does_not_fit_leaves_the_site(asked: str, changes: dict[str, Any], obstacle: str) -> None:
    """And says which plan, and why not; no other takes its place."""
    decision = decide(replace(BOTTLENECK, **changes), Settings(plan=asked))
    assert (decision.plan, decision.reason) == ("skip", reasons.ASKED)
    assert decision.detail.startswith(f"{asked}: {obstacle} ")


def test_no_time_makes_up_for_a_byte_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes are counted, times are a model's: what is taken is the best of those that move no more."""
    facts = replace(BOTTLENECK, images=1, positions=14 * 14)
    as_stock = stock(facts)
    works = {
        "more": replace(as_stock, again=as_stock.again + 0.01, launches=0),
        "as many": replace(as_stock, launches=1),
    }
    plans = tuple((name, lambda _: None, lambda _, work=work: work) for name, work in works.items())
    monkeypatch.setattr(plan, "PLANS", plans)
    decision = decide(facts, H200)
    times = {each.plan: each.time_s for each in decision.alternatives}
    assert times["more"] < times["as many"] < decision.time_before_s
    assert decision.plan == "as many"


@pytest.mark.parametrize(
    ("shape", "memory_format", "packs"),
    [
        ((2, 16, 3, 3), torch.channels_last, True),
        ((2, 12, 3, 3), torch.channels_last, False),
        ((2, 16, 3, 3), torch.contiguous_format, False),
        ((2, 16, 3, 3, 3), torch.channels_last_3d, False),
    ],
    ids=["channels-last", "half a byte", "contiguous", "three dims"],
)
def test_bits_for_backward_come_in_whole_bytes_of_channels_that_are_innermost(
    shape: tuple[int, ...], memory_format: torch.memory_format, packs: bool
) -> None:
    x = torch.empty(shape).contiguous(memory_format=memory_format)
    assert _channels_last_in_bytes(x) is packs


@given(
    st.builds(
        Facts,
        images=st.integers(0, 2**12),
        channels=st.integers(1, 2**12),
        positions=st.integers(1, 2**16),
        taps=st.sampled_from([1, 3, 5, 9]),
        dtype=st.sampled_from([torch.float64, torch.float32, torch.float16, torch.bfloat16]),
        device=st.sampled_from(["cpu", "cuda", "mps"]),
        channels_last=st.booleans(),
        grad=st.booleans(),
        target=st.sampled_from(sorted(TARGETS)),
        batch_norm=st.sampled_from([None, "eval", "train"]),
        source_is_stored=st.booleans(),
        activation=st.sampled_from(["identity", "relu", "silu"]),
        tail=st.sampled_from([(), ("relu",), ("residual",), ("gain", "residual", "silu")]),
        inlined=st.booleans(),
        reindexed=st.booleans(),
        repeated=st.booleans(),
        in_place=st.booleans(),
        templates=st.booleans(),
        expansion=st.sampled_from([None, 0.25, 6.0]),
        epilogues=st.booleans(),
        products=st.booleans(),
    ),
    st.sampled_from(["auto", "gate", "block", "pool", "convfold", "convblock"]),
)
def test_no_choice_moves_more_than_stock_or_takes_longer(facts: Facts, asked: str) -> None:
    decision = decide(facts, Settings(plan=asked))
    assert decision.traffic_before == stock(facts).traffic
    assert (decision.plan == "skip") == (decision.reason is not None)
    assert decision.plan in ("pool", "skip") or not (facts.grad or facts.batch_norm == "train")
    assert decision.plan != "block" or (facts.templates and not facts.in_place)
    if asked == "auto":
        assert decision.traffic_after <= decision.traffic_before
        assert decision.plan == "skip" or (decision.time_after_s, decision.traffic_after) < (
            decision.time_before_s,
            decision.traffic_before,
        )
