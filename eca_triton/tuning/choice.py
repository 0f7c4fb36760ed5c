"""Which kernel computes a problem where nothing was tuned, and how: the reason beside each rule."""

from __future__ import annotations

from .config import Choice
from .families.lagged import lagged_backward_config, lagged_config
from .families.passes import pass_config
from .families.product import product_config
from .families.tile import TileConfig, tile_backward_config, tile_config
from .families.tile_channels_last import tile_channels_last_backward_config, tile_channels_last_config
from .problem import EcaProblem, PassProblem, Problem, ProductProblem

STARVED_BYTES = 16 << 10  # an SM by itself streams about 30 bytes per ns: longer than a launch takes


def choose(problem: Problem) -> Choice:
    """Choose kernel and config.

    Raises:
        TypeError: no kernel is for such a problem.
    """
    if isinstance(problem, EcaProblem):
        return _forward(problem) if problem.direction == "forward" else _backward(problem)
    if isinstance(problem, ProductProblem):
        return Choice("product", product_config(problem.layout.c, problem.layout.hw, problem.reduced))
    if isinstance(problem, PassProblem):
        return Choice(problem.step, pass_config(problem))
    raise TypeError(f"no kernel is for {problem!r}")


def _forward(problem: EcaProblem) -> Choice:
    layout, itemsize, taps, device = problem.layout, problem.kept_itemsize, problem.taps, problem.device
    # Registers first: what is in them needs no luck with L2, no scratch and no waiting.
    tile = tile_config(layout, itemsize, problem.itemsize, taps, device, problem.bits)
    if tile is not None and not _starved(problem, tile):
        return Choice("tile", tile)
    last = tile_channels_last_config(layout, itemsize, taps, problem.front or problem.bits, device)
    if last is not None:
        return Choice("tile_channels_last", last)
    # Maps too large for registers, or so few channels that most SMs would idle: any program may sum any part.
    lagged = lagged_config(layout, itemsize, problem.front, device, problem.bits)
    if lagged is not None:
        return Choice("lagged", lagged)
    # Two passes cut the spatial dims too, which outweighs their second launch: a starved tile is no choice.
    return Choice("two_pass", None)


def _backward(problem: EcaProblem) -> Choice:
    layout, itemsize, taps, device = problem.layout, problem.itemsize, problem.taps, problem.device
    bits, recomputed = problem.bits, problem.recomputed
    tile = tile_backward_config(layout, problem.kept_itemsize, itemsize, taps, bits, recomputed, device)
    if tile is not None and not _starved(problem, tile.tile):
        return Choice("tile", tile)
    last = tile_channels_last_backward_config(layout, itemsize, taps, device)
    if last is not None:
        return Choice("tile_channels_last", last)
    lagged = lagged_backward_config(layout, itemsize, recomputed, problem.stored, bits, device)
    if lagged is not None:
        return Choice("lagged", lagged)
    return Choice("two_pass", None)


def _starved(problem: EcaProblem, config: TileConfig) -> bool:
    """Return whether less than half of the SMs have work, and enough of it that the others are missed."""
    layout = problem.layout
    programs = layout.n * -(-layout.c // config.block_c)
    share = config.block_c * layout.hw * problem.kept_itemsize
    return 2 * programs < problem.device.num_sms and share > STARVED_BYTES
