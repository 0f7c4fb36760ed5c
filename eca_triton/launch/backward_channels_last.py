"""Host side of the backward kernels that read channels-last, or large contiguous, maps once."""

from __future__ import annotations

import torch

from ..kernels.lagged_backward import lagged_backward_kernel
from ..kernels.tile_channels_last_backward import tile_channels_last_backward_kernel
from ..tuning.families.lagged import LaggedConfig
from ..tuning.families.tile_channels_last import TileChannelsLastConfig
from ..tuning.layout import common_layout
from . import devices
from .call import BackwardCall, vectors
from .replay import run, scratch


def tile_channels_last_backward(call: BackwardCall, config: TileChannelsLastConfig) -> None:
    """Backward of maps that `tile_channels_last_backward_config` takes, as one launch without scratch."""
    x, a = call.a.x, call.a
    n, c = x.shape[:2]
    hw = x.numel() // (n * c)
    # Left to itself, ptxas spills some values of what recomputes u.
    recomputed = a.activation != "identity" and a.mask is None
    limit = devices.at_most(255, config.num_warps, devices.device_of(x.device)) if recomputed else {}
    run(
        tile_channels_last_backward_kernel, (n * -(-c // config.block_c),),
        a.grad, x, a.weight, a.bias, a.residual, a.pooled, a.mask,
        call.d_x, call.d_residual, call.d_gate, call.p_sum, call.p_dot_x,
        *vectors(a.bn), a.bn_eps, a.gain, 1.0 / hw, c, hw, a.weight.stride(-1),
        **call.flags, BLOCK_C=config.block_c, BLOCK_HW=config.block_hw, STEPS=config.steps,
        BLOCK_HALO=config.block_halo, HALO_STEPS=config.halo_steps, num_warps=config.num_warps,
        **limit,
    )  # fmt: skip


def lagged_backward(call: BackwardCall, config: LaggedConfig) -> None:
    """Backward of maps that `lagged_backward_config` takes, as one launch with scratch of its own."""
    x, a = call.a.x, call.a
    layout = common_layout(x.shape, x.stride())
    n, c, hw = layout.n, layout.c, layout.hw
    sums = 1 if a.bn is None and call.p_sum is None else 2
    partial = scratch((n, sums, -(-hw // config.block_hw), c), torch.float32, x.device)
    dz = scratch((n, c), torch.float32, x.device)
    t = scratch((n, c), torch.float32, x.device)
    arrived = scratch((n + 1,), torch.int32, x.device, zeroed=True)
    stride_c, stride_hw = (1, c) if config.vec_c > 1 else (hw, 1)
    limit = devices.at_most(config.max_registers, config.num_warps, devices.device_of(x.device))
    run(
        lagged_backward_kernel, (n * config.tiles(layout) + config.lag,),
        a.grad, x, a.weight, a.bias, a.residual, a.pooled, a.mask,
        call.d_x, call.d_residual, call.d_gate, call.p_sum, call.p_dot_x, partial, dz, t, arrived,
        *vectors(a.bn), a.bn_eps, a.gain, 1.0 / hw,
        n, c, hw, config.lag, stride_c, stride_hw, a.weight.stride(-1),
        **call.flags, BLOCK_C=config.block_c, BLOCK_HW=config.block_hw,
        BLOCK_P=config.block_p, BLOCK_G=config.block_g, VEC_C=config.vec_c, VEC_HW=config.vec_hw,
        PATIENCE=config.patience, num_warps=config.num_warps, **limit,
    )  # fmt: skip
