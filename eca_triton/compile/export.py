"""Exported programs: ECA in them lowered to our operators, and our operators taken apart again."""

from __future__ import annotations

import copy
import operator
from collections.abc import Collection
from typing import Any, TypeVar

import torch
from torch import Tensor, fx
from torch._ops import OpOverload, OpOverloadPacket
from torch.export import ExportedProgram

from ..ops.decompositions import decomposition_table
from ..ops.schema import ECA
from .inductor.inline import inline
from .inductor.trial import templates_work
from .match.graph import keep_names, value
from .passes import lower_graph
from .settings import Settings

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
        ExportedProgram; `eca_triton.compile.record.recording` collects what became of every site, and why.

    Raises:
        ValueError: the program went through `run_decompositions`.

    Examples:
        >>> program = torch.export.export(model.eval().cuda(), (x,))
        >>> lowered = eca_triton.rewrite_exported(program)
    """
    return rewritten(program, Settings.from_environment(force=force, device=device, exported=True))


def rewritten(program: ExportedProgram, settings: Settings) -> ExportedProgram:
    """`rewrite_exported` with settings of any kind."""
    _check_whole(program)
    root = _copy(program.graph_module)
    targets = {node: node.target for graph in _graphs_of(root) for node in graph.nodes}
    lower_graph(root, settings)
    for graph in _graphs_of(root):
        for node in list(graph.nodes):
            if "example_value" in node.meta:
                node.meta["val"] = node.meta.pop("example_value")
            ours = node.op == "call_function" and targets.get(node) is not node.target
            if ours and not isinstance(node.target, OpOverload) and not _takes_one_of_several(node):
                inline(node, node.target, {})
        _erase_unread_sizes(graph)
    return _like(program, root)


def _takes_one_of_several(node: fx.Node) -> bool:
    """Return whether the node stands for one result of an operator with several."""
    return node.target is operator.getitem and not isinstance(value(node.args[0]), Tensor)


def decompose(program: Graphs) -> Graphs:
    """Takes every operator of ours apart into plain ATen: for ONNX, TensorRT, and whoever knows no other.

    Computes what our operators compute on the CPU, bit for bit; everything else in the graph stays as it is.

    Args:
        program: an exported program, or a graph module whose nodes have their values in `meta["val"]` or
            `meta["example_value"]`. It is not changed.

    Returns:
        The same type; parameters and buffers are shared.

    Examples:
        >>> torch.onnx.export(eca_triton.decompose(program), dynamo=True)
    """
    plain: Any = _decomposed(program.graph_module if isinstance(program, ExportedProgram) else program)
    return _like(program, plain) if isinstance(program, ExportedProgram) else plain  # type: ignore[return-value]


def aoti_compile_and_package(
    program: ExportedProgram,
    *,
    package_path: str | None = None,
    inductor_configs: dict[str, Any] | None = None,
) -> str:
    """`torch._inductor.aoti_compile_and_package` with ECA lowered, for a package that runs without us.

    A package has no Python: it holds machine code, and calls other operators by their names. So a site is
    lowered where Inductor makes a kernel of ours part of the package. Elsewhere, on the CPU for one, it is
    Inductor's own code, and so is every operator of ours that the program calls by itself.

    Args:
        program: as for `rewrite_exported`.
        package_path: where to write to, ending in ".pt2"; None: torch's choice.
        inductor_configs: options of Inductor for this compilation.

    Returns:
        The path, for `torch._inductor.aoti_load_package` or C++'s `AOTIModelPackageLoader`.

    Examples:
        >>> path = eca_triton.aoti_compile_and_package(program, package_path="ecaresnet50d.pt2")
        >>> out = torch._inductor.aoti_load_package(path)(x)
    """
    lowered = rewritten(program, Settings.from_environment(exported=True, packaged=True))
    values = [node.meta.get("val") for graph in _graphs_of(lowered.graph_module) for node in graph.nodes]
    devices = {value.device for value in values if isinstance(value, torch.Tensor)}
    gpus = [device for device in devices if device.type == "cuda"]
    templates = bool(gpus) and all(templates_work(device) for device in gpus)
    root = _decomposed(lowered.graph_module, keep=(ECA,) if templates else ())
    return torch._inductor.aoti_compile_and_package(
        _like(lowered, root), package_path=package_path, inductor_configs=inductor_configs
    )


def _decomposed(root: fx.GraphModule, keep: Collection[Any] = ()) -> fx.GraphModule:
    """A copy in which only those of our operators are left that are to be kept."""
    root = _copy(root)
    table = decomposition_table()
    for module in _graph_modules(root):
        for node in list(module.graph.nodes):
            function = None if node.target in keep else table.get(_overload(node.target))
            if function is not None:
                inline(node, function, table)
        module.recompile()
    return root


def _check_whole(program: ExportedProgram) -> None:
    """Raise where a convolution over channels is one no longer: its neighbours are in pieces, too."""
    for graph in _graphs_of(program.graph_module):
        for node in graph.find_nodes(op="call_function", target=torch.ops.aten.convolution.default):
            weight = value(node.args[1])
            if tuple(weight.shape[:2]) == (1, 1) and weight.numel() == max(weight.shape):
                raise ValueError(
                    "program must be as torch.export.export returns it, before run_decompositions, got one "
                    f"with the core ATen convolution {node.name}"
                )


def _copy(root: fx.GraphModule) -> fx.GraphModule:
    """A copy that shares the tensors, with the names of all nodes."""
    shared = {id(tensor): tensor for tensor in (*root.parameters(), *root.buffers())}
    copied = copy.deepcopy(root, shared)
    for graph, theirs in zip(_graphs_of(copied), _graphs_of(root), strict=True):
        keep_names(graph, theirs)
    return copied


def _overload(target: Any) -> Any:
    """The one overload of an operator that somebody called by its packet, as `torch.ops.eca_triton.eca`."""
    return target.default if isinstance(target, OpOverloadPacket) and hasattr(target, "default") else target


def _graphs_of(root: fx.GraphModule) -> list[fx.Graph]:
    return [module.graph for module in _graph_modules(root)]


def _graph_modules(root: fx.GraphModule) -> list[fx.GraphModule]:
    """The module and those of the regions in its graph (autocast, no_grad, branches)."""
    return [module for module in root.modules() if isinstance(module, fx.GraphModule)]


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
