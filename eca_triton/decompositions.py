"""Every operator in plain ATen, computed as the reference does: for those who know no operator of ours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from . import ops, reference, reference_training
from .ops.batch_norm import plain as plain_batch_norm_eca
from .ops.schema import PoolArguments, PoolBackwardArguments, SiteArguments
from .ops.schema_projection import ProjectionArguments, RescaledArguments
from .ops.schema_training import BackwardArguments, ForwardArguments


def decomposition_table() -> dict[Any, Callable[..., Any]]:
    """Our operators -> functions that compute the same with operators of torch, bit for bit as on the CPU.

    Example:
        >>> table = torch.export.default_decompositions()
        >>> table.update(eca_triton.decomposition_table())
        >>> core_aten = program.run_decompositions(table)
    """
    return {
        ops.ECA: _eca,
        ops.GATE: _gate,
        ops.GATE_FROM_POOL: _gate_from_pool,
        ops.GATE_FROM_POOL_BACKWARD: _gate_from_pool_backward,
        ops.ECA_FORWARD: _eca_forward,
        ops.ECA_BACKWARD: _eca_backward,
        ops.BATCH_NORM_ECA: plain_batch_norm_eca,
        ops.GATE_FROM_PROJECTION: _gate_from_projection,
        ops.AFFINE_FROM_PROJECTION: _affine_from_projection,
        ops.RESCALED_PROJECTION: _rescaled_projection,
    }


def _eca(*args: Any, **kwargs: Any) -> Tensor:
    a = SiteArguments(*args, **kwargs)
    return reference.eca(a.x, a.weight, a.bias, **a.eca_options, out_dtype=a.out_dtype)


def _gate(*args: Any, **kwargs: Any) -> Tensor:
    a = SiteArguments(*args, **kwargs)
    return reference.gate(a.x, a.weight, a.bias, **a.gate_options, out_dtype=a.out_dtype)


def _gate_from_pool(*args: Any, **kwargs: Any) -> Tensor:
    return reference.gate_from_pool(**PoolArguments(*args, **kwargs)._asdict())


def _gate_from_projection(*args: Any, **kwargs: Any) -> Tensor:
    a = ProjectionArguments(*args, **kwargs)
    return reference.gate_from_projection(
        a.pooled, a.projection, a.weight, a.bias, **a.options, out_dtype=a.out_dtype
    )


def _affine_from_projection(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
    a = ProjectionArguments(*args, **kwargs)
    return reference.affine_from_projection(
        a.pooled, a.projection, a.weight, a.bias, **a.options, out_dtype=a.out_dtype
    )


def _rescaled_projection(*args: Any, **kwargs: Any) -> Tensor:
    a = RescaledArguments(*args, **kwargs)
    return reference.rescaled_projection(a.x, a.projection, a.factor, a.summand, out_dtype=a.out_dtype)


def _gate_from_pool_backward(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor, Tensor]:
    return reference.gate_from_pool_backward(**PoolBackwardArguments(*args, **kwargs)._asdict())


def _eca_forward(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor, Tensor]:
    a = ForwardArguments(*args, **kwargs)
    return reference_training.eca_forward(
        a.x, a.weight, a.bias, **a.options, mask_order=a.mask_order, out_dtype=a.out_dtype or a.x.dtype
    )


def _eca_backward(*args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
    a = BackwardArguments(*args, **kwargs)
    gradients = reference_training.eca_backward(
        a.grad, a.x, a.weight, a.bias, **a.options,
        pooled=a.pooled, mask=a.mask, mask_order=a.mask_order, **a.wanted,
    )  # fmt: skip
    return a.outputs(gradients)
