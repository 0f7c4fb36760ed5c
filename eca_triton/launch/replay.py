"""Eager calls made again: what the first one decided, compiled and launched, launched with new pointers.

`launch` says what a call launches. When it does so for the first time, the scratch, kernels, grids and
arguments that pass through `run` and `scratch` are noted as a plan, under a key of all that they depend on.
The same call later is a look-up, its allocations and its launches. Where anything stands in the way (Triton's
interpreter, a profiler's hook, a knob by which Triton compiles other code, a Triton with other internals),
every call is launched as the first one.
"""

from __future__ import annotations

import inspect
import re
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..util.private import number_of_dispatch_modes

MAX_PLANS = 1024  # of an operator, at about 2 kB. A network has dozens; shapes without end gain nothing
ALIGNMENT = 16  # bytes; for pointers that are not multiples of it Triton compiles a kernel of its own
_PLAIN = frozenset({Tensor, torch.nn.Parameter})
_KNOBS = {
    "runtime.launch_enter_hook",
    "runtime.launch_exit_hook",
    "runtime.debug",
    "runtime.add_stages_inspection_hook",
    "compilation.instrumentation_mode",
    "compilation.fpsan_homomorphic_casts",  # of a mode of instrumentation
}
"""What Triton asks for at every launch, as far as we know it: `_interfered` asks the same."""
_planned: set[Any] = set()
"""The compiled kernels of all plans there ever were. A kernel that dies unloads its code, which is then gone
for a plan and for a graph that captured it. Triton's cache drops one of two that threads compiled at once."""
_all_calls: weakref.WeakSet[Calls] = weakref.WeakSet()

Tensors = Sequence[Tensor | None]
Options = Mapping[str, object]
Make = Callable[[], Tensor]
Plan = Callable[[list[int]], Any]
Instead = Callable[[Any, tuple[int, ...], tuple[object, ...], Options], None]


class Calls:
    """The calls of one operator that were launched before.

    Every access is one operation of a dict, so threads need no lock: at worst two make the same plan.
    """

    def __init__(self) -> None:
        self.plans: dict[tuple[object, ...], Plan] = {}
        _all_calls.add(self)

    def again(self, tensors: Tensors, options: Options) -> Any:
        """Launches a call like an earlier one: its output (a tuple of several), or None if there is none.

        `options` holds only what differs from the defaults, in the order of the schema.
        """
        if not self.plans or number_of_dispatch_modes():
            return None
        key, pointers = _key(tensors, options)
        plan = self.plans.get(key)
        return None if plan is None else plan(pointers)

    @contextmanager
    def first(self, tensors: Tensors, options: Options, outputs: tuple[Tensor, ...]) -> Iterator[None]:
        """Within it the call is launched by `run`, and noted for `again`."""
        key, pointers = _key(tensors, options)
        if not key or not _triton_launches_as_we_do() or _interfered(sys.modules["triton"].knobs):
            yield
            return
        recording, plans = _Recording(pointers, outputs), self.plans
        _current.recording = recording
        try:
            yield
        finally:
            _current.recording = None
        if recording.complete:
            if len(plans) >= MAX_PLANS:
                plans.clear()  # what is still in use comes back with its next call
            plans[key] = recording.plan()


def forget_plans() -> None:
    """Every call is launched as a first one again; one that is under way makes no plan that stays."""
    for calls in list(_all_calls):
        calls.plans = {}


def run(kernel: Any, grid: tuple[int, ...], *args: object, **options: object) -> None:
    """kernel[grid](*args, **options).

    Multiply-adds are fused, as in Inductor's own kernels, whatever Triton's default is (3.10 changes it).
    """
    options.setdefault("enable_fp_fusion", True)
    if _current.instead is not None:
        _current.instead(kernel, grid, args, options)
        return
    compiled = kernel[grid](*args, **options)
    if _current.recording is not None:
        _current.recording.note(kernel, compiled, grid, args, options)


@contextmanager
def launching(instead: Instead) -> Iterator[None]:
    """Within it this thread's `run` hands every launch to `instead`, and nothing is launched."""
    _current.instead = instead
    try:
        yield
    finally:
        _current.instead = None


def scratch(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, zeroed: bool = False) -> Tensor:
    """A tensor for the launches of this one call."""
    make = partial(torch.zeros if zeroed else torch.empty, shape, dtype=dtype, device=device)
    tensor = make()
    if _current.recording is not None:
        _current.recording.add(tensor, make if zeroed else _maker_of_empty(tensor))
    return tensor


def _key(tensors: Tensors, options: Options) -> tuple[tuple[object, ...], list[int]]:
    """All that checks, choice, allocation and compilation depend on, and the pointers of the tensors.

    The key of no plan, (), where a tensor is not what a kernel sees: of a subclass, or without memory.
    """
    key: list[object] = []
    pointers: list[int] = []
    try:
        for index, tensor in enumerate(tensors):
            if tensor is None:
                continue
            if type(tensor) not in _PLAIN or not (pointer := tensor.data_ptr()):
                return (), pointers
            pointers.append(pointer)
            key += (
                index, tensor.shape, tensor.stride(), tensor.dtype, tensor.device, tensor.is_neg(),
                pointer % ALIGNMENT,
            )  # fmt: skip
    except RuntimeError:  # no strides, no storage
        return (), pointers
    if options:
        # 0.0 equals -0.0, but their texts differ.
        key += [(name, value or str(value)) for name, value in options.items()]
    return tuple(key), pointers


class _Launch(NamedTuple):
    """Arguments of a launch of a compiled kernel.

    places: pairs of a position in `arguments` and the index of the pointer that belongs there.
    """

    run: Callable[..., None]
    grid_x: int
    grid_y: int
    grid_z: int
    function: object
    metadata: object
    arguments: list[object]
    places: list[tuple[int, int]]


class _Recording:
    """The launches of one call as they happen.

    Pointers are those of its tensors, then of its outputs, then of its scratch; a value says whose it is.
    """

    def __init__(self, pointers: list[int], outputs: tuple[Tensor, ...]) -> None:
        self.complete = len(set(pointers)) == len(pointers)
        self.pointers = pointers.copy()
        self.outputs = len(outputs)
        self.tensors: list[Tensor] = []  # kept, so that no two have the same pointer
        self.makes: list[Make] = []
        self.launches: list[_Launch] = []
        self.hooks: list[list[object]] = []
        self.device = 0
        for tensor in outputs:
            self.add(tensor, _maker_of_empty(tensor))

    def add(self, tensor: Tensor, make: Make) -> None:
        """Another tensor of the call, and how to make one like it."""
        self.pointers.append(tensor.data_ptr())
        self.tensors.append(tensor)
        self.makes.append(make)

    def note(
        self, kernel: Any, compiled: Any, grid: tuple[int, ...], args: tuple[object, ...], options: Options
    ) -> None:
        """A launch. No plan is made where a tensor is a copy of the launcher's, or nothing was compiled."""
        import triton

        named = {**dict(zip(kernel.arg_names, args, strict=False)), **options}
        arguments = [named[name] for name in kernel.arg_names]
        tensors = {i: value.data_ptr() for i, value in enumerate(arguments) if isinstance(value, Tensor)}
        known = set(self.pointers).issuperset(tensors.values())
        if not known or not isinstance(compiled, triton.compiler.CompiledKernel):
            self.complete = False
            return
        x, y, z = (*grid, 1, 1)[:3]
        places = [(i, self.pointers.index(pointer)) for i, pointer in tensors.items()]
        arguments = [None if i in tensors else value for i, value in enumerate(arguments)]
        _planned.add(compiled)
        handles = compiled.function, compiled.packed_metadata
        self.launches.append(_Launch(compiled.run, x, y, z, *handles, arguments, places))
        self.hooks.append(kernel.pre_run_hooks)
        self.device = triton.runtime.driver.active.get_current_device()

    def plan(self) -> Plan:
        """Return what launches the call for other pointers of its tensors, and returns its outputs.

        Or None if somebody is to see launches as Triton makes them, or wants other code.
        """
        import triton

        # Names of a closure: attributes of an object would take half a microsecond more.
        driver = triton.runtime.driver.active
        current_device, current_stream = driver.get_current_device, driver.get_current_stream
        device, makes, launches, outputs = self.device, self.makes, self.launches, self.outputs
        knobs, hooks = triton.knobs, self.hooks

        def plan(pointers: list[int]) -> Any:
            if any(hooks) or _interfered(knobs):
                return None
            if current_device() != device:
                with torch.cuda.device(device):
                    return plan(pointers)
            tensors = []
            for make in makes:
                tensor = make()
                tensors.append(tensor)
                pointers.append(tensor.data_ptr())
            stream = current_stream(device)
            for run, x, y, z, function, metadata, constants, places in launches:
                arguments = constants.copy()
                for position, index in places:
                    arguments[position] = pointers[index]
                run(x, y, z, stream, function, metadata, None, None, None, *arguments)
            return tensors[0] if outputs == 1 else tuple(tensors[:outputs])

        return plan


class _Current(threading.local):
    recording: _Recording | None = None
    instead: Instead | None = None


_current = _Current()


def _maker_of_empty(tensor: Tensor) -> Make:
    """Makes tensors of its size, strides, dtype and device, uninitialised."""
    size, stride, dtype, device = tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.device
    # What Inductor's code allocates with: half the time of torch.empty_strided, which asks the dispatcher.
    quick = getattr(torch._C._dynamo.guards, f"_empty_strided_{device.type}", None)
    if quick is not None:
        return partial(quick, size, stride, dtype)
    return partial(torch.empty_strided, size, stride, dtype=dtype, device=device)


def _interfered(knobs: Any) -> bool:
    """Asks Triton's knobs whether somebody is to see launches, or wants other code than a plan launches."""
    runtime = knobs.runtime
    try:
        return bool(
            runtime.launch_enter_hook.calls
            or runtime.launch_exit_hook.calls
            or runtime.debug
            or runtime.add_stages_inspection_hook is not None
            or knobs.compilation.instrumentation_mode
        )
    except AttributeError:  # a function in place of Triton's list, or a Triton without such a knob
        return True


@cache
def _triton_launches_as_we_do() -> bool:
    """Return whether a plan knows how this Triton hands compiled kernels to its driver.

    Its way to launch is tried on a stand-in, which tells what it was handed; knobs are read from its source.
    """
    handed: list[tuple[object, ...]] = []
    kernel = SimpleNamespace(
        run=lambda *args: handed.append(args),
        function="function",
        packed_metadata="metadata",
        launch_metadata=lambda *args: "launch metadata",
        _init_handles=lambda: None,
    )
    try:
        import triton

        triton.compiler.CompiledKernel.__getitem__(kernel, (1, 2, 3))("pointer", 4, stream="stream")
        runtime = triton.knobs.runtime
        hooks = runtime.launch_enter_hook, runtime.launch_exit_hook
        expected = (1, 2, 3, "stream", "function", "metadata", "launch metadata", *hooks, "pointer", 4)
        asked = set(re.findall(r"\bknobs\.(\w+\.\w+)", inspect.getsource(triton.runtime.jit.JITFunction.run)))
        return handed == [expected] and "runtime.debug" in asked and asked <= _KNOBS
    except (ImportError, AttributeError, TypeError, OSError):
        return False
