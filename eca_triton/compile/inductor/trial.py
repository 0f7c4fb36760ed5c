"""Try whether Inductor, as it is installed, takes our templates and fuses a neighbour into them.

They stand on names that torch does not promise. So before the first of them is planned, a toy graph goes
through Inductor's own lowering, scheduling and code generation, and what comes out is looked at; nothing is
compiled by Triton or launched. It takes about a tenth of a second.
"""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Callable

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode

from ...ops.schema import ECA, RESCALED_PROJECTION
from ..compat import generated_code

log = logging.getLogger("eca_triton")


@functools.cache
def templates_work(device: torch.device) -> bool:
    """Return whether `eca` and its neighbours become one right kernel."""
    orders = torch.channels_last, torch.contiguous_format
    return all(_works(ECA, device, order, (1, 1, 3)) for order in orders)


@functools.cache
def products_work(device: torch.device) -> bool:
    """Return whether `rescaled_projection` and its neighbours do."""
    sizes = (128, 64), (64, 128), (64, 128)
    return templates_work(device) and _works(RESCALED_PROJECTION, device, torch.channels_last, *sizes)


def _works(
    op: Callable[..., Tensor], device: torch.device, order: torch.memory_format, *sizes: tuple[int, ...]
) -> bool:
    """Try whether a toy graph of an op becomes one kernel of ours; installs the lowerings of the ops."""
    try:
        from . import lowering

        lowering.install()
        works = _is_ours(_code(op, device, order, *sizes))
    except Exception:  # whatever a release may have changed
        log.debug("Inductor does not take our template of %s", op, exc_info=True)
        return False
    log.debug("Inductor %s our template of %s", "takes" if works else "does not fuse into", op)
    return works


def _is_ours(code: str) -> bool:
    """Return whether there is one kernel, a template, in which every store derives its own indices."""
    stores = code.count("xindex = ")
    derived = re.findall(r"^ +(x\d+) = ", code, re.MULTILINE)
    return (
        code.count("async_compile.triton(") == 1
        and "triton_tem_fused" in code
        and all(derived.count(name) == stores for name in derived)
    )


def _code(
    op: Callable[..., Tensor], device: torch.device, order: torch.memory_format, *sizes: tuple[int, ...]
) -> str:
    """Return the code of op(x, ...) * scale + residual on fake tensors; a contiguous map takes two stores.

    `sizes`: of the op's inputs after x.
    """
    aten = torch.ops.aten
    with FakeTensorMode() as mode:
        x = torch.empty(64, 64, 24, 24, dtype=torch.float16, device=device).to(memory_format=order)
        inputs = [x, *(x.new_empty(size) for size in sizes)]
        out = op(*inputs)
        inputs += [x.new_empty(1, out.shape[1], 1, 1), torch.empty_like(out)]
    graph = fx.Graph()
    nodes = [graph.placeholder(f"input_{i}") for i in range(len(inputs))]
    rescaled = graph.call_function(op, tuple(nodes[:-2]))
    scaled = graph.call_function(aten.mul.Tensor, (rescaled, nodes[-2]))
    added = graph.call_function(aten.add.Tensor, (scaled, nodes[-1]))
    for node, tensor in zip([*nodes, rescaled, scaled, added], [*inputs, out, out, out], strict=True):
        node.meta["val"] = tensor
    graph.output((added,))
    return generated_code(fx.GraphModule({}, graph), inputs, mode)
