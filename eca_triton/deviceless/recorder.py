"""Takes the place of Inductor's last step: notes the scheduled kernels and neither writes nor loads them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, Literal
from unittest.mock import patch

import torch
from torch._inductor import ir
from torch._inductor.codegen.triton import TritonScheduling
from torch._inductor.graph import GraphLowering
from torch._inductor.scheduler import ExternKernelSchedulerNode, NopKernelSchedulerNode
from torch._inductor.utils import Placeholder, get_fused_kernel_name
from torch._inductor.virtualized import V
from torch.fx.node import map_arg

from .result import Buffer, Kernel

Node = Any  # torch._inductor.scheduler.BaseSchedulerNode
SourceOf = dict[
    str, tuple[str, str]
]  # name of an operation -> name and source of the kernel that performs it


@contextmanager
def recording_kernels(sources: bool) -> Iterator[list[Kernel]]:
    """Within it, every graph that Inductor compiles appends its kernels to the yielded list.

    Args:
        sources: Generate Triton source too.
    """
    kernels: list[Kernel] = []

    def compile_to_module(graph: GraphLowering) -> Any:
        kernels.extend(_kernels(graph, sources))
        outputs = [_output_maker(output) for output in graph.graph_outputs]
        return SimpleNamespace(call=lambda inputs: [make() for make in outputs], runner=None)

    with patch.object(GraphLowering, "compile_to_module", compile_to_module):
        yield kernels


def _kernels(graph: GraphLowering, sources: bool) -> Iterator[Kernel]:
    """Schedule the graph as GraphLowering.codegen does, and read off what it would launch."""
    graph.init_wrapper_code()
    graph._update_scheduler()
    source_of = _generate(graph) if sources else {}
    phase: Literal["forward", "backward"] = "backward" if graph.is_backward else "forward"
    for node in graph.scheduler.nodes:
        # The parts of a result with several tensors are nodes too, but nothing that runs.
        if isinstance(node, NopKernelSchedulerNode) or isinstance(node.node, ir.MultiOutput):
            continue
        external = isinstance(node, ExternKernelSchedulerNode)
        name, source = _external_name(node.node), None
        if not external:
            name, source = source_of.get(node.get_nodes()[0].get_name(), (_fused_name(node), None))
        moved = node.get_read_write_buffer_accesses(include_reads=True, include_writes=True)
        written = {dep.name for dep in node.read_writes.writes}
        reads = [
            _buffer(V.graph.get_buffer(name), count) for name, count in moved.items() if name not in written
        ]
        writes = [
            part for name, count in moved.items() if name in written for part in _written(node, name, count)
        ]
        yield Kernel(
            name=name,
            kind="extern" if external else "triton",
            phase=phase,
            ops=_operations(node),
            reads=tuple(reads),
            writes=tuple(writes),
            bytes_moved=sum(moved.values()),
            source=source,
            flops=_flops(node),
        )


def _generate(graph: GraphLowering) -> SourceOf:
    """Run Inductor's code generation, keeping each Triton kernel's source and the operations it performs."""
    source_of: SourceOf = {}
    define: Callable[..., str] = TritonScheduling.define_kernel

    def define_kernel(scheduling: Any, source: str, schedule: Any, kernel: Any) -> str:
        name = define(scheduling, source, schedule, kernel)
        for placeholder in (Placeholder.DESCRIPTIVE_NAME, Placeholder.KERNEL_NAME):
            source = source.replace(str(placeholder), name)
        for part in schedule:  # scheduler nodes, and markers of where a reduction ends
            if hasattr(part, "get_nodes"):
                source_of.update({node.get_name(): (name, source) for node in part.get_nodes()})
        return name

    with patch.object(TritonScheduling, "define_kernel", define_kernel):
        wrapper: Any = graph.wrapper_code
        wrapper.push_codegened_graph(graph)
        graph.scheduler.codegen()
        wrapper.pop_codegened_graph()
    return source_of


def _fused_name(node: Node) -> str:
    return f"triton_{get_fused_kernel_name(node.get_nodes(), 'original_aten')}"


def _external_name(node: Any) -> str:
    overload = getattr(node, "op_overload", None)
    return str(overload or getattr(node, "python_kernel_name", None) or type(node).__name__)


def _operations(node: Node) -> tuple[str, ...]:
    """The operations of the model, before decomposition, that meet in a kernel."""
    origins = {
        origin for part in node.get_nodes() if part.node is not None for origin in part.node.get_origins()
    }
    calls = {
        str(origin.meta.get("original_aten") or origin.target)
        for origin in origins
        if origin.op == "call_function"
    }
    return tuple(sorted(calls))


def _flops(node: Node) -> int:
    """Count by the formulas of `torch.utils.flop_counter`: library calls and Inductor's own templates.

    Other kernels name a convolution as their origin too: those that copy its input into another layout.
    """
    from torch.utils.flop_counter import flop_registry

    computing = [
        part.node
        for part in node.get_nodes()
        if isinstance(part, ExternKernelSchedulerNode) or isinstance(part.node, ir.TemplateBuffer)
    ]
    found = 0
    for each in computing:
        calls = [
            origin
            for origin in each.get_origins()
            if getattr(origin.target, "overloadpacket", None) in flop_registry
        ]
        if calls:
            call = max(calls)  # by the graph's order: the earlier ones only led to its input
            formula = flop_registry[call.target.overloadpacket]
            arguments = map_arg(call.args, _value), map_arg(call.kwargs, _value)
            found += _number(formula(*arguments[0], **arguments[1], out_val=_value(call)))
    return found


def _value(node: Any) -> Any:
    return node.meta["val"]


def _number(size: Any) -> int:
    return int(size.node.hint or 0) if isinstance(size, torch.SymInt) else int(size)


def _written(node: Node, name: str, bytes_moved: int) -> Iterator[Buffer]:
    """The buffers behind a written name: several tensors may share one, with a node for each."""
    value: Any = V.graph.get_buffer(name)
    if not isinstance(value.layout, ir.MultiOutputLayout):
        yield _buffer(value, bytes_moved)
        return
    users = [getattr(user.node, "node", None) for user in node.scheduler.name_to_buf[name].users]
    for part in users:
        if isinstance(part, ir.MultiOutput):
            size = _numbers(part.get_size())
            yield _buffer(part, math.prod(size) * part.get_dtype().itemsize)


def _buffer(value: Any, bytes_moved: int) -> Buffer:
    return Buffer(
        value.get_name(),
        _numbers(value.get_size()),
        _numbers(value.get_stride()),
        value.get_dtype(),
        bytes_moved,
    )


def _numbers(sizes: Any) -> tuple[int, ...]:
    return tuple(int(V.graph.sizevars.optimization_hint(size, fallback=1)) for size in sizes)


def _output_maker(output: Any) -> Callable[[], Any]:
    """A function that makes what a graph returns at one place: a tensor of the right form, a size or None."""
    if isinstance(output, ir.NoneAsConstantBuffer):
        return lambda: None
    if isinstance(output, ir.ShapeAsConstantBuffer):
        (number,) = _numbers([output.expr])
        return lambda: number
    size, stride = _numbers(output.get_size()), _numbers(output.get_stride())
    dtype, device = output.get_dtype(), output.get_device()
    return lambda: torch.empty_strided(size, stride, dtype=dtype, device=device)
