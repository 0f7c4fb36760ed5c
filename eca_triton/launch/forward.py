"""Host side of `eca`: one launch where a kernel takes the map, else two."""

from __future__ import annotations

from typing import Any

from ..kernels.rescale import rescale_kernel
from ..kernels.tile import tile_kernel
from ..tuning.families.lagged import LaggedConfig
from ..tuning.families.tile import TileConfig
from ..tuning.families.tile_channels_last import TileChannelsLastConfig
from ..tuning.problem import PassProblem
from . import devices, gates
from .call import EcaCall, vectors
from .channels_last import lagged, tile_channels_last
from .replay import run


def eca(call: EcaCall) -> None:
    """Fills call.out."""
    with devices.on_device_of(call.a.x):
        if not one_launch(call):
            pool_and_rescale(call)


def one_launch(call: EcaCall) -> bool:
    """Fills call.out, pooled and mask from one read of the map, and says so, if `select` knows a kernel."""
    return devices.launched(call, _KERNELS)


def tile(call: EcaCall, config: TileConfig) -> None:
    """`eca` for maps that `tile_config` takes, as one launch without scratch."""
    x, a = call.a.x, call.a
    n, c = x.shape[:2]
    run(
        tile_kernel, (n * -(-c // config.block_c),),
        x, a.weight, a.bias, a.residual, call.out, call.pooled, call.mask,
        *vectors(a.bn), a.bn_eps, a.gain, c, a.weight.stride(-1), HW=x.numel() // (n * c),
        **call.flags, BLOCK_HALO=config.block_halo, BLOCK_C=config.block_c,
        BLOCK_HW=config.block_hw, CHUNKS=config.chunks, BLOCK_TAIL=config.block_tail,
        VEC=config.vec, WINDOWED=config.windowed, PACKED=config.packed, num_warps=config.num_warps,
    )  # fmt: skip


def pool_and_rescale(call: EcaCall) -> None:
    """`eca` for any map, as two launches; the second one makes the gates, too."""
    x, a = call.a.x, call.a
    partial = gates.pool(x, a.bn, a.bn_eps, a.pre_activation)
    layout = call.layout
    problem = PassProblem.of(call.problem(devices.device_of(x.device)), "rescale")
    config: Any = devices.chosen(x, problem).config
    x_strides, out_strides, residual_strides = layout.strides[0], layout.strides[1], layout.strides[-1]
    run(
        rescale_kernel, (layout.n * config.tiles(layout),),
        x, partial, a.weight, a.bias, a.residual, call.out, *vectors(a.bn), a.bn_eps,
        a.gain, 1.0 / layout.hw,
        layout.n, layout.c, layout.hw, *layout.spatial[1:], a.weight.stride(-1),
        *x_strides, *residual_strides, *out_strides, **call.flags,
        POOL_SPLITS=partial.shape[1], SPLITS=config.splits, BLOCK_C=config.block_c, BLOCK_HW=config.block_hw,
        VEC_C=config.vec_c, VEC_HW=config.vec_hw, FLAT=layout.flat, num_warps=config.num_warps,
    )  # fmt: skip


_KERNELS: devices.Kernels = {
    TileConfig: tile,
    TileChannelsLastConfig: tile_channels_last,
    LaggedConfig: lagged,
}
