"""vmap rules: the mapped dimension is folded into N, as images do not interact.

Where a parameter is mapped too, images of different samples have different parameters: one call per sample.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .schema import ECA, GATE, GATE_FROM_POOL, GATE_FROM_POOL_BACKWARD, LIBRARY
from .schema_projection import AFFINE_FROM_PROJECTION, GATE_FROM_PROJECTION, RESCALED_PROJECTION
from .schema_training import ECA_BACKWARD, ECA_FORWARD

Rule = Callable[..., tuple[Any, Any]]


def _fold_into_batch(op: Callable[..., Any], maps: tuple[int, ...]) -> Rule:
    """The rule of an operator whose positional arguments `maps` have N as their first dimension."""

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


_RESIDUAL = 7
torch.library.register_vmap("eca_triton::gate", _fold_into_batch(GATE, (0,)), lib=LIBRARY)
torch.library.register_vmap("eca_triton::eca", _fold_into_batch(ECA, (0, _RESIDUAL)), lib=LIBRARY)
torch.library.register_vmap("eca_triton::gate_from_pool", _fold_into_batch(GATE_FROM_POOL, (0,)), lib=LIBRARY)
torch.library.register_vmap(
    "eca_triton::gate_from_projection", _fold_into_batch(GATE_FROM_PROJECTION, (0,)), lib=LIBRARY
)
torch.library.register_vmap(
    "eca_triton::affine_from_projection", _one_by_one(AFFINE_FROM_PROJECTION), lib=LIBRARY
)
torch.library.register_vmap(
    "eca_triton::rescaled_projection", _fold_into_batch(RESCALED_PROJECTION, (0, 2, 3)), lib=LIBRARY
)
# Its weight gradient is a sum over N that the samples do not share.
torch.library.register_vmap(
    "eca_triton::gate_from_pool_backward", _one_by_one(GATE_FROM_POOL_BACKWARD), lib=LIBRARY
)
torch.library.register_vmap("eca_triton::eca_forward", _one_by_one(ECA_FORWARD), lib=LIBRARY)
torch.library.register_vmap("eca_triton::eca_backward", _one_by_one(ECA_BACKWARD), lib=LIBRARY)
