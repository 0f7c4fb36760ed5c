"""vmap rules: the mapped dimension is folded into N, as images do not interact.

Where a parameter is mapped too, images of different samples have different parameters: one call per sample.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .operators import OPERATORS
from .schema import LIBRARY

Rule = Callable[..., tuple[Any, Any]]


def _fold_into_batch(op: Callable[..., Any], maps: set[int]) -> Rule:
    """The rule of an operator whose arguments at the positions `maps` have N as their first dimension."""

    def rule(info: Any, in_dims: tuple[int | None, ...], *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        if any(dim is not None for i, dim in enumerate(in_dims) if i not in maps):
            return one_by_one(info, in_dims, *args, **kwargs)
        size = info.batch_size
        folded = [
            _lead(v, dim, size).flatten(0, 1) if i in maps and isinstance(v, Tensor) else v
            for i, (v, dim) in enumerate(zip(args, in_dims, strict=True))
        ]
        out = op(*folded, **kwargs)
        return out.unflatten(0, (size, folded[0].shape[0] // size)), 0

    one_by_one = _one_by_one(op)
    return rule


def _one_by_one(op: Callable[..., Any]) -> Rule:
    def rule(info: Any, in_dims: tuple[int | None, ...], *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        outs = [
            op(
                *(v if dim is None else v.select(dim, i) for v, dim in zip(args, in_dims, strict=True)),
                **kwargs,
            )
            for i in range(info.batch_size)
        ]
        if isinstance(outs[0], Tensor):
            return torch.stack(outs), 0
        return tuple(torch.stack(parts) for parts in zip(*outs, strict=True)), (0,) * len(outs[0])

    return rule


def _lead(x: Tensor, dim: int | None, size: int) -> Tensor:
    """The mapped dimension of x moved to the front; expanded, without a copy, where x is not mapped."""
    return x.expand(size, *x.shape) if dim is None else x.movedim(dim, 0)


for _op, _row in OPERATORS.items():
    _maps = {_row.arguments._fields.index(name) for name in _row.batched}
    _rule = _fold_into_batch(_op, _maps) if _maps else _one_by_one(_op)
    torch.library.register_vmap(_op.name(), _rule, lib=LIBRARY)
