"""Does Inductor, as it is installed, take our templates and put a neighbour into them?

They stand on names that torch does not promise. So before the first of them is planned, a toy graph goes
through Inductor's own lowering, scheduling and code generation, and what comes out is looked at; nothing is
compiled by Triton or launched. It takes about a tenth of a second.
"""

from __future__ import annotations

import functools
import logging
import re

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode

from ..ops.schema import ECA
from .compat import generated_code

log = logging.getLogger("eca_triton")


@functools.cache
def templates_work(device: torch.device) -> bool:
    """Whether `eca` and its neighbours become one right kernel. Teaches Inductor the op's lowering."""
    try:
        from . import lowering

        lowering.install()
        works = all(
            _is_ours(_code(device, order)) for order in (torch.channels_last, torch.contiguous_format)
        )
    except Exception:  # whatever a release may have changed
        log.debug("Inductor does not take our templates", exc_info=True)
        return False
    log.debug("Inductor %s our templates", "takes" if works else "does not fuse into")
    return works


def _is_ours(code: str) -> bool:
    """Whether there is one kernel, a template, in which every store derives its own indices."""
    stores = code.count("xindex = ")
    derived = re.findall(r"^ +(x\d+) = ", code, re.MULTILINE)
    return (
        code.count("async_compile.triton(") == 1
        and "triton_tem_fused" in code
        and all(derived.count(name) == stores for name in derived)
    )


def _code(device: torch.device, order: torch.memory_format) -> str:
    """Of eca(x, weight) * scale + residual on fake tensors, in ATen; the contiguous map takes two stores."""
    aten = torch.ops.aten
    with FakeTensorMode() as mode:
        x = torch.empty(64, 64, 24, 24, dtype=torch.float16, device=device).to(memory_format=order)
        inputs = [x, x.new_empty(1, 1, 3), x.new_empty(1, 64, 1, 1), torch.empty_like(x)]
    graph = fx.Graph()
    nodes = [graph.placeholder(f"input_{i}") for i in range(len(inputs))]
    rescaled = graph.call_function(ECA, (nodes[0], nodes[1]))
    scaled = graph.call_function(aten.mul.Tensor, (rescaled, nodes[2]))
    added = graph.call_function(aten.add.Tensor, (scaled, nodes[3]))
    for node, tensor in zip([*nodes, rescaled, scaled, added], [*inputs, x, x, x], strict=True):
        node.meta["val"] = tensor
    graph.output((added,))
    return generated_code(fx.GraphModule({}, graph), inputs, mode)
