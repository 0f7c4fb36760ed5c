"""Which configs may run: those with which kernels compute the right result, and which a compiler can take.

Whether they are fast is for a clock to say, so there is more room here than in the heuristic's rules.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .config import FLAT, TILED, Choice
from .families import lagged, passes, product, tile, tile_channels_last
from .families.blocks import MAX_THREADS, SHARE_BYTES, VECTOR_BYTES
from .families.passes import LEAST_FLAT, MAX_ELEMENTS, MAX_SPLITS
from .problem import EcaProblem, Problem

MAX_BLOCKS = 128  # of a loop that is unrolled
MAX_REGISTERS = (32, 255)
MAX_STAGES = 8  # of which the loop's head is a copy each
LEAST_WARP = 32  # threads

_FLAGS = {"windowed", "packed"}
_COUNTS = {
    "chunks": (1, MAX_BLOCKS),
    "steps": (1, MAX_BLOCKS),
    "halo_steps": (1, MAX_BLOCKS),
    "lag": (1, lagged.MAX_INDEX),
    "max_registers": MAX_REGISTERS,
    "num_stages": (1, MAX_STAGES),
}
"""Fields that may hold any number in a range; all others, flags aside, hold powers of two."""
_MOST: dict[str, int] = {
    "num_warps": MAX_THREADS // LEAST_WARP,
    "splits": MAX_SPLITS,
    **dict.fromkeys(("vec", "vec_c", "vec_hw", "window"), VECTOR_BYTES),
}
_LEAST: dict[tuple[str, str], int] = {
    ("tile", "block_tail"): 0,
    ("tile_channels_last", "block_c"): tile_channels_last.HALO,
    **{("product", name): product.LEAST for name in ("block_hw", "block_c", "block_i")},
    **{(each, "block"): LEAST_FLAT for each in FLAT},
}


def impossible(choice: Choice) -> str:
    """Say what in a choice's config lets no kernel run, whatever the map; "" if nothing does."""
    values = choice.integers()
    for name in sorted(values.keys() - _FLAGS):
        power = name not in _COUNTS
        least, most = _COUNTS.get(name) or (
            _LEAST.get((choice.kernel, name), 1),
            _MOST.get(name, MAX_ELEMENTS),
        )
        value = values[name]
        if not least <= value <= most or (power and value & (value - 1)):
            kind = "a power of two" if power else "an integer"
            return f"{name} must be {kind} from {least} to {most}, got {value}"
    if values.get("block_c", 1) * values.get("block_hw", 1) > SHARE_BYTES * MAX_THREADS:
        return f"block_c * block_hw must be at most {SHARE_BYTES * MAX_THREADS}"
    return ""


def allowed(problem: Problem, choice: Choice) -> bool:
    """Return whether a choice computes the problem."""
    rule = _RULES[problem.kind].get(choice.kernel)
    if rule is None or (choice.config is None) != (choice.kernel == "two_pass") or impossible(choice):
        return False
    return rule(problem, choice.config)


def _two_pass(problem: EcaProblem, config: None) -> bool:
    return True


_WHOLE_MAP: dict[str, Callable[[Any, Any], bool]] = {
    "tile": tile.fits,
    "tile_channels_last": tile_channels_last.fits,
    "lagged": lagged.fits,
    "two_pass": _two_pass,
}
_RULES: dict[str, dict[str, Callable[[Any, Any], bool]]] = {
    "forward": _WHOLE_MAP,
    "backward": _WHOLE_MAP,
    "product": {"product": product.fits},
    **{each: {each: passes.tiled_fits} for each in TILED},
    **{each: {each: passes.flat_fits} for each in FLAT},
}
"""Whether a kernel computes a problem with a config, by kind of problem."""
