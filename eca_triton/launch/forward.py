"""Host side of `eca`: one launch where a kernel takes the map, else two."""

from __future__ import annotations

from typing import Any

from ..kernels.rescale import rescale_kernel
from ..tuning.config import constants
from ..tuning.families.lagged import LaggedConfig
from ..tuning.families.tile import TileConfig
from ..tuning.families.tile_channels_last import TileChannelsLastConfig
from ..tuning.problem import PassProblem
from . import devices, gates, lagged, tile, tile_channels_last
from .call import EcaCall, vectors
from .replay import run


def eca(call: EcaCall) -> None:
    """Fills call.out."""
    with devices.on_device_of(call.a.x):
        if not one_launch(call):
            pool_and_rescale(call)


def one_launch(call: EcaCall) -> bool:
    """Fills call.out, pooled and mask from one read of the map, and says so, if `select` knows a kernel."""
    return devices.launched(call, _KERNELS)


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
        POOL_SPLITS=partial.shape[1], FLAT=layout.flat, **constants(config, {"window"}),
    )  # fmt: skip


_KERNELS: devices.Kernels = {
    TileConfig: tile.forward,
    TileChannelsLastConfig: tile_channels_last.forward,
    LaggedConfig: lagged.forward,
}
