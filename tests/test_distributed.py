"""Two processes train compiled ECA networks together: the losses of one process with the joint batch.

DDP and FSDP2 over gloo, on the CPU of one machine. Sites are planned as for a GPU and run our ops' CPU
implementation; aot_eager runs the graphs, since Inductor's C++ for both processes would take a minute.
torch's SyncBatchNorm has no CPU kernels, and its module refuses the CPU: `distributed_worker` calls its
autograd function and gives that plain formulas for the missing five, so that all around them, graph breaks
too, is torch's own. NCCL is not tested.

DDP cuts a graph in front of the parameter that fills a bucket, where Dynamo's DDPOptimizer is on (it is).
A site is cut only if its own k weights do that; then it stays as it was.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from distributed_worker import WAYS
from paths import ROOT

TIMEOUT_S = 100
OPS = "eca_triton::gate_from_pool", "eca_triton::gate_from_pool_backward"

pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="this torch is built without gloo"
)


def torchrun(file: Path) -> dict[str, Any]:
    """What two processes of the worker write into the file; they are ended where that takes too long."""
    # --standalone lets the system choose a free port.
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += [str(ROOT / "tests" / "distributed_worker.py"), str(file)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with subprocess.Popen(command, env=environment, text=True, **pipes) as running:
        try:
            output, _ = running.communicate(timeout=TIMEOUT_S)
        except subprocess.TimeoutExpired:
            running.terminate()  # torchrun ends its processes then, which have sessions of their own
            output, _ = running.communicate()
            pytest.fail(f"not done after {TIMEOUT_S} s:\n{output}")
    assert running.returncode == 0, output
    return json.loads(file.read_text())


@pytest.mark.slow
def test_two_processes_train_as_one_does_with_the_joint_batch(tmp_path: Path) -> None:
    """One test, since the processes take long to start: losses, plans, and our ops in the last step."""
    found = torchrun(tmp_path / "found.json")
    assert found.keys() == WAYS.keys()
    for name, way in found.items():
        assert way["losses"] == pytest.approx(way["joint"], rel=1e-5), name
        assert len(set(way["losses"])) == len(way["losses"]), name
        # A graph that serves both blocks is compiled once, so what counts is what ran: two sites.
        assert {plan for plans in way["plans"] for plan in plans} == {"pool"}, name
        calls = 2 * WAYS[name].parts
        assert set(way["calls"].items()) == {(OPS[0], calls), (OPS[1], calls)}, name
    for name in ("DDP of compiled", "compiled DDP"):
        # Dynamo's one graph became two, so that gradients of the last layers travel first.
        assert [plans for plans in found[name]["plans"] if plans] == [["pool"], ["pool"]], name
