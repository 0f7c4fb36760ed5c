"""Host side of the backward kernels of the map."""

from __future__ import annotations

from ..kernels.tile_backward import tile_backward_kernel
from ..tuning.families.tile import TileBackwardConfig
from .call import BackwardCall, vectors
from .replay import run


def tile_backward(call: BackwardCall, config: TileBackwardConfig) -> None:
    """Fills every output of a call that `tile_backward_config` takes, as one launch without scratch."""
    a = call.a
    n, c = a.x.shape[:2]
    tile = config.tile
    run(
        tile_backward_kernel, (n * -(-c // tile.block_c),),
        a.grad, a.x, a.weight, a.bias, a.residual, a.pooled, a.mask,
        call.d_x, call.d_residual, call.d_gate, call.p_sum, call.p_dot_x,
        *vectors(a.bn), a.bn_eps, a.gain, c, a.weight.stride(-1),
        HW=a.x.numel() // (n * c), **call.flags,
        BLOCK_HALO=tile.block_halo, BLOCK_HALO_HW=config.block_halo_hw, BLOCK_C=tile.block_c,
        BLOCK_HW=tile.block_hw, CHUNKS=tile.chunks, BLOCK_TAIL=tile.block_tail,
        VEC=tile.vec, WINDOWED=tile.windowed, PACKED=tile.packed, num_warps=tile.num_warps,
    )  # fmt: skip
