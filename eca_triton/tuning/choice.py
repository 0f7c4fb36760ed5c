"""Which kernel computes a problem where nothing was tuned, and how: the reason beside each rule."""

from __future__ import annotations

from .config import Choice
from .families.lagged import lagged_config
from .families.passes import pass_config
from .families.product import product_config
from .families.tile import TileConfig, tile_config
from .families.tile_channels_last import tile_channels_last_config
from .problem import EcaProblem, PassProblem, Problem, ProductProblem

STARVED_BYTES = 16 << 10  # an SM by itself streams about 30 bytes per ns: longer than a launch takes


def choose(problem: Problem) -> Choice:
    """Choose kernel and config.

    Raises:
        TypeError: no kernel is for such a problem.
    """
    if isinstance(problem, EcaProblem):
        return _whole_map(problem)
    if isinstance(problem, ProductProblem):
        return Choice("product", product_config(problem))
    if isinstance(problem, PassProblem):
        return Choice(problem.step, pass_config(problem))
    raise TypeError(f"no kernel is for {problem!r}")


def _whole_map(problem: EcaProblem) -> Choice:
    # Registers first: what is in them needs no luck with L2, no scratch and no waiting.
    tile = tile_config(problem)
    if tile is not None and not _starved(problem, tile):
        return Choice("tile", tile)
    last = tile_channels_last_config(problem)
    if last is not None:
        return Choice("tile_channels_last", last)
    # Maps too large for registers, or so few channels that most SMs would idle: any program may sum any part.
    lagged = lagged_config(problem)
    if lagged is not None:
        return Choice("lagged", lagged)
    # Two passes cut the spatial dims too, which outweighs their second launch: a starved tile is no choice.
    return Choice("two_pass", None)


def _starved(problem: EcaProblem, config: TileConfig) -> bool:
    """Return whether less than half of the SMs have work, and enough of it that the others are missed."""
    layout = problem.layout
    programs = layout.n * -(-layout.c // config.block_c)
    share = config.block_c * layout.hw * problem.kept_itemsize
    return 2 * programs < problem.device.num_sms and share > STARVED_BYTES
