"""Host side of the kernels that read a channels-last, or a large contiguous, map once."""

from __future__ import annotations

import torch

from ..activations import ACTIVATIONS
from ..kernels.lagged import lagged_kernel
from ..kernels.tile_channels_last import tile_channels_last_kernel
from ..tuning.families.lagged import LaggedConfig
from ..tuning.families.tile_channels_last import TileChannelsLastConfig
from ..tuning.layout import common_layout
from . import devices
from .call import EcaCall, vectors
from .replay import run, scratch


def tile_channels_last(call: EcaCall, config: TileChannelsLastConfig) -> None:
    """`forward.eca` for maps that `tile_channels_last_config` takes, as one launch without scratch."""
    x, a = call.a.x, call.a
    n, c = x.shape[:2]
    hw = x.numel() // (n * c)
    run(
        tile_channels_last_kernel, (n * -(-c // config.block_c),),
        x, a.weight, a.bias, a.residual, call.out, call.pooled, call.mask,
        *vectors(a.bn), a.bn_eps, a.gain, 1.0 / hw, c, hw, a.weight.stride(-1),
        **call.flags, BLOCK_C=config.block_c, BLOCK_HW=config.block_hw, STEPS=config.steps,
        BLOCK_HALO=config.block_halo, HALO_STEPS=config.halo_steps, num_warps=config.num_warps,
    )  # fmt: skip


def lagged(call: EcaCall, config: LaggedConfig) -> None:
    """`forward.eca` for maps that `lagged_config` takes, as one launch.

    Its scratch belongs to the call, so launches on several streams and replays of a graph do not meet.
    """
    x, a = call.a.x, call.a
    layout = common_layout(x.shape, x.stride())
    n, c, hw = layout.n, layout.c, layout.hw
    partial = scratch((n, -(-hw // config.block_hw), c), torch.float32, x.device)
    mean = scratch((n, c), torch.float32, x.device) if call.pooled is None else call.pooled
    gates = scratch((n, c), torch.float32, x.device)
    arrived = scratch((n + 1,), torch.int32, x.device, zeroed=True)
    stride_c, stride_hw = (1, c) if config.vec_c > 1 else (hw, 1)
    # Exponentials and the error function take more registers.
    both = (ACTIVATIONS[name] for name in (a.pre_activation, a.activation))
    registers = 255 if any(each.transcendental for each in both) else config.max_registers
    limit = devices.at_most(registers, config.num_warps, devices.device_of(x.device))
    run(
        lagged_kernel, (n * config.tiles(layout) + config.lag,),
        x, a.weight, a.bias, a.residual, call.out, call.mask, partial, mean, gates, arrived,
        *vectors(a.bn), a.bn_eps, a.gain, 1.0 / hw,
        n, c, hw, config.lag, stride_c, stride_hw, a.weight.stride(-1),
        **call.flags, BLOCK_C=config.block_c, BLOCK_HW=config.block_hw,
        BLOCK_P=config.block_p, BLOCK_G=config.block_g, VEC_C=config.vec_c, VEC_HW=config.vec_hw,
        PATIENCE=config.patience, num_warps=config.num_warps, **limit,
    )  # fmt: skip
