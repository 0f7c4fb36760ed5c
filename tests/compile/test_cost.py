"""What recognition and rewriting add to the time of torch.compile."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch

from eca_triton.compile import backend, passes
from eca_triton.deviceless import lower

timm = pytest.importorskip("timm")


@pytest.mark.slow
def test_lowering_adds_under_three_percent_to_ecaresnet50d(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Against tracing and code generation alone: compiling kernels would only lower the share."""
    seconds = []

    def timed(*args: Any) -> list[passes.SiteRecord]:
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
