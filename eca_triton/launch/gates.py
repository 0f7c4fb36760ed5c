"""Host side of the gates: from a map, from its pooled values, and their gradient."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..kernels.gate import gate_kernel
from ..kernels.gate_backward import gate_backward_finish_kernel, gate_backward_kernel
from ..kernels.pool import pool_kernel
from ..reference.arguments import PoolArguments, PoolBackwardArguments, SiteArguments, Vectors
from ..tuning.config import constants
from ..tuning.families.passes import backward_block, gate_block
from ..tuning.layout import common_layout
from ..tuning.problem import PassProblem
from . import devices
from .call import GateCall, band, vectors
from .replay import run, scratch


def gate(call: GateCall) -> None:
    """Fills call.out.

    Two launches: pool, then gate. Batch norm without an activation after it commutes with the mean, so it is
    applied to the pooled values.
    """
    a = call.a
    with devices.on_device_of(a.x):
        partial = pool(a.x, a.bn, a.bn_eps, a.pre_activation)
        pooled_bn = a.bn if a.pre_activation == "identity" else None
        _gate(a, partial, math.prod(a.x.shape[2:]), call.out, pooled_bn, a.bn_eps)


def gate_from_pool(a: PoolArguments, out: Tensor) -> None:
    """Fills out [N, C] (contiguous, any float dtype) with the gates of a.pooled (any strides)."""
    with devices.on_device_of(a.pooled):
        _gate(a, a.pooled[:, None, :], 1, out, None, 0.0)


def gate_from_pool_backward(
    a: PoolBackwardArguments,
    d_pooled: Tensor,
    d_weight: Tensor,
    d_bias: Tensor,
    bn: Vectors | None = None,
    bn_eps: float = 0.0,
) -> None:
    """Fills d_pooled [N, C] (any strides), d_weight (k values) and d_bias (one value).

    bn: of the pooled values; d_pooled is the gradient of what it makes of them.
    """
    n, c = a.pooled.shape
    total, flags = n * c, band(a)
    block = backward_block(total, flags["BLOCK_K"])
    rows = -(-total // block)
    with devices.on_device_of(a.pooled):
        dz = scratch((n, c), torch.float32, a.pooled.device)
        partial = scratch((rows, flags["K"] + 1), torch.float32, a.pooled.device)
        run(
            gate_backward_kernel, (rows,),
            a.grad, a.pooled, a.weight, a.bias, *vectors(bn), bn_eps, dz, partial,
            total, c, *a.grad.stride(), *a.pooled.stride(), a.weight.stride(-1),
            BLOCK=block, **flags,
        )  # fmt: skip
        run(
            gate_backward_finish_kernel, (rows + flags["K"] + 1,),
            dz, partial, a.weight, d_pooled, d_weight, d_bias,
            total, c, *d_pooled.stride(), a.weight.stride(-1), d_weight.stride(-1),
            K=flags["K"], CIRCULAR=a.circular, BLOCK=block, BLOCK_K=flags["BLOCK_K"],
        )  # fmt: skip


def pool(x: Tensor, bn: Vectors | None, bn_eps: float, pre_activation: str) -> Tensor:
    """Partial sums over the spatial dims, fp32 [N, splits, C]."""
    layout = common_layout(x.shape, x.stride())
    front = pre_activation != "identity"
    device = devices.device_of(x.device)
    problem = PassProblem(layout, x.dtype, x.element_size(), device, "pool", ("front",) * front)
    config: Any = devices.chosen(x, problem).config
    partial = scratch((layout.n, config.splits, layout.c), torch.float32, x.device)
    run(
        pool_kernel, (layout.n * config.tiles(layout),),
        x, partial, *vectors(bn if front else None), bn_eps,
        layout.c, layout.hw, *layout.spatial[1:], *layout.strides[0],
        PRE_ACTIVATION=pre_activation, FLAT=layout.flat, **constants(config),
    )  # fmt: skip
    return partial


def _gate(
    a: SiteArguments | PoolArguments, pooled: Tensor, hw: int, out: Tensor, bn: Vectors | None, bn_eps: float
) -> None:
    """Gates of partial sums over hw elements, pooled [N, splits, C] with any strides."""
    n, splits, c = pooled.shape
    flags = band(a)
    block = gate_block(splits, flags["BLOCK_K"])
    run(
        gate_kernel, (-(-n * c // block),),
        pooled, a.weight, a.bias, *vectors(bn), bn_eps, out,
        n * c, c, 1.0 / hw, *pooled.stride(), a.weight.stride(-1),
        SPLITS=splits, BLOCK=block, **flags,
    )  # fmt: skip
