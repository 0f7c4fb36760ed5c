"""Which kernels compute a kind of problem: the class of each one's config, what may run, what is tried."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from .config import FLAT, TILED, AnyConfig, Choice, Config, FlatConfig
from .families import lagged, passes, product, tile, tile_channels_last
from .families.lagged import LaggedConfig
from .families.product import ProductConfig
from .families.tile import TileBackwardConfig, TileConfig
from .families.tile_channels_last import TileChannelsLastConfig


class Family(NamedTuple):
    """How a kernel can be launched.

    Attributes:
        config: Class of its config; None for "two_pass", whose launches are problems of their own.
        fits: Says of a problem and such a config whether the kernel computes one with the other.
        candidates: What tuning tries beside the heuristic's choice, given the problem and that.
    """

    config: type[AnyConfig] | None
    fits: Callable[[Any, Any], bool]
    candidates: Callable[[Any, Choice], Iterator[Choice]]


_EITHER_WAY = {
    "tile_channels_last": Family(
        TileChannelsLastConfig, tile_channels_last.fits, tile_channels_last.candidates
    ),
    "lagged": Family(LaggedConfig, lagged.fits, lagged.candidates),
    "two_pass": Family(None, lambda problem, _: True, lambda problem, _: iter(())),
}
_TILED = Family(Config, passes.tiled_fits, passes.tiled_candidates)
_FLAT = Family(FlatConfig, passes.flat_fits, passes.flat_candidates)

KERNELS: dict[str, dict[str, Family]] = {
    "forward": {"tile": Family(TileConfig, tile.fits, tile.candidates), **_EITHER_WAY},
    "backward": {"tile": Family(TileBackwardConfig, tile.fits, tile.candidates), **_EITHER_WAY},
    "product": {"product": Family(ProductConfig, product.fits, product.candidates)},
    **{each: {each: _TILED} for each in TILED},
    **{each: {each: _FLAT} for each in FLAT},
}
"""By kind of problem and by kernel."""
