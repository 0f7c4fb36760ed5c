"""Kernels compiled before they are launched: what a launch compiles, and what is held against it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from subprocess import SubprocessError
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from autotune_machine import H200
from recording_driver import recorded_launches
from tuned import entry

from eca_triton.autotune import ahead
from eca_triton.autotune.ahead import Launch, Usage, compiled, launches_of, objections, usage_of
from eca_triton.autotune.examples import Example
from eca_triton.autotune.machine import launch_as
from eca_triton.autotune.search import tasks_of
from eca_triton.kernels.gate import gate_kernel
from eca_triton.kernels.lagged import lagged_kernel
from eca_triton.kernels.pool import pool_kernel
from eca_triton.kernels.product import product_kernel
from eca_triton.kernels.rescale import rescale_kernel
from eca_triton.kernels.tile import tile_kernel
from eca_triton.ops.schema import ECA, RESCALED_PROJECTION
from eca_triton.tuning import store
from eca_triton.tuning.candidates import candidates
from eca_triton.tuning.choice import choose
from eca_triton.tuning.config import Choice
from eca_triton.tuning.select import select

pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1",
    reason="the interpreter has no compiler: unset TRITON_INTERPRET",
)

SHARED = 227 << 10
META = torch.device("meta")


def example(side: int, memory_format: torch.memory_format = torch.contiguous_format) -> Example:
    x = torch.empty(4, 64, side, side, dtype=torch.bfloat16, device="meta").to(memory_format=memory_format)
    return Example.of(ECA, (x, x.new_empty(1, 1, 3)), {})


@pytest.fixture(autouse=True)
def _no_gpu() -> Iterator[None]:
    """Compiles for sm_90, and launches nothing."""
    with recorded_launches([0]):
        yield


@pytest.fixture
def lagged() -> tuple[Example, Choice]:
    each = example(64, torch.channels_last)
    choice = choose(each.call(META).problem(H200))
    assert choice.kernel == "lagged"
    return each, choice


def launching(each: Example, choice: Choice, device: torch.device = META) -> Callable[[], None]:
    """What launches an example with a choice."""
    return lambda: launch_as(each.call(device), each.call(META).problem(H200), choice)


def launch_of(each: Example, choice: Choice) -> Launch:
    (launch,) = launches_of(launching(each, choice))
    return launch


def starved(choice: Choice) -> Choice:
    return Choice("lagged", replace(choice.config, max_registers=32))


def test_the_code_is_that_of_the_launch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else everything would be compiled again, one after the other."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    each = example(16)
    choice = choose(each.call(META).problem(H200))
    launch = launch_of(each, choice)
    assert launch.kernel is tile_kernel
    (ahead,) = compiled([launch])
    launching(each, choice, torch.device("cpu"))()
    assert list(tile_kernel.device_caches[0][0].values()) == [ahead]


def test_code_that_fits_has_nothing_against_it(lagged: tuple[Example, Choice]) -> None:
    each, choice = lagged
    launch = launch_of(each, choice)
    assert launch.kernel is lagged_kernel
    usage = usage_of(*compiled([launch]))
    assert 32 <= usage.registers <= choice.config.max_registers
    assert usage.spilled_bytes == 0
    assert 0 < usage.shared_bytes < SHARED
    assert usage.objection(SHARED) == ""


def test_a_products_largest_candidates_spill_nothing_and_ask_for_no_more_than_was_thought() -> None:
    x = torch.empty(128, 128, 28, 28, dtype=torch.bfloat16, device="meta")
    x = x.to(memory_format=torch.channels_last)
    terms = x.new_empty(128, 512, dtype=torch.float32)
    each = Example.of(RESCALED_PROJECTION, (x, x.new_empty(512, 128, 1, 1), terms, terms), {})
    call = each.call(META)
    largest = sorted(
        candidates(call.problem(H200)),
        key=lambda choice: (choice.config.block_hw * choice.config.block_c, choice.config.num_stages),
    )[-2:]
    launches = [launch_of(each, choice) for choice in largest]
    assert {launch.kernel for launch in launches} == {product_kernel}
    for choice, binary in zip(largest, compiled(launches), strict=True):
        usage = usage_of(binary)
        assert usage.objection(SHARED) == ""
        assert usage.shared_bytes <= choice.config.shared_bytes(2)


def test_a_pass_is_tried_whatever_kernel_takes_the_map_by_now(table_folder: Path) -> None:
    x = torch.empty(16, 2048, 48, 48, device="meta").to(memory_format=torch.channels_last)
    whole, *passes = reversed(tasks_of({Example.of(ECA, (x, x.new_empty(1, 1, 5)), {}): 1}, H200))
    store.save({whole.key: entry(candidates(whole.problem)[1])})
    assert select(whole.problem).kernel == "lagged"
    kernels = {"pool": [pool_kernel, gate_kernel], "rescale": [pool_kernel, rescale_kernel]}
    assert {task.key.kernel for task in passes} == kernels.keys()
    for task in passes:
        choice = candidates(task.problem)[1]
        launches = launches_of(partial(launch_as, task.example.call(META), task.asked, choice))
        assert [launch.kernel for launch in launches] == kernels[task.key.kernel]
        (own,) = (launch for launch in launches if launch.kernel.__name__ == f"{task.key.kernel}_kernel")
        assert own.options["BLOCK_C"] == choice.config.block_c
        assert own.options["SPLITS"] == choice.config.splits


def test_a_problem_that_no_launch_asks_about_is_an_error(lagged: tuple[Example, Choice]) -> None:
    each, choice = lagged
    with pytest.raises(RuntimeError, match="no launch of this call asks about"):
        launch_as(each.call(META), example(16).call(META).problem(H200), choice)


def test_every_function_has_its_own_answer(lagged: tuple[Example, Choice]) -> None:
    each, choice = lagged
    odd = Choice("lagged", replace(choice.config, block_c=48))  # no power of two
    launches = [launching(each, tried) for tried in (choice, starved(choice), odd, choice)]
    fine, spills, odd_one, again = objections(launches, SHARED)
    assert fine == again == ""
    assert spills.startswith("spills ")
    assert odd_one.startswith("does not compile: ")
    (limited,) = objections(launches[:1], 16)
    assert limited.startswith("needs ")
    assert limited.endswith("and a block may have 16")


def test_a_compilers_error_is_told_as_it_is(
    lagged: tuple[Example, Choice], monkeypatch: pytest.MonkeyPatch
) -> None:
    each, choice = lagged
    unknown = Choice("lagged", replace(choice.config, max_registers=48))  # which nobody has compiled yet
    compiled([launch_of(each, choice)])  # from here on the kernel has its compiler
    monkeypatch.setattr(lagged_kernel, "compile", mock.Mock(side_effect=ValueError("no such instruction")))
    (error,) = compiled([launch_of(each, unknown)])
    assert (type(error), str(error)) == (ValueError, "no such instruction")


def test_where_no_tool_can_tell_nothing_is_held_against_the_code(
    lagged: tuple[Example, Choice], monkeypatch: pytest.MonkeyPatch
) -> None:
    each, choice = lagged
    (binary,) = compiled([launch_of(each, starved(choice))])
    absent = mock.Mock(side_effect=FileNotFoundError)  # for us alone: Triton would keep that it found no tool
    monkeypatch.setattr(ahead, "subprocess", SimpleNamespace(run=absent, SubprocessError=SubprocessError))
    usage = usage_of(binary)
    assert usage == Usage(usage.shared_bytes)
    assert usage.objection(SHARED) == ""
