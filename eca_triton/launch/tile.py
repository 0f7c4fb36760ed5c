"""Host side of the contiguous register tile: one launch without scratch in either direction."""

from __future__ import annotations

from ..kernels.tile import tile_kernel
from ..kernels.tile_backward import tile_backward_kernel
from ..tuning.config import constants
from ..tuning.families.tile import TileBackwardConfig, TileConfig
from .call import BackwardCall, EcaCall, vectors
from .replay import run


def forward(call: EcaCall, config: TileConfig) -> None:
    """Fills all outputs."""
    x, a = call.a.x, call.a
    n, c = x.shape[:2]
    run(
        tile_kernel, (n * -(-c // config.block_c),),
        x, a.weight, a.bias, a.residual, call.out, call.pooled, call.mask,
        *vectors(a.bn), a.bn_eps, a.gain, c, a.weight.stride(-1), HW=x.numel() // (n * c),
        **call.flags, **constants(config),
    )  # fmt: skip


def backward(call: BackwardCall, config: TileBackwardConfig) -> None:
    """Fills all outputs."""
    x, a = call.a.x, call.a
    n, c = x.shape[:2]
    run(
        tile_backward_kernel, (n * -(-c // config.block_c),),
        a.grad, x, a.weight, a.bias, a.residual, a.pooled, a.mask,
        call.d_x, call.d_residual, call.d_gate, call.p_sum, call.p_dot_x,
        *vectors(a.bn), a.bn_eps, a.gain, c, a.weight.stride(-1), HW=x.numel() // (n * c),
        **call.flags, **constants(config),
    )  # fmt: skip
