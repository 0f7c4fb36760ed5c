"""Host side of the channels-last register tile: one launch without scratch in either direction."""

from __future__ import annotations

from ..kernels.tile_channels_last import tile_channels_last_kernel
from ..kernels.tile_channels_last_backward import tile_channels_last_backward_kernel
from ..tuning.config import constants
from ..tuning.families.tile_channels_last import TileChannelsLastConfig
from . import devices
from .call import BackwardCall, EcaCall, vectors
from .replay import run


def forward(call: EcaCall, config: TileChannelsLastConfig) -> None:
    """Fills all outputs."""
    x, a = call.a.x, call.a
    n, c = x.shape[:2]
    hw = x.numel() // (n * c)
    run(
        tile_channels_last_kernel, (n * -(-c // config.block_c),),
        x, a.weight, a.bias, a.residual, call.out, call.pooled, call.mask,
        *vectors(a.bn), a.bn_eps, a.gain, 1.0 / hw, c, hw, a.weight.stride(-1),
        **call.flags, **constants(config),
    )  # fmt: skip


def backward(call: BackwardCall, config: TileChannelsLastConfig) -> None:
    """Fills all outputs."""
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
        **call.flags, **constants(config), **limit,
    )  # fmt: skip
