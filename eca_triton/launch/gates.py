"""Host side of the gates: from a map, from its pooled values, and their gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..kernels.gate import gate_kernel
from ..kernels.gate_backward import gate_backward_finish_kernel, gate_backward_kernel
from ..kernels.pool import pool_kernel
from ..reference import BatchNorm
from ..tuning.families.blocks import power_of_2
from ..tuning.families.passes import backward_block, gate_block
from ..tuning.layout import common_layout
from ..tuning.problem import PassProblem
from . import devices
from .call import GateCall, vectors
from .replay import run, scratch


def gate(call: GateCall) -> None:
    """Fills call.out.

    Two launches: pool, then gate. Batch norm without an activation after it commutes with the mean, so it is
    applied to the pooled values.
    """
    x = call.x
    with devices.on_device_of(x):
        partial = pool(x, call.bn, call.bn_eps, call.pre_activation)
        pooled_bn = call.bn if call.pre_activation == "identity" else None
        hw = x.numel() // (x.shape[0] * x.shape[1])
        _gate(
            partial, hw, call.weight, call.bias, pooled_bn, call.bn_eps, call.circular, call.gate, call.out
        )  # fmt: skip


def gate_from_pool(
    pooled: Tensor, weight: Tensor, bias: Tensor | None, circular: bool, gate: str, out: Tensor
) -> None:
    """Fills out [N, C] (contiguous, any float dtype) with the gates of pooled [N, C] (any strides)."""
    with devices.on_device_of(pooled):
        _gate(pooled[:, None, :], 1, weight, bias, None, 0.0, circular, gate, out)


def gate_from_pool_backward(
    grad: Tensor,
    pooled: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    circular: bool,
    gate: str,
    d_pooled: Tensor,
    d_weight: Tensor,
    d_bias: Tensor,
    bn: BatchNorm | None = None,
    bn_eps: float = 0.0,
) -> None:
    """Fills d_pooled [N, C] (any strides), d_weight (k values), d_bias (one value); grad, pooled: [N, C].

    bn: of the pooled values; d_pooled is the gradient of what it makes of them.
    """
    n, c = pooled.shape
    total = n * c
    taps = weight.numel()
    block_k = power_of_2(taps)
    block = backward_block(total, block_k)
    rows = -(-total // block)
    with devices.on_device_of(pooled):
        dz = scratch((n, c), torch.float32, pooled.device)
        partial = scratch((rows, taps + 1), torch.float32, pooled.device)
        run(
            gate_backward_kernel, (rows,),
            grad, pooled, weight, bias, *vectors(bn), bn_eps, dz, partial,
            total, c, *grad.stride(), *pooled.stride(), weight.stride(-1),
            K=taps, CIRCULAR=circular, GATE=gate, BLOCK=block, BLOCK_K=block_k,
        )  # fmt: skip
        run(
            gate_backward_finish_kernel, (rows + taps + 1,),
            dz, partial, weight, d_pooled, d_weight, d_bias,
            total, c, *d_pooled.stride(), weight.stride(-1), d_weight.stride(-1),
            K=taps, CIRCULAR=circular, BLOCK=block, BLOCK_K=block_k,
        )  # fmt: skip


def pool(x: Tensor, bn: BatchNorm | None, bn_eps: float, pre_activation: str) -> Tensor:
    """Partial sums over the spatial dims, fp32 [N, splits, C]."""
    layout = common_layout(x.shape, x.stride())
    front = pre_activation != "identity"
    problem = PassProblem.pool(layout, x.dtype, x.element_size(), front, devices.device_of(x.device))
    config: Any = devices.chosen(x, problem).config
    partial = scratch((layout.n, config.splits, layout.c), torch.float32, x.device)
    run(
        pool_kernel, (layout.n * config.tiles(layout),),
        x, partial, *vectors(bn if front else None), bn_eps,
        layout.c, layout.hw, *layout.spatial[1:], *layout.strides[0],
        PRE_ACTIVATION=pre_activation, SPLITS=config.splits, BLOCK_C=config.block_c, BLOCK_HW=config.block_hw,
        VEC_C=config.vec_c, VEC_HW=config.vec_hw, WINDOW=config.window, FLAT=layout.flat,
        num_warps=config.num_warps,
    )  # fmt: skip
    return partial


def _gate(
    pooled: Tensor,
    hw: int,
    weight: Tensor,
    bias: Tensor | None,
    bn: BatchNorm | None,
    bn_eps: float,
    circular: bool,
    gate: str,
    out: Tensor,
) -> None:
    """Gates of partial sums over hw elements, pooled [N, splits, C] with any strides."""
    n, splits, c = pooled.shape
    taps = weight.numel()
    block_k = power_of_2(taps)
    block = gate_block(splits, block_k)
    run(
        gate_kernel, (-(-n * c // block),),
        pooled, weight, bias, *vectors(bn), bn_eps, out,
        n * c, c, 1.0 / hw, *pooled.stride(), weight.stride(-1),
        SPLITS=splits, K=taps, CIRCULAR=circular, GATE=gate, BLOCK=block, BLOCK_K=block_k,
    )  # fmt: skip
