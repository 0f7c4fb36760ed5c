"""Which configs may run: those with which kernels compute the right result, and which a compiler can take.

Whether they are fast is for a clock to say, so there is more room here than in the heuristic's rules.
"""

from __future__ import annotations

from .config import FLAT, Choice, flags
from .families import lagged, product, tile_channels_last
from .families.blocks import MAX_THREADS, SHARE_BYTES, VECTOR_BYTES
from .families.passes import LEAST_FLAT, MAX_ELEMENTS, MAX_SPLITS
from .kernels import KERNELS
from .problem import Problem

MAX_BLOCKS = 128  # of a loop that is unrolled
MAX_REGISTERS = (32, 255)
MAX_STAGES = 8  # of which the loop's head is a copy each
LEAST_WARP = 32  # threads

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
    for name in sorted(values.keys() - set(flags(choice.config) if values else ())):
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
    kernel = KERNELS[problem.kind].get(choice.kernel)
    if kernel is None or (choice.config is None) != (kernel.config is None) or impossible(choice):
        return False
    return kernel.fits(problem, choice.config)
