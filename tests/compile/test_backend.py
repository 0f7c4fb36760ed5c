"""The backend hands on what belongs to Inductor and keeps what is ours."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch
from spellings import SPELLINGS
from torch import fx
from torch._dynamo.exc import BackendCompilerFailed

import eca_triton
from eca_triton.compile import backend, hooks, passes
from eca_triton.compile.record import SiteRecord, recording
from eca_triton.compile.settings import Settings


@pytest.fixture
def handed_on(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """The arguments (mode, options, config_patches) with which Inductor is called; graphs run as they are."""
    calls = []

    def inductor_compile(gm: fx.GraphModule, inputs: object, *arguments: Any) -> Any:
        calls.append(arguments)
        return gm.forward

    monkeypatch.setattr(backend, "inductor_compile", inductor_compile)
    torch._dynamo.reset()
    return calls


def run(**arguments: Any) -> list[SiteRecord]:
    spelling = SPELLINGS["official"]
    with recording() as records, torch.no_grad():
        torch.compile(spelling.build(), backend="eca_triton", **arguments)(spelling.example())
    return records


@pytest.mark.parametrize(
    ("asked", "mode", "options"),
    [
        pytest.param({"mode": "max-autotune"}, "max-autotune", {}, id="mode"),
        pytest.param(
            {"options": {"epilogue_fusion": False, "eca.force": True}},
            None,
            {"epilogue_fusion": False},
            id="options",
        ),
    ],
)
def test_inductor_gets_the_mode_and_the_options_that_are_not_ours(
    asked: dict[str, Any], mode: str | None, options: dict[str, Any], handed_on: list[tuple[Any, ...]]
) -> None:
    (record,) = run(**asked)
    assert [each[:2] for each in handed_on] == [(mode, options)]
    assert record.lowered is ("options" in asked)


ON_A_GPU = {"eca.device": "cuda"}
DECISIONS: dict[str, tuple[dict[str, Any], str, str | None]] = {
    "nothing": ({}, "skip", "ECA201"),
    "a device, on which so small a map wins nothing": (ON_A_GPU, "skip", "ECA203"),
    "off": ({"eca.force": True, "eca.plan": "off"}, "skip", "ECA204"),
    "a plan that does not fit": (ON_A_GPU | {"eca.plan": "convfold"}, "skip", "ECA207"),
    **{plan: (ON_A_GPU | {"eca.plan": plan}, plan, None) for plan in ("gate", "block", "pool")},
}


@pytest.mark.parametrize("asked", DECISIONS)
def test_what_is_asked_for_decides(asked: str, handed_on: list[tuple[Any, ...]]) -> None:
    options, plan, reason = DECISIONS[asked]
    (record,) = run(options=options)
    assert (record.decision.plan, record.decision.reason) == (plan, reason)
    if reason == "ECA207":  # with the obstacle
        assert record.decision.detail.startswith("convfold: ECA308 ")


def test_a_variable_switches_off_what_the_options_force(
    handed_on: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ECA_TRITON_PLAN", "off")
    (record,) = run(options={"eca.force": True})
    assert record.decision.reason == "ECA204"


def test_an_unknown_option_of_ours_is_named(handed_on: list[tuple[Any, ...]]) -> None:
    with pytest.raises(Exception, match=r"unknown options \['eca.fast'\]"):
        run(options={"eca.fast": True})


def test_torchs_own_patches_and_other_passes_are_kept() -> None:
    """Dynamo adds `config_patches`, and newer releases other keywords."""
    seen = {}

    def inductor_compile(gm: object, inputs: object, mode: object, options: object, patches: Any) -> Any:
        seen.update(patches)
        return gm

    def theirs(graph: fx.Graph) -> None: ...

    graph = fx.symbolic_trace(torch.nn.Identity())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backend, "inductor_compile", inductor_compile)
        backend.eca_triton(
            graph,
            [],
            config_patches={"max_autotune": True, hooks.POST_GRAD_HOOK: theirs},
            compile_region_name="a",
        )
    assert seen["max_autotune"] is True
    assert seen[hooks.POST_GRAD_HOOK].passes[0] is theirs


def test_torch_can_reset_it() -> None:
    torch.compile(torch.nn.Identity(), backend="eca_triton")
    torch.compiler.reset()
    backend.eca_triton.reset()


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("eca.plan", "fast", r"eca.plan must be one of auto, gate, .*, convblock, off, got 'fast'"),
        ("eca.strict", "yes", "eca.strict must be True or False, got 'yes'"),
    ],
)
def test_a_wrong_value_is_named_with_those_allowed(
    option: str, value: str, message: str, handed_on: list[tuple[Any, ...]]
) -> None:
    with pytest.raises(BackendCompilerFailed, match=message) as caught:
        run(options={option: value})
    assert isinstance(caught.value.inner_exception, ValueError)
    with pytest.raises(ValueError, match=message):
        hooks.enable(**{option.removeprefix("eca."): value})  # at once: nothing is compiled here


def test_a_wrong_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ECA_TRITON_STRICT", "yes")
    with pytest.raises(ValueError, match="ECA_TRITON_STRICT must be one of 0, 1, , got 'yes'"):
        Settings.from_environment()


def test_code_counts_more_than_the_environment_and_disable_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ECA_TRITON_PLAN", "gate")
    monkeypatch.setenv("ECA_TRITON_STRICT", "1")
    assert Settings.from_environment() == Settings(plan="gate", strict=True)
    assert Settings.from_environment(plan="pool", strict=False) == Settings(plan="pool")
    monkeypatch.setenv("ECA_TRITON_DISABLE", "1")
    assert Settings.from_environment(plan="pool", strict=True, force=True) == Settings(plan="off")


def test_settings_are_part_of_the_cache_key() -> None:
    asked: list[dict[str, Any]] = [{}, {"plan": "gate"}, {"plan": "pool"}, {"strict": True}, {"force": True}]
    for kind in (passes.LoweringPass, passes.CacheKeyPass):
        assert len({kind(**each).uuid() for each in asked}) == len(asked)
        assert len({pickle.dumps(kind(**each)) for each in asked}) == len(asked)  # torch 2.11 hashes these
        assert pickle.loads(pickle.dumps(kind(plan="gate"))).uuid() == kind(plan="gate").uuid()


class Site(torch.nn.Module):
    """ECA; where somebody logs what the gate is made from, that is not the site's alone."""

    def __init__(self, logged: bool) -> None:
        super().__init__()
        self.logged = logged

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        logits = torch.conv1d(x.mean((2, 3)).unsqueeze(1), x.new_ones(1, 1, 3), padding=1)
        out = x * logits.sigmoid().view(x.size(0), -1, 1, 1)
        return (out, logits) if self.logged else (out,)


@pytest.mark.parametrize(
    ("logged", "options", "raised"),
    [
        pytest.param(True, {"eca.force": True}, "ECA105", id="code"),
        pytest.param(False, {}, "ECA201", id="device"),
        pytest.param(False, ON_A_GPU | {"eca.plan": "convfold"}, "ECA207", id="plan asked for"),
        pytest.param(False, ON_A_GPU, None, id="too small to win"),
        pytest.param(False, {"eca.plan": "off"}, None, id="off"),
        pytest.param(False, {"eca.force": True}, None, id="lowered"),
    ],
)
def test_strict_raises_what_it_left_for_other_reasons_than_cost(
    logged: bool, options: dict[str, Any], raised: str | None, handed_on: list[tuple[Any, ...]]
) -> None:
    compiled = torch.compile(Site(logged), backend="eca_triton", options={"eca.strict": True} | options)
    x = torch.ones(3, 8, 6, 5)
    with torch.no_grad():
        if raised is None:
            compiled(x)
            return
        with pytest.raises(
            BackendCompilerFailed, match=f"{raised} .*docs/reasons.md#{raised.lower()}"
        ) as caught:
            compiled(x)
    error = caught.value.inner_exception
    assert isinstance(error, eca_triton.NotLoweredError)
    assert [code for _, code, _ in error.sites] == [raised]
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_strict_through_inductors_hook_and_suppressed_errors() -> None:
    """By `enable` the same error comes out of Inductor; `suppress_errors` runs the model as it is."""
    x = torch.ones(3, 8, 6, 5)
    torch._dynamo.reset()
    with hooks.enabled(strict=True, force=True), torch.no_grad():
        with pytest.raises(Exception, match=r"ECA105 .*#eca105"):
            torch.compile(Site(True))(x)
        torch._dynamo.reset()
        with torch._dynamo.config.patch(suppress_errors=True):
            out, _ = torch.compile(Site(True))(x)
    assert out.shape == x.shape
