"""Exported programs: ECA in them lowered to our operators, and our operators taken apart again."""

from __future__ import annotations

import copy
from collections.abc import Collection
from typing import Any, TypeVar

import torch
from torch import fx
from torch._ops import OpOverload, OpOverloadPacket
from torch.export import ExportedProgram

from .compile.inline import inline
from .compile.passes import lower_graph
from .compile.plan import Settings
from .decompositions import decomposition_table

Graphs = TypeVar("Graphs", ExportedProgram, fx.GraphModule)


def rewrite_exported(
    program: ExportedProgram, *, force: bool = False, device: str | None = None
) -> ExportedProgram:
    """Lowers the ECA sites of an exported network, with what stands around them, to our operators.

    Equivalent to: what `backend="eca_triton"` does with the network in inference. Give it the program as
    `torch.export.export` returns it, before `run_decompositions`. Sizes stay as dynamic as they are.
    Sites behind a batch norm that trains are left alone.

    Args:
        program: it is not changed; both programs share parameters and buffers.
        force: lower on any device and size, as ECA_TRITON_FORCE=1 does.
        device: plan as though the program were on a device of this type: "cuda" for one that is exported on
            the CPU and moved later.

    Returns:
        ExportedProgram; `eca_triton.compile.passes.recording` collects what became of every site, and why.

    Example:
        >>> program = torch.export.export(model.eval().cuda(), (x,))
        >>> lowered = eca_triton.rewrite_exported(program)
    """
    return rewritten(program, Settings.from_environment(force=force, device=device, exported=True))


def rewritten(program: ExportedProgram, settings: Settings) -> ExportedProgram:
    """`rewrite_exported` with settings of any kind."""
    root = _copy(program.graph_module)
    targets = {node: node.target for graph in _graphs_of(root) for node in graph.nodes}
    lower_graph(root, settings)
    for graph in _graphs_of(root):
        for node in list(graph.nodes):
            if "example_value" in node.meta:
                node.meta["val"] = node.meta.pop("example_value")
            ours = node.op == "call_function" and targets.get(node) is not node.target
            if ours and not isinstance(node.target, OpOverload):
                inline(node, node.target, {})
        _erase_unread_sizes(graph)
    return _like(program, root)


def decompose(program: Graphs) -> Graphs:
    """Takes every operator of ours apart into plain ATen: for ONNX, TensorRT, and whoever knows no other.

    Computes what our operators compute on the CPU, bit for bit; everything else in the graph stays as it is.

    Args:
        program: an exported program, or a graph module whose nodes have their values in `meta["val"]` or
            `meta["example_value"]`. It is not changed.

    Returns:
        The same type; parameters and buffers are shared.

    Example:
        >>> torch.onnx.export(eca_triton.decompose(program), dynamo=True)
    """
    if isinstance(program, ExportedProgram):
        return _like(program, _decomposed(program.graph_module))
    return _decomposed(program)


def _decomposed(root: fx.GraphModule, keep: Collection[Any] = ()) -> fx.GraphModule:
    """A copy in which only those of our operators are left that are to be kept."""
    root = _copy(root)
    table = decomposition_table()
    for graph in _graphs_of(root):
        for node in list(graph.nodes):
            function = None if node.target in keep else table.get(_overload(node.target))
            if function is not None:
                inline(node, function, table)
        graph.owning_module.recompile()
    return root


def _copy(root: fx.GraphModule) -> fx.GraphModule:
    """A copy that shares the tensors, with the names of all nodes."""
    shared = {id(tensor): tensor for tensor in (*root.parameters(), *root.buffers())}
    copied = copy.deepcopy(root, shared)
    for graph, theirs in zip(_graphs_of(copied), _graphs_of(root), strict=True):
        for node, original in zip(graph.nodes, theirs.nodes, strict=True):
            node.name = original.name  # a name of Python's, such as "input", has become another one
    return copied


def _overload(target: Any) -> Any:
    """The one overload of an operator that somebody called by its packet, as `torch.ops.eca_triton.eca`."""
    return target.default if isinstance(target, OpOverloadPacket) and hasattr(target, "default") else target


def _graphs_of(root: fx.GraphModule) -> list[fx.Graph]:
    """The graph and those of the regions in it (autocast, no_grad, branches)."""
    return [module.graph for module in root.modules() if isinstance(module, fx.GraphModule)]


def _erase_unread_sizes(graph: fx.Graph) -> None:
    for node in reversed(graph.nodes):
        if node.target is torch.ops.aten.sym_size.int and not node.users:
            graph.erase_node(node)


def _like(program: ExportedProgram, root: fx.GraphModule) -> ExportedProgram:
    """The program with another graph, whose inputs and outputs have the same names."""
    return ExportedProgram(
        root=root,
        graph=root.graph,
        graph_signature=copy.deepcopy(program.graph_signature),
        state_dict=program.state_dict,
        range_constraints=copy.deepcopy(program.range_constraints),
        module_call_graph=copy.deepcopy(program.module_call_graph),
        example_inputs=program.example_inputs,
        constants=program.constants,
        verifiers=program.verifiers,
    )
