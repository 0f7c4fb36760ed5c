"""The kernels that take a map in one launch: what launches each, and the config that its own rule makes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from eca_triton.launch import lagged, tile, tile_channels_last
from eca_triton.launch.call import BackwardCall, EcaCall
from eca_triton.tuning.config import Device
from eca_triton.tuning.families.lagged import lagged_config
from eca_triton.tuning.families.tile import tile_config
from eca_triton.tuning.families.tile_channels_last import tile_channels_last_config
from eca_triton.tuning.problem import EcaProblem

Launcher = Callable[[Any, Any], None]
FORWARD: dict[str, Launcher] = {
    "tile": tile.forward,
    "tile_channels_last": tile_channels_last.forward,
    "lagged": lagged.forward,
}
BACKWARD: dict[str, Launcher] = {
    "tile": tile.backward,
    "tile_channels_last": tile_channels_last.backward,
    "lagged": lagged.backward,
}
CONFIGS: dict[str, Callable[[EcaProblem], Any]] = {
    "tile": tile_config,
    "tile_channels_last": tile_channels_last_config,
    "lagged": lagged_config,
}


def launcher_of(kernel: str, call: EcaCall | BackwardCall) -> Launcher:
    """What takes the call and a config."""
    return (FORWARD if isinstance(call, EcaCall) else BACKWARD)[kernel]


def config_of(kernel: str, call: EcaCall | BackwardCall, device: Device) -> Any:
    """The config of this kernel, whichever one `choose` would take; None if the kernel takes no such map."""
    return CONFIGS[kernel](call.problem(device))


def launch(
    kernel: str, call: EcaCall | BackwardCall, device: Device, in_vain: tuple[int, int] | None = None
) -> None:
    """Fill the call's outputs.

    in_vain: Programs of the lagged kernels finish what is so many images ahead of what they sum, and wait
    for it with so much patience.
    """
    config = config_of(kernel, call, device)
    assert config is not None
    if in_vain is not None:
        ahead, patience = in_vain
        config = replace(config, lag=-ahead * config.tiles(call.layout), patience=patience)
    launcher_of(kernel, call)(call, config)
