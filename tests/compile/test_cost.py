"""What recognition and rewriting add to the time of torch.compile."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch

import eca_triton
from eca_triton.compile import backend, passes
from eca_triton.compile.record import SiteRecord
from eca_triton.deviceless import lower

timm = pytest.importorskip("timm")


@pytest.mark.slow
def test_lowering_adds_under_three_percent_to_ecaresnet50d(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Against tracing and code generation alone: compiling kernels would only lower the share.

    Once in a process the pass tries whether Inductor's templates work, which takes the better part of a
    second, most of it imports and Triton's hash of itself, which the first compilation needs in any case.
    """
    lower(eca_triton.ECA(64), torch.empty(64, 64, 24, 24, device="meta"), backend="eca_triton")
    seconds = []

    def timed(*args: Any) -> list[SiteRecord]:
        start = time.process_time()
        records = passes.lower_graph(*args)
        seconds.append(time.process_time() - start)
        return records

    monkeypatch.setattr(backend, "lower_graph", timed)
    with torch.device("meta"):
        model = timm.create_model("ecaresnet50d").eval()
    start = time.process_time()
    lower(model, torch.empty(8, 3, 224, 224, device="meta"), dtype=torch.bfloat16, backend="eca_triton")
    total = time.process_time() - start
    assert len(seconds) == 1
    assert sum(seconds) < 0.03 * (total - sum(seconds))
