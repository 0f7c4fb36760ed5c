"""Which kernel computes a map, and how it cuts it: a pure function, with the reason beside each rule."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from .config import Config, Device, FlatConfig, Pass
from .lagged import LaggedConfig, lagged_config
from .lagged_backward import lagged_backward_config
from .layout import Layout
from .product import ProductConfig
from .tile import TileConfig, tile_config
from .tile_backward import TileBackwardConfig, tile_backward_config
from .tile_channels_last import TileChannelsLastConfig, tile_channels_last_config
from .tile_channels_last_backward import tile_channels_last_backward_config

FIXED = {"patience"}  # bounds how long a program waits, and is never reached: nothing to tune
STARVED_BYTES = 16 << 10  # an SM by itself streams about 30 bytes per ns: longer than a launch takes


Kernel = Literal["tile", "tile_channels_last", "lagged", "two_pass", "product"] | Pass
AnyConfig = (
    TileConfig
    | TileBackwardConfig
    | TileChannelsLastConfig
    | LaggedConfig
    | ProductConfig
    | Config
    | FlatConfig
)


@dataclass(frozen=True)
class Choice:
    """A kernel and its config.

    Attributes:
        kernel: "tile" and "tile_channels_last" keep a part of the map in registers, "lagged" has it come back
            from L2, "two_pass" reads it twice; "product" makes it of fewer channels; the others are launches
            of two passes.
        config: None for "two_pass", whose launches are problems of their own.
    """

    kernel: Kernel
    config: AnyConfig | None

    def integers(self) -> dict[str, int]:
        """Return what can be tuned of the config as plain integers by name; nothing for "two_pass"."""
        if self.config is None:
            return {}
        flat: dict[str, Any] = asdict(self.config)
        flat |= flat.pop("tile", {})
        return {name: int(value) for name, value in flat.items() if name not in FIXED}


def choose(
    layout: Layout,
    x_itemsize: int,
    itemsize: int,
    taps: int,
    front: bool,
    device: Device,
    bits: bool = False,
) -> Choice:
    """The kernel for one call.

    Args:
        layout: Of x, out and the residual together.
        x_itemsize: Bytes of an element of x.
        itemsize: Bytes of the largest element of x, out and the residual.
        taps: Of the convolution over channels.
        front: Whether batch norm or an activation comes before pooling.
        device: What runs it.
        bits: Whether the kernel also writes a bit per element.
    """
    # Registers first: what is in them needs no luck with L2, no scratch and no waiting.
    tile = tile_config(layout, x_itemsize, itemsize, taps, device, bits)
    if tile is not None and not _starved(layout, x_itemsize, tile, device):
        return Choice("tile", tile)
    last = tile_channels_last_config(layout, x_itemsize, taps, front or bits, device)
    if last is not None:
        return Choice("tile_channels_last", last)
    # Maps too large for registers, or so few channels that most SMs would idle: any program may sum any part.
    lagged = lagged_config(layout, x_itemsize, front, device, bits)
    if lagged is not None:
        return Choice("lagged", lagged)
    # Two passes cut the spatial dims too, which outweighs their second launch: a starved tile is no choice.
    return Choice("two_pass", None)


def choose_backward(
    layout: Layout,
    dy_itemsize: int,
    itemsize: int,
    taps: int,
    recomputed: bool,
    bits: bool,
    stored: bool,
    device: Device,
) -> Choice:
    """The kernel for the backward of one call.

    Args:
        layout: Of dy, x, d_x and, where there are such, the residual and its gradient together.
        dy_itemsize: Bytes of an element of dy, which stays in registers.
        itemsize: Bytes of the largest element of these maps.
        taps: Of the convolution over channels.
        recomputed: Whether the activation's slope is computed anew.
        bits: Whether bits say what the activation passed.
        stored: Whether the residual's gradient is written.
        device: What runs it.
    """
    tile = tile_backward_config(layout, dy_itemsize, itemsize, taps, bits, recomputed, device)
    if tile is not None and not _starved(layout, dy_itemsize, tile.tile, device):
        return Choice("tile", tile)
    last = tile_channels_last_backward_config(layout, itemsize, taps, device)
    if last is not None:
        return Choice("tile_channels_last", last)
    lagged = lagged_backward_config(layout, itemsize, recomputed, stored, bits, device)
    if lagged is not None:
        return Choice("lagged", lagged)
    return Choice("two_pass", None)


def _starved(layout: Layout, itemsize: int, config: TileConfig, device: Device) -> bool:
    """Whether less than half of the SMs have work, and enough of it that the others are missed."""
    programs = layout.n * -(-layout.c // config.block_c)
    return 2 * programs < device.num_sms and config.block_c * layout.hw * itemsize > STARVED_BYTES
