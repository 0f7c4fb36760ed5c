"""Launches and generated code follow tuned tables, once they are known, and at no cost per call."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from deviceless_models import Tail
from recording_driver import Launch, plans, recorded_launches, weight
from torch import Tensor
from tuned import H200, changed, entry, key_of, product

from eca_triton import deviceless
from eca_triton.compile.passes import LoweringPass
from eca_triton.launch import devices
from eca_triton.tuning import store
from eca_triton.tuning.choice import choose
from eca_triton.tuning.config import Choice, Pass
from eca_triton.tuning.layout import common_layout
from eca_triton.tuning.problem import EcaProblem, PassProblem, ProductProblem
from eca_triton.tuning.select import select
from eca_triton.tuning.table import serialize

pytestmark = pytest.mark.usefixtures("table_folder")

OPS = torch.ops.eca_triton


@pytest.fixture
def launches() -> Iterator[list[Launch]]:
    with (
        recorded_launches([0]) as launches,
        mock.patch.object(devices, "device_of", return_value=H200),
        torch.no_grad(),
    ):
        yield launches


def problem_of(x: Tensor, maps: int = 2) -> EcaProblem:
    layout = common_layout(x.shape, *[x.stride()] * maps)
    return EcaProblem.forward(layout, x.dtype, x.element_size(), x.element_size(), 3, False, H200)


def tuned(problem: EcaProblem | ProductProblem, **fields: int) -> Choice:
    """A choice that is not the heuristic's."""
    return changed(choose(problem), **fields)


X = torch.randn(2, 32, 16, 16)
FORWARD = problem_of(X)
BLOCK_C = choose(FORWARD).config.block_c  # type: ignore[union-attr]
DOUBLE = tuned(FORWARD, block_c=2 * BLOCK_C)


def programs(launches: list[Launch]) -> list[int]:
    return [each.grid[0] for each in launches]


def test_a_launch_follows_the_table_from_the_call_after_save(launches: list[Launch]) -> None:
    w = weight()
    for _ in range(2):
        OPS.eca(X, w)
    store.save({key_of(FORWARD): entry(DOUBLE)})
    for _ in range(2):
        OPS.eca(X, w)
    half = 32 // BLOCK_C
    assert programs(launches) == [2 * half, 2 * half, half, half]
    assert plans() == 1


def test_the_backward_follows_it_too(launches: list[Launch]) -> None:
    def step() -> None:
        with torch.enable_grad():
            x = X.clone().requires_grad_()
            OPS.eca(x, w).backward(X)

    w = weight()
    step()
    before = launches.copy()
    layout = common_layout(X.shape, *[X.stride()] * 3)
    problem = EcaProblem.backward(layout, X.dtype, 4, 4, 3, "identity", False, False, H200)
    store.save({key_of(problem): entry(tuned(problem, block_c=2 * choose(problem).config.tile.block_c))})
    launches.clear()
    step()
    assert [a / b for a, b in zip(programs(before), programs(launches), strict=True)].count(2) == 1


def test_a_product_follows_it_too_and_is_a_plan_again(launches: list[Launch]) -> None:
    x = torch.randn(2, 16, 8, 8, dtype=torch.float16).to(memory_format=torch.channels_last)
    args = x, torch.randn(64, 16, 1, 1, dtype=torch.float16), torch.rand(2, 64)
    problem = product(2, 64, 64, 16, dtype="float16", summand=False)
    for _ in range(2):
        OPS.rescaled_projection(*args)
    store.save({key_of(problem): entry(tuned(problem, block_hw=32, block_c=16))})
    for _ in range(2):
        OPS.rescaled_projection(*args)
    assert programs(launches) == [2, 2, 16, 16]
    with mock.patch.object(devices, "select", side_effect=AssertionError("asked again")):
        OPS.rescaled_projection(*args)
    assert plans() == 1


def test_the_pooling_of_a_gate_follows_it(launches: list[Launch]) -> None:
    w = weight()
    OPS.gate(X, w)
    layout = common_layout(X.shape, X.stride())
    pool = PassProblem.pool(layout, X.dtype, X.element_size(), False, H200)
    usual: Any = choose(pool).config
    store.save({key_of(pool): entry(changed(choose(pool), block_c=usual.block_c // 2))})
    OPS.gate(X, w)
    before, _, after, _ = programs(launches)
    assert after == 2 * before


@pytest.mark.parametrize("step", ["pool", "affine", "moments", "affine_backward"])
def test_so_does_every_launch_of_two_passes_in_training(launches: list[Launch], step: Pass) -> None:
    """A map of 30 channels, channels-last, which no kernel takes whole."""
    x = torch.randn(2, 30, 16, 16).to(memory_format=torch.channels_last)
    w = weight()

    def once() -> list[int]:
        launches.clear()
        with torch.enable_grad():
            OPS.eca(x.clone().requires_grad_(), w, activation="silu").backward(x)
        return programs(launches)

    before = once()
    asked: list[PassProblem] = []

    def asking(problem: PassProblem, **options: bool) -> Choice:
        asked.append(problem)
        return select(problem, **options)

    store.reload()  # forgets what was planned
    with mock.patch.object(devices, "select", asking):
        assert once() == before
    (problem,) = [each for each in asked if each.kind == step]
    usual: Any = choose(problem).config
    half = {"block": usual.block // 2} if "affine" in step else {"block_c": usual.block_c // 2}
    store.save({key_of(problem): entry(changed(choose(problem), **half))})
    assert [after / usual for after, usual in zip(once(), before, strict=True)].count(2) == 1


def test_a_file_that_changes_meanwhile_is_seen_after_reload(launches: list[Launch]) -> None:
    w = weight()
    OPS.eca(X, w)
    path = store.user_table()
    path.parent.mkdir()
    path.write_text(serialize({key_of(FORWARD): entry(DOUBLE)}))
    OPS.eca(X, w)
    OPS.eca(torch.randn(4, 32, 16, 16), w)  # of the same key, and not launched before
    store.reload()
    OPS.eca(X, w)
    half = 32 // BLOCK_C
    assert programs(launches) == [2 * half, 2 * half, 4 * half, half]


def test_in_a_graph_capture_nothing_is_read(launches: list[Launch], monkeypatch: pytest.MonkeyPatch) -> None:
    w = weight()
    store.save({key_of(FORWARD): entry(DOUBLE)})
    with monkeypatch.context() as capture:
        capture.setattr(devices, "captured", lambda x: True)
        capture.setattr(store, "load", None)
        OPS.eca(X, w)
    OPS.eca(torch.randn(2, 64, 8, 8), w)  # reads the tables, and forgets what was planned without them
    OPS.eca(X, w)
    first, _, last = programs(launches)
    assert first == 2 * last


@pytest.mark.parametrize("text", ["nonsense", serialize({})], ids=["broken", "empty"])
def test_with_any_table_a_repeated_call_is_a_plan(launches: list[Launch], text: str) -> None:
    path = store.user_table()
    path.parent.mkdir()
    path.write_text(text)
    w = weight()
    OPS.eca(X, w)
    with mock.patch.object(devices, "select", side_effect=AssertionError("asked again")):
        OPS.eca(X, w)
    assert len(launches) == 2


def test_a_config_that_does_not_fit_gives_way_to_the_heuristic() -> None:
    store.save({key_of(FORWARD): entry(tuned(FORWARD, chunks=64))})
    assert store.lookup(key_of(FORWARD)) is not None
    assert select(FORWARD) == choose(FORWARD)


def test_a_lag_that_was_tuned_for_more_images_ends_with_the_last() -> None:
    def problem(n: int) -> EcaProblem:
        layout = common_layout((n, 512, 56, 56), *[(512 * 3136, 1, 512 * 56, 512)] * 2)
        return EcaProblem.forward(layout, "bfloat16", 2, 2, 5, False, H200)

    many, few = problem(128), problem(11)
    assert key_of(many) == key_of(few)
    choice = tuned(many, lag=5000)
    store.save({key_of(many): entry(choice)})
    assert select(many) == choice
    assert select(few) == changed(choice, lag=11 * choice.config.tiles(few.layout))


# Generated code.


class Rescale(torch.nn.Module):
    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        gate = torch.conv1d(x.mean((2, 3)).unsqueeze(1), w, padding=1).sigmoid()
        return torch.relu(x * gate.view(x.size(0), -1, 1, 1))


def test_a_template_follows_shipped_tables_and_a_gpu_that_is_not_there_no_others(table_folder: Path) -> None:
    shape = (64, 256, 56, 56)
    contiguous = torch.empty(shape, device="meta").stride()
    layout = common_layout(shape, contiguous, contiguous)
    problem = EcaProblem.forward(layout, "bfloat16", 2, 2, 3, False, H200)
    warps = choose(problem).config.num_warps  # type: ignore[union-attr]

    def lowered() -> str:
        inputs = torch.empty(shape, device="meta"), torch.empty((1, 1, 3), device="meta")
        network = deviceless.lower(
            Rescale(), inputs, dtype=torch.bfloat16, backend="eca_triton", sources=True
        )
        return "".join(kernel.source or "" for kernel in network.kernels)

    store.save({key_of(problem): entry(tuned(problem, num_warps=2 * warps))})
    assert f"num_warps={warps}" in lowered()
    ship(table_folder)
    assert f"num_warps={2 * warps}" in lowered()


def ship(table_folder: Path) -> None:
    """What the user tuned."""
    (table_folder / "shipped").mkdir()
    (table_folder / "shipped" / "h200.json").write_text(store.user_table().read_text())
    store.reload()


def test_the_products_template_does_so_and_where_no_config_fits_it_has_the_heuristics(
    table_folder: Path,
) -> None:
    problem = product(128, 256, 3136, 64)

    def lowered() -> tuple[str, ...]:
        """Blocks, stages and warps of the product."""
        with torch.device("meta"):
            module, x, residual = Tail(), torch.empty(128, 64, 56, 56), torch.empty(128, 256, 56, 56)
        network = deviceless.lower(
            module,
            (x, residual),
            dtype=torch.bfloat16,
            channels_last=True,
            backend="eca_triton",
            sources=True,
        )
        (source,) = (each.source for each in network.kernels if "rescaled_projection" in each.name)
        blocks = [re.search(rf"BLOCK_{axis} : tl.constexpr = (\d+)", source) for axis in ("HW", "C", "I")]
        launch = [re.search(rf"{name}=(\d+)", source) for name in ("num_stages", "num_warps")]
        return tuple(match[1] if match else "" for match in (*blocks, *launch))

    store.save({key_of(problem): entry(tuned(problem, block_hw=128, block_i=32, num_warps=8, num_stages=3))})
    assert lowered() == ("64", "128", "64", "2", "4")
    ship(table_folder)
    assert lowered() == ("128", "128", "32", "3", "8")
    shipped = table_folder / "shipped" / "h200.json"
    shipped.write_text(serialize({key_of(problem): entry(tuned(problem, block_hw=48))}))
    store.reload()
    assert lowered() == ("64", "128", "64", "2", "4")


def test_caches_of_compiled_code_know_the_tables() -> None:
    lowering = LoweringPass()
    before = lowering.uuid()
    store.save({key_of(FORWARD): entry(DOUBLE)})
    after = lowering.uuid()
    assert after != before
    store.save({key_of(FORWARD): replace(entry(DOUBLE), time_us=1.0)})
    assert lowering.uuid() == after
    store.clear()
    assert lowering.uuid() == before
