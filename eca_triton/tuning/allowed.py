"""Which configs may run: those with which kernels compute the right result, and which a compiler can take.

Whether they are fast is for a clock to say, so there is more room here than in the heuristic's rules.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from . import lagged, product, tile, tile_channels_last
from .choice import Choice
from .config import FLAT, TILED
from .heuristic import LEAST_FLAT, MAX_SPLITS, VECTOR_BYTES, power_of_2
from .layout import Layout
from .problem import EcaProblem, PassProblem, Problem, ProductProblem
from .tile import OCTET

MAX_THREADS = 1024
SHARE_BYTES = 512  # of a tile per thread: half of the registers that it can have
MAX_BLOCKS = 128  # of a loop that is unrolled
MAX_REGISTERS = (32, 255)
MAX_STAGES = 8  # of which the loop's head is a copy each
MAX_PROGRAMS = 2**31 - 1  # of a launch along one axis
MAX_BEHIND = 2**16  # positions, of which the index of one behind the last still fits into int32
MAX_ELEMENTS = 2**20  # of a tensor in a kernel, by Triton
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
    """Whether a choice computes the problem."""
    rule = _RULES[problem.kind].get(choice.kernel)
    if rule is None or (choice.config is None) != (choice.kernel == "two_pass") or impossible(choice):
        return False
    return rule(problem, choice.config)


def _tile(problem: EcaProblem, config: Any) -> bool:
    layout, halo = problem.layout, problem.taps - 1
    span = -(-(layout.hw + config.vec - 1) // config.vec) * config.vec if config.windowed else layout.hw
    columns = config.chunks * config.block_hw + config.block_tail
    return (
        layout.contiguous
        and layout.c * layout.hw <= tile.MAX_INDEX
        and _vectors_fit(problem, config.vec, config.windowed)
        and config.block_c * layout.hw % config.vec == 0  # no vector is shared by two programs
        and config.block_hw % config.vec == config.block_tail % config.vec == 0
        and span <= columns < span + max(config.block_hw, config.block_tail)
        and config.block_c <= max(config.vec, power_of_2(layout.c))
        and min(halo, layout.c - config.block_c) <= tile.MAX_HALO * config.block_c
        and config.block_halo == power_of_2(max(halo, 1))
        and (problem.kept_itemsize == 2 or not config.packed)
        and _share_fits(problem, config.block_c * columns * problem.kept_itemsize, config.num_warps)
    )


def _tile_backward(problem: EcaProblem, config: Any) -> bool:
    layout, block = problem.layout, config.block_halo_hw
    if not (block % config.tile.vec == 0 and _tile(problem, config.tile)):
        return False
    columns = config.tile.chunks * config.tile.block_hw + config.tile.block_tail
    # The halo's loop has no mask where blocks end with the row: then there may be no block after it, unless
    # there is no halo. Circular padding, which has one for all channels too, takes half a band of them.
    masked = layout.hw % block != 0 or columns - layout.hw < block
    no_halo = layout.c <= config.tile.block_c and layout.c < problem.taps // 2
    return block <= power_of_2(columns) and (masked or no_halo)


def _tile_channels_last(problem: EcaProblem, config: Any) -> bool:
    layout = problem.layout
    itemsize = problem.kept_itemsize if problem.direction == "forward" else problem.itemsize
    return (
        layout.dense_channels_last
        and layout.c % tile_channels_last.HALO == 0
        and layout.c * layout.hw < tile_channels_last.MAX_INDEX
        and problem.taps // 2 <= tile_channels_last.HALO
        and config.block_c <= power_of_2(layout.c)
        and config.steps == -(-layout.hw // config.block_hw)
        and config.halo_steps == -(-layout.hw // config.block_halo)
        and _share_fits(problem, config.block_c * config.block_hw * config.steps * itemsize, config.num_warps)
    )


def _lagged(problem: EcaProblem, config: Any) -> bool:
    layout = problem.layout
    itemsize = problem.kept_itemsize if problem.direction == "forward" else problem.itemsize
    vector = VECTOR_BYTES // itemsize
    if not lagged.takes(layout, problem.device):
        return False
    channels_last = layout.vector(1, vector) == vector
    if (config.vec_c, config.vec_hw) != ((vector, 1) if channels_last else (1, vector)):
        return False
    if not channels_last and layout.vector(2, vector) < vector:
        return False
    block, extent = (config.block_c, layout.c) if channels_last else (config.block_hw, layout.hw)
    unit = OCTET if problem.bits else vector  # no byte of bits may belong to two rows
    tiles = config.tiles(layout)
    threads = config.num_warps * problem.device.warp_size
    return (
        block % unit == extent % unit == 0
        and config.block_c <= power_of_2(layout.c)
        and config.block_hw <= power_of_2(layout.hw)
        and tiles <= config.lag  # else programs wait in vain
        and layout.n * tiles + config.lag <= lagged.MAX_INDEX
        and config.block_p * config.block_g <= 64 * threads
        and config.max_registers <= product.REGISTERS // threads
        and _share_fits(problem, config.block_c * config.block_hw * itemsize, config.num_warps)
    )


def _product(problem: ProductProblem, config: Any) -> bool:
    layout, threads = problem.layout, config.num_warps * problem.device.warp_size
    blocks = (config.block_hw, layout.hw), (config.block_c, layout.c), (config.block_i, problem.reduced)
    return (
        product.takes(problem.kept_itemsize, problem.device)
        and layout.dense_channels_last
        and all(block <= max(product.LEAST, power_of_2(size)) for block, size in blocks)
        and threads <= MAX_THREADS
        and config.block_hw * config.block_c <= product.most_sums(threads) * threads
        and config.shared_bytes(problem.kept_itemsize) <= problem.device.shared_bytes
        and layout.n * config.tiles(layout) <= MAX_PROGRAMS
    )


def _two_pass(problem: EcaProblem, config: None) -> bool:
    return True


def _tiled(problem: PassProblem, config: Any) -> bool:
    layout = problem.layout
    span = layout.hw + config.window - 1
    sums = 2 if problem.step == "moments" else 1  # in fp32, of every element of a tile
    return (
        config.block_c <= power_of_2(layout.c)
        and config.block_hw <= power_of_2(span)
        and config.splits <= -(-span // config.block_hw)
        and config.splits * config.block_hw <= MAX_BEHIND
        and config.block_c * power_of_2(problem.taps + 1) <= MAX_ELEMENTS
        and max(config.vec_c, config.vec_hw, config.window) * problem.itemsize <= VECTOR_BYTES
        and layout.vector(1, config.vec_c) == config.vec_c
        and layout.vector(2, config.vec_hw) == config.vec_hw
        and (config.window == 1 or _windows_fit(problem, config))
        and _share_fits(problem, 4 * sums * config.block_c * config.block_hw, config.num_warps)
        and layout.n * config.tiles(layout) <= MAX_PROGRAMS
    )


def _windows_fit(problem: PassProblem, config: Any) -> bool:
    """Rows are read from the vector before their first element on, so no vector may end behind the tensor."""
    layout = problem.layout
    return (
        problem.step == "pool"
        and layout.contiguous
        and layout.n * _image(layout) % config.window == config.block_hw % config.window == 0
        and config.window <= layout.hw
    )


def _flat(problem: PassProblem, config: Any) -> bool:
    layout = problem.layout
    return (
        (layout.contiguous or layout.dense_channels_last)
        and config.block <= max(LEAST_FLAT, power_of_2(_image(layout)))
        and _share_fits(problem, 4 * config.block, config.num_warps)
        and layout.n * config.tiles(layout) <= MAX_PROGRAMS
    )


def _vectors_fit(problem: EcaProblem, vec: int, windowed: bool) -> bool:
    layout = problem.layout
    if (problem.bits and vec != OCTET) or (not problem.bits and vec * problem.itemsize > VECTOR_BYTES):
        return False
    if windowed:  # images start on a vector, which may hold the end of one row and the start of the next
        return _image(layout) % vec == 0 and layout.hw % vec != 0 and vec <= layout.hw
    return layout.hw % vec == 0


def _image(layout: Layout) -> int:
    return layout.c * layout.hw


def _share_fits(problem: Problem, tile_bytes: int, num_warps: int) -> bool:
    threads = num_warps * problem.device.warp_size
    return threads <= MAX_THREADS and tile_bytes <= SHARE_BYTES * threads


_EITHER_WAY = {"tile_channels_last": _tile_channels_last, "lagged": _lagged, "two_pass": _two_pass}
_RULES: dict[str, dict[str, Callable[[Any, Any], bool]]] = {
    "forward": {"tile": _tile, **_EITHER_WAY},
    "backward": {"tile": _tile_backward, **_EITHER_WAY},
    "product": {"product": _product},
    **{each: {each: _tiled} for each in TILED},
    **{each: {each: _flat} for each in FLAT},
}
"""Whether a kernel computes a problem with a config, by kind of problem."""
