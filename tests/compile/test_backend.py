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


def test_the_mode_goes_to_inductor(handed_on: list[tuple[Any, ...]]) -> None:
    run(mode="max-autotune")
    ((mode, options, _),) = handed_on
    assert (mode, options) == ("max-autotune", {})


def test_options_are_split(handed_on: list[tuple[Any, ...]]) -> None:
    (record,) = run(options={"epilogue_fusion": False, "eca.force": True})
    ((mode, options, _),) = handed_on
    assert (mode, options) == (None, {"epilogue_fusion": False})
    assert record.lowered


def test_a_device_can_be_assumed(handed_on: list[tuple[Any, ...]]) -> None:
    (record,) = run(options={"eca.device": "cuda"})
    assert record.decision.reason == "ECA203"  # so small a map; on the CPU it would be ECA201
    (record,) = run()
    assert record.decision.reason == "ECA201"


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


@pytest.mark.parametrize("plan", ["gate", "block", "pool"])
def test_a_plan_can_be_asked_for(plan: str, handed_on: list[tuple[Any, ...]]) -> None:
    (record,) = run(options={"eca.plan": plan, "eca.device": "cuda"})
    assert record.decision.plan == plan


def test_a_plan_that_does_not_fit_is_named_with_its_obstacle(handed_on: list[tuple[Any, ...]]) -> None:
    (record,) = run(options={"eca.plan": "convfold", "eca.device": "cuda"})
    assert (record.decision.plan, record.decision.reason) == ("skip", "ECA207")
    assert record.decision.detail.startswith("convfold: ECA308 ")


@pytest.mark.parametrize("switch", ["option", "variable"])
def test_off_lowers_nothing(
    switch: str, handed_on: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    if switch == "variable":
        monkeypatch.setenv("ECA_TRITON_PLAN", "off")
    (record,) = run(options={"eca.force": True} | ({"eca.plan": "off"} if switch == "option" else {}))
    assert record.decision.reason == "ECA204"


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        (
            "eca.plan",
            "fast",
            r"eca.plan must be one of auto, gate, .*, convblock, off, got 'fast'",
        ),
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


class Logged(torch.nn.Module):
    """ECA of which somebody logs what the gate is made from: that is then not the site's alone."""

    def forward(self, x: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits = torch.conv1d(x.mean((2, 3)).unsqueeze(1), weight, padding=1)
        return x * logits.sigmoid().view(x.size(0), -1, 1, 1), logits


def strictly(model: torch.nn.Module, **options: Any) -> None:
    x, weight = torch.ones(3, 8, 6, 5), torch.ones(1, 1, 3)
    options = {"eca.strict": True} | options
    with torch.no_grad():
        torch.compile(model, backend="eca_triton", options=options)(x, weight)


def test_strict_raises_what_it_left_and_why(handed_on: list[tuple[Any, ...]]) -> None:
    with pytest.raises(BackendCompilerFailed, match=r"ECA105 .*docs/reasons.md#eca105") as caught:
        strictly(Logged(), **{"eca.force": True})
    error = caught.value.inner_exception
    assert isinstance(error, eca_triton.NotLoweredError)
    assert [code for _, code, _ in error.sites] == ["ECA105"]
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


@pytest.mark.parametrize(
    ("options", "raises"),
    [
        pytest.param({}, "ECA201", id="device"),
        pytest.param({"eca.device": "cuda", "eca.plan": "convfold"}, "ECA207", id="plan asked for"),
        pytest.param({"eca.device": "cuda"}, None, id="too small to win"),
        pytest.param({"eca.plan": "off"}, None, id="off"),
        pytest.param({"eca.force": True}, None, id="lowered"),
    ],
)
def test_strict_asks_for_reasons_other_than_cost(
    options: dict[str, Any], raises: str | None, handed_on: list[tuple[Any, ...]]
) -> None:
    class Site(Logged):
        def forward(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
            return super().forward(x, weight)[0]

    if raises is None:
        strictly(Site(), **options)
    else:
        with pytest.raises(BackendCompilerFailed, match=raises):
            strictly(Site(), **options)


def test_strict_through_inductors_hook_and_suppressed_errors() -> None:
    """By `enable` the same error comes out of Inductor; `suppress_errors` runs the model as it is."""
    x, weight = torch.ones(3, 8, 6, 5), torch.ones(1, 1, 3)
    torch._dynamo.reset()
    with hooks.enabled(strict=True, force=True), torch.no_grad():
        with pytest.raises(Exception, match=r"ECA105 .*#eca105"):
            torch.compile(Logged())(x, weight)
        torch._dynamo.reset()
        with torch._dynamo.config.patch(suppress_errors=True):
            out, _ = torch.compile(Logged())(x, weight)
    assert out.shape == x.shape
