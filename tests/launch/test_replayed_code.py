"""Eager calls made again: the code that they launch is still loaded, and is what Triton would launch."""

from __future__ import annotations

import gc
import inspect
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from unittest import mock

import pytest
import torch
import triton
from recording_driver import KERNELS, Launch, plans, pooled, recorded_launches, weight
from torch import Tensor

from eca_triton.launch import replay as direct

OPS = torch.ops.eca_triton


@pytest.fixture
def launches() -> Iterator[list[Launch]]:
    with recorded_launches([0]) as launches, torch.no_grad():
        yield launches


def test_of_two_threads_that_compile_at_once_both_launch_loaded_code(launches: list[Launch]) -> None:
    """Triton's cache keeps the kernel of one, and the other one's dies unless a plan keeps it."""

    def call(x: Tensor) -> None:
        with torch.no_grad():
            OPS.gate_from_pool(x, w)

    def wait(**_: object) -> None:
        both.wait()

    w, xs, both = weight(), [pooled(2, 8), pooled(4, 8)], Barrier(2)
    with (
        mock.patch.object(triton.knobs.runtime, "jit_cache_hook", wait),  # before compilation
        ThreadPoolExecutor(2) as threads,
    ):
        list(threads.map(call, xs))
    gc.collect()
    assert len({launch.function for launch in launches}) == len(launches) == 2
    for x in xs:
        call(x)
    assert {launch.function for launch in launches[2:]} == {launch.function for launch in launches[:2]}


def test_code_stays_loaded_for_plans_and_captured_graphs_whatever_caches_forget(
    launches: list[Launch],
) -> None:
    arguments, unload = (pooled(), weight()), mock.Mock()
    with mock.patch.object(triton.runtime.driver.active.utils, "unload_module", unload):
        OPS.gate_from_pool(*arguments)
        for kernel in KERNELS:
            kernel.device_caches.clear()
        gc.collect()
        OPS.gate_from_pool(*arguments)
        assert launches[0].function == launches[1].function
        direct.forget_plans()
        gc.collect()
        unload.assert_not_called()


KNOBS = {  # of Triton, by which it compiles other code
    "debug": ("runtime", True),
    "add_stages_inspection_hook": ("runtime", lambda *_: ("key", "hash")),
    "instrumentation_mode": ("compilation", "consan"),
}


@pytest.mark.parametrize("knob", KNOBS)
def test_plans_of_other_code_are_neither_launched_nor_made(launches: list[Launch], knob: str) -> None:
    """What is compiled while a knob is set is for it alone, and what was compiled before is not for it."""

    def called() -> int:
        OPS.gate_from_pool(*arguments)
        return launches[-1].function

    (group, value), arguments = KNOBS[knob], (pooled(), weight())
    if f"knobs.{group}.{knob}" not in inspect.getsource(triton.runtime.jit.JITFunction.run):
        pytest.skip("this Triton does not ask for it at a launch")
    knobs = getattr(triton.knobs, group)
    with mock.patch.object(knobs, knob, value):
        other = called()
        assert called() == other
    assert plans() == 0
    plain = called()
    assert called() == plain != other
    assert plans() == 1
    with mock.patch.object(knobs, knob, value):
        assert called() == other
    assert called() == plain


def test_a_triton_that_asks_for_another_knob_launches_kernels_itself(launches: list[Launch]) -> None:
    known = direct._KNOBS - {"runtime.debug"}
    direct._triton_launches_as_we_do.cache_clear()
    with mock.patch.object(direct, "_KNOBS", known):
        OPS.gate_from_pool(pooled(), weight())
    direct._triton_launches_as_we_do.cache_clear()
    assert plans() == 0
