"""Eager calls made again: seen by whoever is to see them, sent where they belong, given up where needed.

And the code that they launch is still loaded, and is what Triton would launch.
"""

from __future__ import annotations

import gc
import inspect
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from types import FrameType
from unittest import mock

import pytest
import torch
import triton
from recording_driver import KERNELS, Launch, plans, pooled, recorded_launches, weight
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import eca_triton
from eca_triton.launch import replay as direct

OPS = torch.ops.eca_triton
X, W, POOLED = torch.randn(2, 8, 4, 4), weight(), pooled()
BOTH = pytest.mark.parametrize("function", [eca_triton.eca, OPS.eca], ids=["function", "operator"])


# Whoever is to see the operator, sees it.


def test_hooks_see_every_launch(launches: list[Launch]) -> None:
    from triton import knobs

    seen: list[object] = []
    kernel = next(kernel for kernel in KERNELS if kernel.fn.__name__ == "gate_kernel")

    def enter(metadata: object) -> None:
        seen.append(metadata.get()["name"])

    def before(*args: object, **kwargs: object) -> None:
        seen.append("before")

    OPS.gate_from_pool(POOLED, W)
    for chain in (knobs.runtime.launch_enter_hook, knobs.runtime.launch_exit_hook):
        chain.add(enter)
        OPS.gate_from_pool(POOLED, W)
        chain.remove(enter)
    kernel.add_pre_run_hook(before)
    OPS.gate_from_pool(POOLED, W)
    kernel.pre_run_hooks.clear()
    with mock.patch.object(knobs.runtime, "launch_enter_hook", enter):  # a function instead of the list
        OPS.gate_from_pool(POOLED, W)
    OPS.gate_from_pool(POOLED, W)
    assert seen == ["gate_kernel", "gate_kernel", "before", "gate_kernel"]
    assert len(launches) == 6


def test_modes_tracers_and_profilers_see_the_operator(launches: list[Launch]) -> None:
    class Names(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            names.append(str(func))
            return func(*args, **(kwargs or {}))

    class Calls(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            called.append(func)
            return func(*args, **(kwargs or {}))

    names: list[str] = []
    called: list[object] = []
    for function in (eca_triton.eca, OPS.eca):
        function(X, W)
        with Calls():
            function(X, W)
        assert any("eca_triton.eca" in str(func) for func in called)
        called.clear()
        assert "eca_triton::eca" in str(torch.jit.trace(function, (X, W), check_trace=False).graph)
        with Names():
            function(X, W)
        with torch.profiler.profile() as profiler:
            function(X, W)
        assert "eca_triton::eca" in {event.name for event in profiler.events()}
    assert names == ["eca_triton.eca.default"] * 2


def test_derivatives_and_transforms_are_not_cut_short(launches: list[Launch]) -> None:
    eca_triton.eca(X, W)
    launches.clear()
    with torch.enable_grad():
        assert eca_triton.eca(X, W.clone().requires_grad_()).requires_grad
        assert OPS.eca(X.clone().requires_grad_(), W).requires_grad
    assert torch.func.vmap(eca_triton.eca, (0, None))(X[None], W).shape == (1, 2, 8, 4, 4)
    _, tangent = torch.func.jvp(lambda x: eca_triton.eca(x, W), (X,), (X,))
    assert tangent.shape == X.shape


class Subclass(torch.Tensor):
    pass


@BOTH
def test_tensors_that_kernels_do_not_see_as_they_are(
    launches: list[Launch], function: Callable[..., Tensor]
) -> None:
    function(X, W)
    assert type(function(X.as_subclass(Subclass), W)) is Subclass
    lazily = torch._neg_view(X)
    assert lazily.is_neg()
    launches.clear()
    function(lazily, W)
    assert lazily.data_ptr() not in launches[0].arguments  # but a copy that holds the negative values


def test_dynamo_leaves_the_operator_alone_where_a_graph_is_broken(launches: list[Launch]) -> None:
    def broken(x: Tensor) -> Tensor:
        for _ in range(2):
            torch._dynamo.graph_break()  # in a loop: none of this function is compiled
        return OPS.eca(x, W)

    broken(X)
    launches.clear()
    torch.compile(broken, backend="eager")(X)
    assert len(launches) == 1


def test_one_tensor_in_two_places_is_not_taken_for_two(launches: list[Launch]) -> None:
    other = torch.randn(2, 8, 4, 4)
    OPS.eca(X, W, residual=X)
    launches.clear()
    OPS.eca(X, W, residual=other)
    assert X.data_ptr() in launches[0].arguments
    assert other.data_ptr() in launches[0].arguments


# Where launches go.


def test_the_stream_is_asked_for_at_every_call() -> None:
    stream = [1]
    with recorded_launches(stream) as launches, torch.no_grad():
        OPS.gate_from_pool(POOLED, W)
        stream.append(2)
        OPS.gate_from_pool(POOLED, W)
    assert [launch.stream for launch in launches] == [1, 2]


def test_the_device_of_the_first_call_is_entered_where_another_is_current(launches: list[Launch]) -> None:
    driver = triton.runtime.driver.active
    current = [0]
    with mock.patch.object(driver, "get_current_device", side_effect=lambda: current[-1]):
        OPS.gate_from_pool(POOLED, W)

        def enter(device: int) -> mock.MagicMock:
            context = mock.MagicMock()
            context.__enter__.side_effect = lambda: current.append(device)
            context.__exit__.side_effect = lambda *error: current.pop() and None
            return context

        current[:] = [1]
        with mock.patch.object(torch.cuda, "device", side_effect=enter) as device:
            OPS.gate_from_pool(POOLED, W)
    device.assert_called_once_with(0)
    assert current == [1]
    assert len(launches) == 2


def test_threads_may_call_at_once(launches: list[Launch]) -> None:
    def calls(seed: int) -> None:
        with torch.no_grad():
            for n in range(1, 40):
                OPS.gate_from_pool(pooled(1 + (n + seed) % 4, 8), W)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(calls, range(4)))
    assert len(launches) == 4 * 39
    assert plans() == 4


# What stands in the way.


def other_order(kernel, grid):
    return lambda *args, stream: kernel.run(stream, *grid, kernel.function, *args)


@pytest.mark.parametrize(
    ("owner", "name", "other"),
    [
        (triton.compiler.CompiledKernel, "__getitem__", other_order),
        (direct, "_KNOBS", direct._KNOBS - {"runtime.debug"}),
    ],
    ids=["hands kernels over differently", "asks for another knob"],
)
def test_another_triton_launches_kernels_itself(
    launches: list[Launch], owner: object, name: str, other: object
) -> None:
    direct._triton_launches_as_we_do.cache_clear()
    with mock.patch.object(owner, name, other):
        for _ in range(2):
            OPS.gate_from_pool(POOLED, W)
    direct._triton_launches_as_we_do.cache_clear()
    assert plans() == 0
    assert len(launches) == 2


def test_copies_that_the_launcher_makes_are_not_launched_again(launches: list[Launch]) -> None:
    mean = torch.randn(16)[::2]
    for _ in range(2):
        OPS.eca(X, W, bn_mean=mean, bn_var=torch.ones(8))
    assert plans() == 0
    assert len(launches) == 2


@BOTH
def test_a_repeated_call_runs_a_handful_of_functions(
    launches: list[Launch], function: Callable[..., Tensor]
) -> None:
    """Counted, since time on a busy machine says nothing; `make bench` holds the microseconds."""

    def ours() -> int:
        names: list[str] = []

        def note(frame: FrameType, event: str, argument: object) -> None:
            if event == "call" and package in Path(frame.f_code.co_filename).parents:
                names.append(frame.f_code.co_name)

        sys.setprofile(note)
        function(X, W)
        sys.setprofile(None)
        return len(names)

    package = Path(eca_triton.__file__).parent
    assert ours() > 30
    assert ours() <= 10


# Which code.


def test_of_two_threads_that_compile_at_once_both_launch_loaded_code(launches: list[Launch]) -> None:
    """Triton's cache keeps the kernel of one, and the other one's dies unless a plan keeps it."""

    def call(x: Tensor) -> None:
        with torch.no_grad():
            OPS.gate_from_pool(x, W)

    def wait(**_: object) -> None:
        both.wait()

    xs, both = [pooled(2, 8), pooled(4, 8)], Barrier(2)
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
    unload = mock.Mock()
    with mock.patch.object(triton.runtime.driver.active.utils, "unload_module", unload):
        OPS.gate_from_pool(POOLED, W)
        for kernel in KERNELS:
            kernel.device_caches.clear()
        gc.collect()
        OPS.gate_from_pool(POOLED, W)
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
        OPS.gate_from_pool(POOLED, W)
        return launches[-1].function

    group, value = KNOBS[knob]
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
