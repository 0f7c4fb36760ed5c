"""What recognition and rewriting add to torch.compile; `python -m benchmarks compile` has the seconds."""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any

import pytest
import torch

import eca_triton
from eca_triton.compile import backend, passes
from eca_triton.compile.record import SiteRecord
from eca_triton.deviceless import lower

timm = pytest.importorskip("timm")


@pytest.mark.slow
def test_lowering_adds_under_three_percent_of_the_calls_for_ecaresnet50d(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Counted in Python's calls, since a time depends on the machine and on what else it does.

    Against tracing and code generation alone: compiling kernels would only lower the share. Once in a
    process the pass tries whether Inductor's templates work, most of it imports and Triton's hash of itself,
    which the first compilation needs in any case.
    """
    lower(eca_triton.ECA(64), torch.empty(64, 64, 24, 24, device="meta"), backend="eca_triton")
    calls, ours = 0, []

    def note(frame: FrameType, event: str, argument: object) -> None:
        nonlocal calls
        calls += event == "call"

    def counted(*args: Any) -> list[SiteRecord]:
        before = calls
        records = passes.lower_graph(*args)
        ours.append(calls - before)
        return records

    monkeypatch.setattr(backend, "lower_graph", counted)
    with torch.device("meta"):
        model = timm.create_model("ecaresnet50d").eval()
    sys.setprofile(note)
    try:
        lower(model, torch.empty(8, 3, 224, 224, device="meta"), dtype=torch.bfloat16, backend="eca_triton")
    finally:
        sys.setprofile(None)
    (own,) = ours
    assert 10_000 < own < 0.03 * (calls - own)
