"""`torch.autograd.grad` without autograd's engine, which will not start for a device that has no driver.

AOTAutograd asks it once per training graph, to trace the backward of fake tensors. The walk below visits the
nodes in the engine's order (latest forward operation first) and does what the engine does between two nodes:
sum the gradients that meet, and bring each to the shape and dtype of the value that it belongs to. So it
traces the engine's graph. Left out: hooks that a model registers on tensors, `set_materialize_grads(False)`.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Node = Any  # torch.autograd.graph.Node, whose `_input_metadata` and `_sequence_nr` have no stubs

engine_grad: Callable[..., tuple[Tensor | None, ...]] = torch.autograd.grad


def grad(
    outputs: Tensor | Sequence[Tensor],
    inputs: Tensor | Sequence[Tensor],
    grad_outputs: Any = None,
    retain_graph: bool | None = None,
    create_graph: bool = False,
    **options: Any,
) -> tuple[Tensor | None, ...]:
    """Gradients of outputs by inputs, None for an input that no output depends on.

    Anything but a first-order request for CUDA tensors with given output gradients goes to the engine.
    """
    outputs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    inputs = [inputs] if isinstance(inputs, Tensor) else list(inputs)
    if create_graph or grad_outputs is None or not any(t.is_cuda for t in outputs):
        return engine_grad(outputs, inputs, grad_outputs, retain_graph, create_graph, **options)
    grad_outputs = [grad_outputs] if isinstance(grad_outputs, Tensor) else list(grad_outputs)
    with torch.no_grad():
        return walk(outputs, inputs, grad_outputs)


def walk(
    outputs: list[Tensor], inputs: list[Tensor], grad_outputs: Sequence[Tensor | None]
) -> tuple[Tensor | None, ...]:
    arrived = _Arrived()
    for output, gradient in zip(outputs, grad_outputs, strict=True):
        arrived.add(_place(output), gradient)

    roots = list(dict.fromkeys(output.grad_fn for output in outputs if output.grad_fn is not None))
    sources = _sources(roots)
    leading = _leading_to({_place(t) for t in inputs}, sources)
    waiting_for = {node: len(edges) for node, edges in sources.items()}
    queue = [(-node._sequence_nr(), order, node) for order, node in enumerate(roots) if not waiting_for[node]]
    heapq.heapify(queue)
    order = len(roots)
    while queue:
        node = heapq.heappop(queue)[2]
        gradients = [arrived.get((node, index)) for index in range(len(node._input_metadata))]
        if hasattr(node, "variable"):  # the end point of a leaf
            arrived.add(id(node.variable), gradients[0])
        runs = node in leading and any(gradient is not None for gradient in gradients)
        produced = _run(node, gradients) if runs else [None] * len(node.next_functions)
        for (target, index), gradient in zip(node.next_functions, produced, strict=True):
            if target is None:
                continue
            arrived.add((target, index), gradient)
            waiting_for[target] -= 1
            if not waiting_for[target]:
                order += 1
                heapq.heappush(queue, (-target._sequence_nr(), order, target))
    return tuple(arrived.get(_place(t)) for t in inputs)


def _place(tensor: Tensor) -> Any:
    """Return where the gradient of a tensor arrives: at its node, or for a leaf at itself."""
    return id(tensor) if tensor.grad_fn is None else (tensor.grad_fn, tensor.output_nr)


class _Arrived(dict[Any, Tensor]):
    """Sum of the gradients that have reached a (node, forward output), or a leaf by its id."""

    def add(self, key: Any, gradient: Tensor | None) -> None:
        if gradient is not None:
            self[key] = self[key] + gradient if key in self else gradient


def _sources(roots: list[Node]) -> dict[Node, list[Node]]:
    """The nodes whose gradients each node waits for, one entry per edge."""
    sources: dict[Node, list[Node]] = {node: [] for node in roots}
    stack = list(roots)
    while stack:
        node = stack.pop()
        for target, _ in node.next_functions:
            if target is None:
                continue
            if target not in sources:
                sources[target] = []
                stack.append(target)
            sources[target].append(node)
    return sources


def _leading_to(places: set[Any], sources: dict[Node, list[Node]]) -> set[Node]:
    """The nodes that must run for gradients to reach the places: what lies behind those is left alone."""
    ends = {place[0] for place in places if isinstance(place, tuple)}
    stack = [node for node in sources if node in ends or id(getattr(node, "variable", None)) in places]
    leading: set[Node] = set()
    while stack:
        for source in sources.get(stack.pop(), ()):
            if source not in leading:
                leading.add(source)
                stack.append(source)
    return leading


def _run(node: Any, gradients: list[Tensor | None]) -> list[Tensor | None]:
    """Call one node; results are in the order of `node.next_functions`, in the form of the values there."""
    if issubclass(type(node), torch._C._FunctionBase):
        # A torch.autograd.Function: missing gradients are zeros, every argument of forward() has a result.
        metas = node._input_metadata
        given = [_zeros(meta) if g is None else g for g, meta in zip(gradients, metas, strict=True)]
        of_arguments = _as_tuple(node.apply(*given))
        needed = iter([g for g, need in zip(of_arguments, node.needs_input_grad, strict=True) if need])
        produced = tuple(None if target is None else next(needed) for target, _ in node.next_functions)
    else:
        produced = _as_tuple(node(*gradients))
    return [
        None if target is None else _in_form(gradient, target._input_metadata[index])
        for gradient, (target, index) in zip(produced, node.next_functions, strict=True)
    ]


def _as_tuple(produced: Any) -> tuple[Tensor | None, ...]:
    return produced if isinstance(produced, tuple) else (produced,)


def _zeros(meta: Any) -> Any:
    form = {"dtype": meta.dtype, "layout": torch.strided, "device": meta.device}
    return torch.ops.aten.zeros.default(meta.shape, **form)


def _in_form(gradient: Tensor | None, meta: Any) -> Tensor | None:
    """Bring a gradient to the form of its value: formulas leave broadcasting and promotion to the engine."""
    if gradient is None:
        return None
    if gradient.shape != meta.shape:
        gradient = gradient.sum_to_size(meta.shape)
    return gradient if gradient.dtype == meta.dtype else gradient.to(meta.dtype)
