"""The backend hands on what belongs to Inductor and keeps what is ours."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from spellings import SPELLINGS
from torch import fx

from eca_triton.compile import backend, passes


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


def run(**arguments: Any) -> list[passes.SiteRecord]:
    spelling = SPELLINGS["official"]
    with passes.recording() as records, torch.no_grad():
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
            config_patches={"max_autotune": True, passes.POST_GRAD_HOOK: theirs},
            compile_region_name="a",
        )
    assert seen["max_autotune"] is True
    assert seen[passes.POST_GRAD_HOOK].passes[0] is theirs


def test_torch_can_reset_it() -> None:
    torch.compile(torch.nn.Identity(), backend="eca_triton")
    torch.compiler.reset()
    backend.eca_triton.reset()
