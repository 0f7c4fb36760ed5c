"""Batch norm and ECA over the joint batch of two processes, by gloo on the CPU: the sums of one process."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path

import pytest
import torch.distributed as dist
from joint_batch import SPLITS, process

pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="this torch is built without gloo"
)


def test_two_processes_compute_what_one_does_with_the_whole_batch(tmp_path: Path) -> None:
    """Result, statistics and gradients in float64; eager and in one graph; also where batches differ."""
    context = multiprocessing.get_context("spawn")
    both = [context.Process(target=process, args=(rank, tmp_path)) for rank in (0, 1)]
    for each in both:
        each.start()
    for each in both:
        each.join(100)
        each.kill()
    assert [each.exitcode for each in both] == [0, 0]
    for rank in ("0", "1"):
        found = json.loads((tmp_path / rank).read_text())
        assert "no second derivatives" in found.pop("second derivative")
        assert found.keys() == {f"{split}, {how}" for split in SPLITS for how in ("eager", "compiled")}
        assert max(found.values()) < 1e-12
