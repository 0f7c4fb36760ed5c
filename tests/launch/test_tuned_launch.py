"""Launches and generated code follow tuned tables, once they are known, and at no cost per call."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
import torch
from deviceless_models import Tail
from recording_driver import Launch, weight
from torch import Tensor
from tuned import H200, backward, changed, entry, forward, key_of, one_of_two, product, written

from eca_triton import deviceless
from eca_triton.compile.passes import LoweringPass
from eca_triton.launch import devices
from eca_triton.tuning import store
from eca_triton.tuning.choice import choose
from eca_triton.tuning.config import Choice, Pass
from eca_triton.tuning.problem import Problem
from eca_triton.tuning.select import select
from eca_triton.tuning.table import Table, serialize

pytestmark = pytest.mark.usefixtures("table_folder")

OPS = torch.ops.eca_triton


@pytest.fixture
def launches(launches: list[Launch]) -> Iterator[list[Launch]]:
    """As for an H200, which has a name in tables."""
    with mock.patch.object(devices, "device_of", return_value=H200):
        yield launches


def tuned(problem: Problem, **fields: int) -> Table:
    """A choice that is not the heuristic's, as an entry of a table."""
    return {key_of(problem): entry(changed(choose(problem), **fields))}


X, W = torch.randn(2, 32, 16, 16), weight()
FORWARD = forward(2, 32, 256, dtype=torch.float32, taps=3)
BACKWARD = backward(2, 32, 256, dtype=torch.float32, taps=3)
POOL = one_of_two("pool", 2, 32, 256, dtype=torch.float32)
PRODUCT = product(2, 64, 64, 16, dtype=torch.float16, summand=False)
BLOCK_C: int = choose(FORWARD).config.block_c  # type: ignore[union-attr]
DOUBLE = tuned(FORWARD, block_c=2 * BLOCK_C)
ROWS = torch.randn(2, 16, 8, 8, dtype=torch.float16).to(memory_format=torch.channels_last)
PRODUCT_OF = ROWS, torch.randn(64, 16, 1, 1, dtype=torch.float16), torch.rand(2, 64)
ODD = torch.randn(2, 30, 16, 16).to(memory_format=torch.channels_last)  # which no kernel takes whole


def programs(launches: list[Launch]) -> list[int]:
    return [each.grid[0] for each in launches]


def train(x: Tensor, activation: str = "identity") -> None:
    with torch.enable_grad():
        OPS.eca(x.clone().requires_grad_(), W, activation=activation).backward(x)


def asked_by(call: Callable[[], object], kind: str) -> Problem:
    """The problem of a kind that a call asks about."""
    asked: list[Problem] = []

    def asking(problem: Problem, **options: bool) -> Choice:
        asked.append(problem)
        return select(problem, **options)

    store.reload()  # forgets what was planned
    with mock.patch.object(devices, "select", asking):
        call()
    (problem,) = [each for each in asked if each.kind == kind]
    return problem


CALLS: dict[str, tuple[Callable[[], object], Problem | Pass, dict[str, float], float]] = {
    "tile": (lambda: OPS.eca(X, W), FORWARD, {"block_c": 2}, 0.5),
    "tile, backward": (lambda: train(X), BACKWARD, {"block_c": 2}, 0.5),
    "product": (lambda: OPS.rescaled_projection(*PRODUCT_OF), PRODUCT, {"block_hw": 0.5, "block_c": 0.25}, 8),
    "pooling of a gate": (lambda: OPS.gate(X, W), POOL, {"block_c": 0.5}, 2),
    "pooling in training": (lambda: train(ODD, "silu"), "pool", {"block_c": 0.5}, 2),
    "rescaling in training": (lambda: train(ODD, "silu"), "affine", {"block": 0.5}, 2),
    "moments in training": (lambda: train(ODD, "silu"), "moments", {"block_c": 0.5}, 2),
    "rescaling in backward": (lambda: train(ODD, "silu"), "affine_backward", {"block": 0.5}, 2),
}
"""A call, the problem of one of its launches, how its config is changed, and what becomes of its programs."""


@pytest.mark.parametrize(("call", "problem", "factors", "ratio"), CALLS.values(), ids=CALLS)
def test_a_launch_follows_the_table_from_the_call_after_save_and_is_a_plan_again(
    launches: list[Launch],
    call: Callable[[], object],
    problem: Problem | Pass,
    factors: dict[str, float],
    ratio: float,
) -> None:
    def once() -> list[int]:
        launches.clear()
        call()
        return programs(launches)

    before = once()
    assert once() == before
    problem = asked_by(call, problem) if isinstance(problem, str) else problem
    usual = choose(problem).integers()
    store.save(tuned(problem, **{name: int(factor * usual[name]) for name, factor in factors.items()}))
    after = once()
    assert [b / a for a, b in zip(before, after, strict=True) if a != b] == [ratio]
    with mock.patch.object(devices, "select", side_effect=AssertionError("asked again")):
        assert once() == after


def test_a_file_that_changes_meanwhile_is_seen_after_reload(launches: list[Launch]) -> None:
    OPS.eca(X, W)
    written(store.user_table(), serialize(DOUBLE))
    OPS.eca(X, W)
    OPS.eca(torch.randn(4, 32, 16, 16), W)  # of the same key, and not launched before
    store.reload()
    OPS.eca(X, W)
    half = 32 // BLOCK_C
    assert programs(launches) == [2 * half, 2 * half, 4 * half, half]


def test_in_a_graph_capture_nothing_is_read(launches: list[Launch], monkeypatch: pytest.MonkeyPatch) -> None:
    store.save(DOUBLE)
    with monkeypatch.context() as capture:
        capture.setattr(devices, "captured", lambda x: True)
        capture.setattr(store, "load", None)
        OPS.eca(X, W)
    OPS.eca(torch.randn(2, 64, 8, 8), W)  # reads the tables, and forgets what was planned without them
    OPS.eca(X, W)
    first, _, last = programs(launches)
    assert first == 2 * last


@pytest.mark.parametrize("text", ["nonsense", serialize({})], ids=["broken", "empty"])
def test_with_any_table_a_repeated_call_is_a_plan(launches: list[Launch], text: str) -> None:
    written(store.user_table(), text)
    OPS.eca(X, W)
    with mock.patch.object(devices, "select", side_effect=AssertionError("asked again")):
        OPS.eca(X, W)
    assert len(launches) == 2


def test_a_config_that_does_not_fit_gives_way_to_the_heuristic() -> None:
    store.save(tuned(FORWARD, chunks=64))
    assert key_of(FORWARD) in store.in_force(may_read=True).table
    assert select(FORWARD) == choose(FORWARD)


def test_a_lag_that_was_tuned_for_more_images_ends_with_the_last() -> None:
    many, few = (forward(n, 512, 3136, last=True) for n in (128, 11))
    assert key_of(many) == key_of(few)
    choice = changed(choose(many), lag=5000)
    store.save({key_of(many): entry(choice)})
    assert select(many) == choice
    assert select(few) == changed(choice, lag=11 * choice.config.tiles(few.layout))


# Generated code.


class Rescale(torch.nn.Module):
    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        gate = torch.conv1d(x.mean((2, 3)).unsqueeze(1), w, padding=1).sigmoid()
        return torch.relu(x * gate.view(x.size(0), -1, 1, 1))


def sources(module: torch.nn.Module, *sizes: tuple[int, ...], channels_last: bool = False) -> dict[str, str]:
    """The code of each kernel of a network in bf16."""
    inputs = tuple(torch.empty(size, device="meta") for size in sizes)
    network = deviceless.lower(
        module, inputs, dtype=torch.bfloat16, channels_last=channels_last, backend="eca_triton", sources=True
    )
    return {kernel.name: kernel.source or "" for kernel in network.kernels}


def ship(table_folder: Path, table: Table) -> None:
    written(table_folder / "shipped" / "h200.json", serialize(table))
    store.reload()


def test_a_template_follows_shipped_tables_and_a_gpu_that_is_not_there_no_others(table_folder: Path) -> None:
    problem = forward(64, 256, 3136, taps=3)
    warps: int = choose(problem).config.num_warps  # type: ignore[union-attr]

    def lowered() -> str:
        return "".join(sources(Rescale(), (64, 256, 56, 56), (1, 1, 3)).values())

    store.save(tuned(problem, num_warps=2 * warps))
    assert f"num_warps={warps}" in lowered()
    ship(table_folder, tuned(problem, num_warps=2 * warps))
    assert f"num_warps={2 * warps}" in lowered()


def test_the_products_template_does_so_and_where_no_config_fits_it_has_the_heuristics(
    table_folder: Path,
) -> None:
    problem = product(128, 256, 3136, 64)

    def lowered() -> tuple[str, ...]:
        """Blocks, stages and warps of the product."""
        with torch.device("meta"):
            module = Tail()
        found = sources(module, (128, 64, 56, 56), (128, 256, 56, 56), channels_last=True)
        (source,) = (source for name, source in found.items() if "rescaled_projection" in name)
        blocks = [re.search(rf"BLOCK_{axis} : tl.constexpr = (\d+)", source) for axis in ("HW", "C", "I")]
        launch = [re.search(rf"{name}=(\d+)", source) for name in ("num_stages", "num_warps")]
        return tuple(match[1] if match else "" for match in (*blocks, *launch))

    ship(table_folder, tuned(problem, block_hw=128, block_i=32, num_warps=8, num_stages=3))
    assert lowered() == ("128", "128", "32", "3", "8")
    ship(table_folder, tuned(problem, block_hw=48))
    assert lowered() == ("64", "128", "64", "2", "4")


def test_caches_of_compiled_code_know_the_tables() -> None:
    lowering = LoweringPass()
    before = lowering.uuid()
    store.save(DOUBLE)
    after = lowering.uuid()
    assert after != before
    store.save({key: replace(each, time_us=1.0) for key, each in DOUBLE.items()})
    assert lowering.uuid() == after
    store.clear()
    assert lowering.uuid() == before
