"""The plans `convfold` and `convblock`: gates from the input of the 1x1 convolution before a site.

    y = a * (W u + b) + c      mean(y) = a * (W mean(u) + b) + c      out = tail(y * gate(mean(y)))

So the map is not read for them. Where Inductor puts what follows a product of matrices into its kernel, the
convolution becomes one, and all of the tail is emitted on [N * HW, C] too, with views back last: in that form
Inductor fuses it on every version of torch. Elsewhere the convolution and what follows stay as they are; or,
where memory is all that it waits for, one op of ours is convolution, batch norm and rescaling (`convblock`).
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from ...activations import ACTIVATIONS
from ..match.graph import hints, is_contiguous, value
from ..match.projection import Projection
from ..match.site import Site, comes_stored
from ..plan.cost import pools_rows_first
from .calls import become, call, cast, taps

FUNCTIONS: dict[str, Callable[..., Any]] = {
    "gain": torch.mul,
    "residual": torch.add,
    **{name: each.function for name, each in ACTIVATIONS.items() if name != "identity"},
}


def gate_before_projection(site: Site) -> fx.Node:
    """The gates [N, C] in at least float32."""
    return _from_pool(site, torch.ops.eca_triton.gate_from_projection.default)


def _from_pool(site: Site, op: Callable[..., Any]) -> fx.Node:
    """One op on the pooled input of the convolution."""
    projection, norm = site.projection, site.batch_norm
    assert projection is not None
    keywords: dict[str, Any] = {"circular": site.circular, "gate": site.gate}
    if norm is not None:
        keywords |= {"bn_mean": norm.mean, "bn_var": norm.var, "bn_eps": norm.eps}
        keywords |= {"bn_weight": norm.weight, "bn_bias": norm.bias}
    args = _pooled(site, projection), _matrix(site, projection), taps(site), site.bias, projection.bias
    return call(site, op, *args, **keywords)


def _pooled(site: Site, projection: Projection) -> fx.Node:
    """The mean of the input in at least float32, native: it rides on the kernel that makes the input.

    Of few and long sums Inductor would make two kernels, which read the input anew: so rows are first.
    """
    dtype = torch.promote_types(value(projection.node).dtype, torch.float32)
    u, dims = projection.input, tuple(range(2, len(site.shape)))
    n, i = hints(value(u).shape[:2])
    if len(dims) > 1 and pools_rows_first(n, i) and not comes_stored(u):
        u, dims = call(site, torch.mean, u, dims[-1], dtype=dtype), dims[:-1]
    return call(site, torch.mean, u, dims, dtype=dtype)


def block_from_projection(site: Site) -> None:
    """Let the rescaling become one op, from the convolution's input; its node, dtype and layout stay."""
    projection = site.projection
    assert projection is not None
    with site.mul.graph.inserting_before(site.mul):
        u = cast(site, projection.input, value(projection.node).dtype)
        factor, summand = _terms(site)
        matrix = _matrix(site, projection)
    op = torch.ops.eca_triton.rescaled_projection.default
    become(site.mul, op, u, matrix, factor, summand, out_dtype=value(site.mul).dtype)
    _erase_before(site)


def fold(site: Site, steps: list[tuple[str, fx.Node]]) -> None:
    """Emit the product and these steps of the tail where they end; node, dtype and layout of the end stay."""
    projection = site.projection
    assert projection is not None
    last = steps[-1][1] if steps else site.mul
    with last.graph.inserting_before(last):
        u = cast(site, projection.input, value(projection.node).dtype)
        y = call(site, torch.mm, _flat(site, u), call(site, torch.t, _matrix(site, projection)))
        sizes = [_size(site, u, dim) for dim in (0, *range(2, len(site.shape)))]
        y = _tail(site, _attended(site, y, _product(site, sizes[1:])), steps)
        y = call(site, torch.reshape, cast(site, y, value(last).dtype), (*sizes, site.shape[1]))
        contiguous = is_contiguous(value(last))
        if contiguous:
            y = call(site, torch.movedim, y, -1, 1)
    if contiguous:  # what follows may take views that another layout has not
        become(last, torch.Tensor.contiguous, y)
    else:
        become(last, torch.movedim, y, -1, 1)
    for node in reversed([site.mul, *(step for _, step in steps)]):
        if node is not last and not node.users:
            node.graph.erase_node(node)
    _erase_before(site)


def _erase_before(site: Site) -> None:
    """Erase what nobody needs from the convolution on; a node whose shape somebody asks for stays."""
    assert site.projection is not None
    norm = () if site.batch_norm is None else site.batch_norm.calls
    for node in reversed([site.projection.node, *norm, *site.chain]):
        if not node.users:
            node.graph.erase_node(node)


def _terms(site: Site) -> tuple[fx.Node, fx.Node | None]:
    """Bias, batch norm and gate behind the product: one factor and one summand per image and channel.

    Not the five vectors that these are: Inductor stores what was computed from more than eight operands, and
    a shortcut with a batch norm of its own has five.
    """
    assert site.projection is not None
    if site.batch_norm is None and site.projection.bias is None:
        return gate_before_projection(site), None
    terms = _from_pool(site, torch.ops.eca_triton.affine_from_projection.default)
    return call(site, operator.getitem, terms, 0), call(site, operator.getitem, terms, 1)


def _attended(site: Site, y: fx.Node, positions: Any) -> fx.Node:
    """The product, scaled and shifted by `_terms`."""
    factor, summand = _terms(site)
    y = cast(site, y, value(factor).dtype)
    y = call(site, torch.mul, y, _spread(site, factor, positions))
    return y if summand is None else call(site, torch.add, y, _spread(site, summand, positions))


def _spread(site: Site, term: fx.Node, positions: Any) -> fx.Node:
    """[N, C] -> [N * HW, C]."""
    rows = call(site, torch.Tensor.expand, call(site, torch.unsqueeze, term, 1), -1, positions, -1)
    return call(site, torch.flatten, rows, 0, 1)


def _tail(site: Site, y: fx.Node, steps: list[tuple[str, fx.Node]]) -> fx.Node:
    """The steps of the tail on the flat map."""
    before = site.mul
    for name, step in steps:
        operands = [y if arg is before else _operand(site, name, arg) for arg in step.args]
        options = {key: option for key, option in step.kwargs.items() if key != "inplace"}
        if name not in ("gain", "residual"):
            operands = operands[:1]
        y, before = call(site, FUNCTIONS[name], *operands, **options), step
        if name == "residual":  # should Inductor store the sum, then in the dtype that it had
            y = cast(site, y, value(step).dtype)
    return y


def _operand(site: Site, name: str, arg: Any) -> Any:
    """Another argument of a step of the tail, as it is beside the flat map."""
    if not isinstance(value(arg), torch.Tensor):
        return arg
    return _flat(site, arg) if name == "residual" else call(site, torch.reshape, arg, (1,))


def _flat(site: Site, x: fx.Node) -> fx.Node:
    """[N, C, *spatial] -> [N * HW, C]: a view of a channels-last map."""
    return call(site, torch.flatten, call(site, torch.movedim, x, 1, -1), 0, -2)


def _matrix(site: Site, projection: Projection) -> fx.Node:
    """The weight [C, I], cast where autocast would do it."""
    matrix = call(site, torch.flatten, projection.weight, 1)
    return cast(site, matrix, value(projection.node).dtype)


def _size(site: Site, x: fx.Node, dim: int) -> Any:
    size = value(x).shape[dim]
    return size if isinstance(size, int) else call(site, torch.Tensor.size, x, dim)


def _product(site: Site, sizes: list[Any]) -> Any:
    """The product of sizes: a number, or the node of one."""

    def times(a: Any, b: Any) -> Any:
        return a * b if isinstance(a, int) and isinstance(b, int) else call(site, operator.mul, a, b)

    return functools.reduce(times, sizes)
