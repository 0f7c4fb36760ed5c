"""Host side of the kernels: pick a config and a grid, launch into buffers that the caller made.

The first file that imports Triton; the ops import it when they run. Callers ask `supports` first, so nothing
here sees an empty map. Inputs are never changed. With TRITON_INTERPRET=1 the same code runs on CPU tensors.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor

from .call import BatchNorm, Call, GateCall, vectors
from .direct import forget_plans, run, scratch
from .kernels.gate import gate_kernel
from .kernels.gate_backward import gate_backward_finish_kernel, gate_backward_kernel
from .kernels.pool import pool_kernel
from .kernels.rescale import rescale_kernel
from .kernels.tile import tile_kernel
from .launch_channels_last import lagged, tile_channels_last
from .tuning.choice import Choice
from .tuning.config import Device
from .tuning.heuristic import backward_block, gate_block, power_of_2
from .tuning.lagged import LaggedConfig
from .tuning.layout import common_layout
from .tuning.problem import PassProblem, Problem
from .tuning.select import device_of_trial, select
from .tuning.store import on_change
from .tuning.tile import TileConfig
from .tuning.tile_channels_last import TileChannelsLastConfig

_MAX_INDEX = 2**31 - 2**16  # programs and indices along one axis are int32; a block past the end must fit too
_INTERPRETER = Device(num_sms=4, warp_size=32)  # few, so that it stays quick and still cuts small maps

on_change(forget_plans)  # they hold the configs of the calls that they repeat


def supports(x: Tensor) -> bool:
    """Whether the kernels take x: a map [N, C, *spatial] or pooled values [N, C].

    They take fp32, fp16 and bf16, 0 to 3 spatial dims and at least one element. N * C and the number of
    spatial elements must stay below 2**31 each; their product has no limit.
    """
    return (
        x.dtype in (torch.float32, torch.float16, torch.bfloat16)
        and 2 <= x.dim() <= 5
        and x.numel() > 0
        and x.shape[0] * x.shape[1] < _MAX_INDEX
        and x.numel() // (x.shape[0] * x.shape[1]) < _MAX_INDEX
    )


def gate(call: GateCall) -> None:
    """Fills call.out.

    Two launches: pool, then gate. Batch norm without an activation after it commutes with the mean, so it is
    applied to the pooled values.
    """
    x = call.x
    with on_device_of(x):
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
    with on_device_of(pooled):
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
    with on_device_of(pooled):
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


def eca(call: Call) -> None:
    """Fills call.out."""
    with on_device_of(call.x):
        if not one_launch(call):
            two_pass(call)


def one_launch(call: Call) -> bool:
    """Fills call.out, pooled and mask from one read of the map, and says so, if `select` knows a kernel."""
    return launched(call, chosen(call.x, call.problem(device_of(call.x.device))))


def launched(call: Call, choice: Choice) -> bool:
    """Fills call.out, pooled and mask as chosen, and says so, unless that takes two passes."""
    config = choice.config
    if isinstance(config, TileConfig):
        tile(call, config)
    elif isinstance(config, TileChannelsLastConfig):
        tile_channels_last(call, config)
    elif isinstance(config, LaggedConfig):
        lagged(call, config)
    return config is not None


def tile(call: Call, config: TileConfig) -> None:
    """`eca` for maps that `tile_config` takes, as one launch without scratch."""
    x = call.x
    n, c = x.shape[:2]
    run(
        tile_kernel, (n * -(-c // config.block_c),),
        x, call.weight, call.bias, call.residual, call.out, call.pooled, call.mask,
        *vectors(call.bn), call.bn_eps, call.gain, c, call.weight.stride(-1), HW=x.numel() // (n * c),
        **call.flags, BLOCK_HALO=config.block_halo, BLOCK_C=config.block_c,
        BLOCK_HW=config.block_hw, CHUNKS=config.chunks, BLOCK_TAIL=config.block_tail,
        VEC=config.vec, WINDOWED=config.windowed, PACKED=config.packed, num_warps=config.num_warps,
    )  # fmt: skip


def two_pass(call: Call) -> None:
    """`eca` for any map, as two launches: pool; gates and rescaling."""
    x = call.x
    partial = pool(x, call.bn, call.bn_eps, call.pre_activation)
    layout = call.layout
    config: Any = chosen(x, PassProblem.of(call.problem(device_of(x.device)), "rescale")).config
    x_strides, out_strides, residual_strides = layout.strides[0], layout.strides[1], layout.strides[-1]
    run(
        rescale_kernel, (layout.n * config.tiles(layout),),
        x, partial, call.weight, call.bias, call.residual, call.out, *vectors(call.bn), call.bn_eps,
        call.gain, 1.0 / layout.hw,
        layout.n, layout.c, layout.hw, *layout.spatial[1:], call.weight.stride(-1),
        *x_strides, *residual_strides, *out_strides, **call.flags,
        POOL_SPLITS=partial.shape[1], SPLITS=config.splits, BLOCK_C=config.block_c, BLOCK_HW=config.block_hw,
        VEC_C=config.vec_c, VEC_HW=config.vec_hw, FLAT=layout.flat, num_warps=config.num_warps,
    )  # fmt: skip


def pool(x: Tensor, bn: BatchNorm | None, bn_eps: float, pre_activation: str) -> Tensor:
    """Partial sums over the spatial dims, fp32 [N, splits, C]."""
    layout = common_layout(x.shape, x.stride())
    front = pre_activation != "identity"
    problem = PassProblem.pool(layout, x.dtype, x.element_size(), front, device_of(x.device))
    config: Any = chosen(x, problem).config
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


def on_device_of(x: Tensor) -> AbstractContextManager[object]:
    """Triton launches on the current device; entering x's costs time, so only where it differs."""
    if x.is_cuda and x.device.index != torch.cuda.current_device():
        return torch.cuda.device(x.device)
    return nullcontext()


def captured(x: Tensor) -> bool:
    """Whether launches on x's device become part of a graph, and files are to be left alone."""
    return x.is_cuda and torch.cuda.is_current_stream_capturing()


def chosen(x: Tensor, problem: Problem) -> Choice:
    """Kernel and config for a problem of x."""
    return select(problem, may_read=not captured(x))


def device_of(device: torch.device) -> Device:
    """What launches are made for."""
    return device_of_trial() or (_INTERPRETER if device.type == "cpu" else _gpu(device))


@cache
def _gpu(device: torch.device) -> Device:
    return Device.of(torch.cuda.get_device_properties(device))
