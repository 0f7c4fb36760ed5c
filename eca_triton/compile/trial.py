"""Does Inductor, as it is installed, take our templates and put a neighbour into them?

They stand on names that torch does not promise. So before the first of them is planned, a toy graph goes
through Inductor's own lowering, scheduling and code generation, and what comes out is looked at; nothing is
compiled by Triton or launched. It takes some 70 ms on a CPU of 2023.
"""

from __future__ import annotations

import functools
import logging

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode

from ..ops.schema import ECA
from .compat import generated_code

log = logging.getLogger("eca_triton")


@functools.cache
def templates_work(device: torch.device) -> bool:
    """Whether `eca` and an addition after it become one kernel. Teaches Inductor the op's lowering."""
    try:
        from . import lowering

        lowering.install()
        mode = FakeTensorMode()
        code = generated_code(*_toy(device, mode), mode)
        works = code.count("async_compile.triton(") == 1 and "triton_tem_fused" in code
    except Exception:  # whatever a release may have changed
        log.debug("Inductor does not take our templates", exc_info=True)
        return False
    log.debug("Inductor %s our templates", "takes" if works else "does not fuse into")
    return works


def _toy(device: torch.device, mode: FakeTensorMode) -> tuple[fx.GraphModule, list[Tensor]]:
    """eca(x, weight) + residual on fake channels-last tensors, in ATen."""
    with mode:
        x = torch.empty(8, 64, 8, 8, dtype=torch.float16, device=device)
        x = x.to(memory_format=torch.channels_last)
        weight = torch.empty(1, 1, 3, dtype=torch.float16, device=device)
        graph = fx.Graph()
        inputs = [x, weight, torch.empty_like(x)]
        nodes = [graph.placeholder(f"input_{i}") for i in range(len(inputs))]
        rescaled = graph.call_function(ECA, (nodes[0], nodes[1]))
        added = graph.call_function(torch.ops.aten.add.Tensor, (rescaled, nodes[2]))
        for node, tensor in zip([*nodes, rescaled, added], [*inputs, x, x], strict=True):
            node.meta["val"] = tensor
        graph.output((added,))
    return fx.GraphModule({}, graph), inputs
