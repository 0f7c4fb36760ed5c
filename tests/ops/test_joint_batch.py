"""Batch norm and ECA over the joint batch of two processes, by gloo on the CPU: the sums of one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed as dist
from paths import ROOT, TESTS

pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="this torch is built without gloo"
)


def test_two_processes_compute_what_one_does_with_the_whole_batch(tmp_path: Path) -> None:
    """Result, statistics and gradients in float64; eager and in one graph; also where batches differ."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += [str(TESTS / "ops" / "joint_batch_worker.py"), str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{TESTS}"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    for rank in ("0", "1"):
        found = json.loads((tmp_path / rank).read_text())
        assert "no second derivatives" in found.pop("second derivative")
        assert found.keys() == {
            f"{split}, {how}" for split in ("equal", "unequal") for how in ("eager", "compiled")
        }
        assert max(found.values()) < 1e-12
