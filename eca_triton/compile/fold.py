"""The plan `convfold`: gates from the input of the 1x1 convolution before a site, the rest as its epilogue.

    y = a * (W u + b) + c      mean(y) = a * (W mean(u) + b) + c      out = tail(y * gate(mean(y)))

The convolution becomes a product of matrices, and what follows is emitted on [N * HW, C] too, with views back
last: Inductor's template for products then takes all of it as its epilogue, on every version of torch.
"""

from __future__ import annotations

import functools
import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from .emit import become, call, taps
from .graph import changed_between, op_name, value
from .neighbours import BatchNorm, tail_of
from .probe import Sizes
from .projection import Projection
from .site import Site

FUNCTIONS = {
    "gain": torch.mul,
    "residual": torch.add,
    "relu": F.relu,
    "relu6": F.relu6,
    "silu": F.silu,
    "gelu": F.gelu,
    "hardswish": F.hardswish,
}


def folds_into_projection(site: Site) -> bool:
    """Whether `fold` may be called: what it moves behind the last call of the tail is the same there."""
    if site.projection is None or value(site.mul).requires_grad:
        return False
    norm = site.batch_norm
    vectors = () if norm is None else (norm.mean, norm.var, norm.weight, norm.bias)
    return site.projection.stays_until(end_of_tail(site), site.weight, site.bias, *vectors)


def end_of_tail(site: Site) -> fx.Node:
    """The last call of the site and its tail, as far as these can be laid flat."""
    return ([site.mul] + [step for _, step in _steps(site)])[-1]


def fold(site: Site) -> None:
    """Emit the plan where the tail ends; that call's node stays, with its dtype and order in memory."""
    projection, norm, steps = site.projection, site.batch_norm, _steps(site)
    assert projection is not None
    last = steps[-1][1] if steps else site.mul
    with last.graph.inserting_before(last):
        # Cast where autocast would do it.
        u = _cast(site, projection.input, value(projection.node).dtype)
        matrix = _cast(site, call(site, torch.flatten, projection.weight, 1), value(projection.node).dtype)
        arithmetic = torch.promote_types(value(u).dtype, torch.float32)
        gate = _gate(site, projection, u, matrix, arithmetic)
        y = _cast(site, call(site, torch.mm, _flat(site, u), call(site, torch.t, matrix)), arithmetic)
        y = _affine(site, y, projection, norm)
        sizes = [_size(site, u, dim) for dim in (0, *range(2, len(site.shape)))]
        gate = call(site, torch.unsqueeze, gate, 1)
        gate = call(site, torch.Tensor.expand, gate, -1, _product(site, sizes[1:]), -1)
        y = call(site, torch.mul, y, call(site, torch.flatten, gate, 0, 1))
        y = _tail(site, y, steps)
        y = call(site, torch.reshape, _cast(site, y, value(last).dtype), (*sizes, site.shape[1]))
        if value(last).is_contiguous():  # what follows may take views that another order has not
            y = call(site, torch.movedim, y, -1, 1)
    if value(last).is_contiguous():
        become(last, torch.Tensor.contiguous, y)
    else:
        become(last, torch.movedim, y, -1, 1)
    # A node whose shape somebody asks for stays, and compilers drop it later.
    replaced = [projection.node, *([] if norm is None else [norm.node]), *site.chain, site.mul]
    for node in reversed([*replaced, *(step for _, step in steps)]):
        if node is not last and not node.users:
            node.graph.erase_node(node)


def _tail(site: Site, y: fx.Node, steps: list[tuple[str, fx.Node]]) -> fx.Node:
    """The steps of the tail on the flat map."""
    before = site.mul
    for name, step in steps:
        operands = [y if arg is before else _operand(site, arg) for arg in step.args]
        options = {key: option for key, option in step.kwargs.items() if key != "inplace"}
        if name not in ("gain", "residual"):
            operands = operands[:1]
        y, before = call(site, FUNCTIONS[name], *operands, **options), step
    return y


def _steps(site: Site) -> list[tuple[str, fx.Node]]:
    """The calls of the tail, up to the first whose other operands cannot be laid flat."""
    steps: list[tuple[str, fx.Node]] = []
    before = site.mul
    for name, step in tail_of(site.mul, Sizes()):
        others = [arg for arg in step.args if arg is not before]
        if name in ("gain", "residual"):
            if len(others) != 1 or not _lies_flat(name, others[0]) or "out" in step.kwargs:
                break
            # A sum that is written into the residual, or a residual that is changed before the end.
            if op_name(step) in ("add_", "iadd", "mul_", "imul", "multiply_") and step.args[0] is not before:
                break
        steps.append((name, step))
        before = step
    for index, (name, step) in enumerate(steps):
        others = [arg for arg in step.all_input_nodes if arg not in {site.mul, *dict(steps).values()}]
        if any(changed_between(other, step, steps[-1][1]) for other in others):
            return steps[:index]
    return steps


def _lies_flat(name: str, other: Any) -> bool:
    if name == "gain":
        return isinstance(other, (int, float)) or (
            isinstance(value(other), torch.Tensor) and value(other).shape.numel() == 1
        )
    return isinstance(other, fx.Node) and value(other).dtype.is_floating_point


def _gate(
    site: Site, projection: Projection, u: fx.Node, matrix: fx.Node, arithmetic: torch.dtype
) -> fx.Node:
    """The gates [N, C] by one op; the mean before it is native, and rides on the kernel that makes u."""
    pooled = call(site, torch.mean, u, tuple(range(2, len(site.shape))), dtype=arithmetic)
    norm = site.batch_norm
    keywords: dict[str, Any] = {"circular": site.circular, "gate": site.gate}
    if norm is not None:
        keywords |= {"bn_mean": norm.mean, "bn_var": norm.var, "bn_eps": norm.eps}
        keywords |= {"bn_weight": norm.weight, "bn_bias": norm.bias}
    op = torch.ops.eca_triton.gate_from_projection.default
    return call(site, op, pooled, matrix, taps(site), site.bias, projection.bias, **keywords)


def _affine(site: Site, y: fx.Node, projection: Projection, norm: BatchNorm | None) -> fx.Node:
    """The bias and the batch norm behind the product, centred first as the kernels do it."""
    if projection.bias is not None:
        y = call(site, torch.add, y, projection.bias)
    if norm is None:
        return y
    scale = call(site, torch.rsqrt, call(site, torch.add, norm.var, norm.eps))
    if norm.weight is not None:
        scale = call(site, torch.mul, scale, norm.weight)
    y = call(site, torch.mul, call(site, torch.sub, y, norm.mean), scale)
    return y if norm.bias is None else call(site, torch.add, y, norm.bias)


def _operand(site: Site, arg: Any) -> Any:
    """Another argument of a step of the tail, as it is beside the flat map."""
    if not isinstance(value(arg), torch.Tensor):
        return arg
    return call(site, torch.reshape, arg, (1,)) if value(arg).shape.numel() == 1 else _flat(site, arg)


def _flat(site: Site, x: fx.Node) -> fx.Node:
    """[N, C, *spatial] -> [N * HW, C]: a view of a channels-last map."""
    return call(site, torch.flatten, call(site, torch.movedim, x, 1, -1), 0, -2)


def _cast(site: Site, x: fx.Node, dtype: torch.dtype) -> fx.Node:
    return x if value(x).dtype == dtype else call(site, torch.Tensor.to, x, dtype)


def _size(site: Site, x: fx.Node, dim: int) -> Any:
    size = value(x).shape[dim]
    return size if isinstance(size, int) else call(site, torch.Tensor.size, x, dim)


def _product(site: Site, sizes: list[Any]) -> Any:
    """The product of sizes: a number, or the node of one."""

    def times(a: Any, b: Any) -> Any:
        return a * b if isinstance(a, int) and isinstance(b, int) else call(site, operator.mul, a, b)

    return functools.reduce(times, sizes)
