"""What tests of tuned tables share: a GPU with a name, problems on it, and entries for them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from eca_triton.tuning.choice import choose
from eca_triton.tuning.config import Choice, Device, Pass
from eca_triton.tuning.key import Key
from eca_triton.tuning.layout import Layout, common_layout
from eca_triton.tuning.problem import EcaProblem, PassProblem, Problem, ProductProblem
from eca_triton.tuning.table import Entry, Table

H200 = Device(num_sms=132, warp_size=32, name="NVIDIA H200", capability="9.0", shared_bytes=227 << 10)
MI300 = Device(
    num_sms=304,
    warp_size=64,
    name="AMD Instinct MI300X",
    capability="9.4",
    shared_bytes=64 << 10,
    vendor="amd",
)
VERSIONS = {"eca_triton": "0.1.0", "torch": "2.14.1", "triton": "3.8.0"}


def layout_of(*shape: int, last: bool = False) -> Layout:
    """Of a map without gaps."""
    x = torch.empty(shape, device="meta")
    return common_layout(shape, (x.movedim(1, -1).contiguous().movedim(-1, 1) if last else x).stride())


def forward(n: int, c: int, hw: int, last: bool = False, maps: int = 2, **changes: Any) -> EcaProblem:
    """A forward in bf16 with five taps."""
    strides = [(c * hw, 1, c) if last else (c * hw, hw, 1)] * maps
    options = {"dtype": "bfloat16", "x_itemsize": 2, "itemsize": 2, "taps": 5, "front": False, "device": H200}
    return EcaProblem.forward(common_layout((n, c, hw), *strides), **(options | changes))


def backward(n: int, c: int, hw: int, last: bool = False, maps: int = 3, **changes: Any) -> EcaProblem:
    """A backward in bf16 with five taps, without an activation."""
    strides = [(c * hw, 1, c) if last else (c * hw, hw, 1)] * maps
    options = {"dtype": "bfloat16", "dy_itemsize": 2, "itemsize": 2, "taps": 5, "activation": "identity"}
    options |= {"bits": False, "stored": False, "device": H200}
    return EcaProblem.backward(common_layout((n, c, hw), *strides), **(options | changes))


def product(n: int, c: int, hw: int, reduced: int, **changes: Any) -> ProductProblem:
    """A product in bf16 with a summand."""
    options = {"dtype": "bfloat16", "x_itemsize": 2, "out_itemsize": 2, "summand": True, "device": H200}
    layout = common_layout((n, c, hw), (c * hw, 1, c))
    return ProductProblem.of(layout, reduced=reduced, **(options | changes))


def one_of_two(step: Pass, n: int, c: int, hw: int, last: bool = False, **changes: Any) -> PassProblem:
    """A launch of two passes in bf16; pooling reads x alone."""
    if step == "pool":
        layout = forward(n, c, hw, last, maps=1).layout
        options = {"dtype": "bfloat16", "itemsize": 2, "front": False, "device": H200}
        return PassProblem.pool(layout, **(options | changes))
    whole = forward if step in ("rescale", "affine") else backward
    return PassProblem.of(whole(n, c, hw, last, **changes), step)


def key_of(problem: Problem) -> Key:
    key = Key.of(problem)
    assert key is not None
    return key


def entry(choice: Choice, time_us: float = 41.5) -> Entry:
    return Entry(choice, time_us, 2 * time_us, VERSIONS)


def table(*problems: Problem) -> Table:
    """The heuristic's choices, as though they had been tuned."""
    return {key_of(problem): entry(choose(problem)) for problem in problems}


def changed(choice: Choice, **fields: Any) -> Choice:
    """The choice with other fields of its config; those of a backward's tile are in it."""
    config: Any = choice.config
    if "block_halo_hw" not in fields and hasattr(config, "tile"):
        return replace(choice, config=replace(config, tile=replace(config.tile, **fields)))
    return replace(choice, config=replace(config, **fields))


def written(path: Path, text: str) -> Path:
    """The file, with this text, in a folder that need not be there yet."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path
