"""Host side of the backward kernels that read channels-last, or large contiguous, maps once."""

from __future__ import annotations

from .call import BackwardCall, vectors
from .direct import run
from .kernels.tile_channels_last_backward import tile_channels_last_backward_kernel
from .tuning.tile_channels_last import TileChannelsLastConfig


def tile_channels_last_backward(call: BackwardCall, config: TileChannelsLastConfig) -> None:
    """Backward of maps that `tile_channels_last_backward_config` takes, as one launch without scratch."""
    x = call.x
    n, c = x.shape[:2]
    hw = x.numel() // (n * c)
    run(
        tile_channels_last_backward_kernel, (n * -(-c // config.block_c),),
        call.dy, x, call.weight, call.bias, call.residual, call.pooled, call.mask,
        call.d_x, call.d_residual, call.d_gate, call.p_sum, call.p_dot_x,
        *vectors(call.bn), call.bn_eps, call.gain, 1.0 / hw, c, hw, call.weight.stride(-1),
        **call.flags, BLOCK_C=config.block_c, BLOCK_HW=config.block_hw, STEPS=config.steps,
        BLOCK_HALO=config.block_halo, HALO_STEPS=config.halo_steps, num_warps=config.num_warps,
    )  # fmt: skip
