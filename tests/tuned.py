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
from eca_triton.tuning.problem import Direction, EcaProblem, PassProblem, Problem, ProductProblem
from eca_triton.tuning.table import Entry, Table
from eca_triton.tuning.targets import TARGETS

H200 = TARGETS["h200"].device
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


def problem(
    layout: Layout, direction: Direction = "forward", *, dtype: torch.dtype = torch.bfloat16,
    itemsize: int = 0, taps: int = 5, device: Device = H200, **flags: bool,
) -> EcaProblem:  # fmt: skip
    """Of maps of one dtype, unless the widest has more bytes."""
    return EcaProblem(layout, dtype, itemsize or dtype.itemsize, device, direction, taps, **flags)


def forward(n: int, c: int, hw: int, last: bool = False, maps: int = 2, **changes: Any) -> EcaProblem:
    """A forward in bf16 with five taps."""
    return problem(_maps(n, c, hw, last, maps), **changes)


def backward(n: int, c: int, hw: int, last: bool = False, maps: int = 3, **changes: Any) -> EcaProblem:
    """A backward in bf16 with five taps, without an activation."""
    return problem(_maps(n, c, hw, last, maps), "backward", **changes)


def product(
    n: int, c: int, hw: int, reduced: int, *, dtype: torch.dtype = torch.bfloat16, itemsize: int = 0,
    summand: bool = True, device: Device = H200,
) -> ProductProblem:  # fmt: skip
    """A product in bf16 with a summand."""
    itemsize = itemsize or dtype.itemsize
    return ProductProblem(_maps(n, c, hw, True, 1), dtype, itemsize, device, reduced, summand)


def one_of_two(
    step: Pass, n: int, c: int, hw: int, last: bool = False, front: bool = False, **changes: Any
) -> PassProblem:
    """A launch of two passes in bf16; pooling reads x alone."""
    if step == "pool":
        alone = forward(n, c, hw, last, maps=1, **changes)
        holding = ("front",) if front else ()
        return PassProblem(alone.layout, alone.dtype, alone.itemsize, alone.device, step, holding)
    whole = forward if step in ("rescale", "affine") else backward
    return PassProblem.of(whole(n, c, hw, last, front=front, **changes), step)


def _maps(n: int, c: int, hw: int, last: bool, maps: int) -> Layout:
    return common_layout((n, c, hw), *[(c * hw, 1, c) if last else (c * hw, hw, 1)] * maps)


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
    """The choice with other fields of its config."""
    config: Any = choice.config
    return replace(choice, config=replace(config, **fields))


def written(path: Path, text: str) -> Path:
    """The file, with this text, in a folder that need not be there yet."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path
