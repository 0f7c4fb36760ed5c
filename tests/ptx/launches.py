"""Every launch compiled for a GPU that is not there, and its PTX run on the CPU's tensors."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any
from unittest import mock

import numpy as np
import torch
from aot import Launch, built
from triton.runtime.jit import JITFunction

from eca_triton.launch import devices, replay
from eca_triton.ops import implementation

from .machine import Machine
from .memory import LANES, SAME, Memory
from .program import Program, parse

Change = Callable[[str], str]


@dataclass
class Run:
    """How launches are run, and what came of it.

    Attributes:
        target: One of `aot.TARGETS`.
        seed: Of the interleaving and, with `shuffled`, of the order in which programs start.
        shuffled: Programs start in an order of the seed's, not in their own.
        weak: As of `Machine`.
        resident: Programs that run at once.
        change: What is done to the PTX: a fault that must be noticed.
        launched: Names of the kernels, in order.
        reports: What was noticed, how often.
        scratch: Tensors that nobody zeroed, by address, and which of their bytes a launch has written.
    """

    target: str = "sm_90"
    seed: int = 0
    shuffled: bool = False
    weak: bool = False
    resident: int = 8
    change: Change | None = None
    launched: list[str] = field(default_factory=list)
    reports: Counter[str] = field(default_factory=Counter)
    scratch: dict[int, tuple[torch.Tensor, Any]] = field(default_factory=dict)

    @property
    def faults(self) -> list[str]:
        """What was noticed and is wrong.

        Not so, as docs/evidence.md has it:

        - stores of the value that is there;
        - lanes that hold the same sum, each rounded in its own order, and store it in one place.
        """
        return sorted(each for each in self.reports if SAME not in each and LANES not in each)

    def __call__(self, kernel: Any, grid: tuple[int, ...], args: Any, options: Any) -> None:
        """Run one launch, in place of Triton."""
        named = dict(zip(kernel.arg_names, args, strict=False)) | dict(options)
        compile_options = {name: named.pop(name) for name in set(named) - set(kernel.arg_names)}
        item = Launch(kernel, named, {"num_warps": 4} | compile_options, grid, self.target)
        text, shared_bytes = code_of(item)
        program = parsed(self.change(text) if self.change else text)
        memory = Memory(grid[0] * program.threads // 32)
        params, placed = self._place(item, memory)
        machine = Machine(
            program, grid[0], params, memory, shared_bytes=shared_bytes, seed=self.seed,
            resident=self.resident, weak=self.weak,
        )  # fmt: skip
        order = list(range(grid[0]))
        if self.shuffled:
            random.Random(self.seed).shuffle(order)
        machine.run(order)
        for start, raw, buffer in placed:
            raw[:] = buffer.data
            if start in self.scratch:
                self.scratch[start] = self.scratch[start][0], buffer.defined
        self.launched.append(kernel.__name__)
        self.reports += memory.reports

    def _place(self, item: Launch, memory: Memory) -> tuple[list[int], list[tuple[int, Any, Any]]]:
        """The bits of the kernel's parameters, and the memory of its tensors with what stands for it."""
        bases: dict[int, int] = {}
        params, placed = [], []
        for parameter, name in zip(item.kernel.params, item.kernel.arg_names, strict=True):
            value: Any = item.arguments[name]
            if parameter.is_constexpr or value is None or (type(value) is int and value == 1):
                continue
            if isinstance(value, torch.Tensor):
                storage = value.untyped_storage()
                start = storage.data_ptr()
                if start not in bases:
                    raw = torch.empty(0, dtype=torch.uint8).set_(storage).numpy()
                    buffer = memory.add(name, raw, start % 16, value.element_size())
                    if start in self.scratch:
                        buffer.defined[:] = self.scratch[start][1]
                    bases[start] = buffer.base
                    placed.append((start, raw, buffer))
                params.append(bases[start] + value.data_ptr() - start)
            elif isinstance(value, float):
                params.append(int(np.float32(value).view(np.uint32)))
            else:
                params.append(value % (1 << (32 if -(2**31) <= value < 2**31 else 64)))
        return [*params, 0, 0], placed  # Triton's own: global and profiler scratch


@cache
def parsed(text: str) -> Program:
    """The kernel of a text."""
    return parse(text)


_built: dict[str, tuple[str, int]] = {}


def code_of(item: Launch) -> tuple[str, int]:
    """The PTX of a launch, and the bytes of shared memory of its programs."""
    key = repr(
        [
            (name, (value.dtype, value.data_ptr() % 16 == 0) if isinstance(value, torch.Tensor) else value)
            for name, value in item.arguments.items()
        ]
        + [item.kernel.__name__, sorted(item.options.items()), item.target]
    )
    if key not in _built:
        binary = built(item)
        _built[key] = binary.asm["ptx"], binary.metadata.shared
    return _built[key]


@contextmanager
def on_ptx(**how: Any) -> Iterator[Run]:
    """Within it, launches of this thread run as PTX; scratch that nobody zeroes counts as unwritten.

    how: fields of `Run`.
    """
    run, empty = Run(**how), torch.empty

    def unwritten(*args: Any, **kwargs: Any) -> torch.Tensor:
        tensor = empty(*args, **kwargs)
        if tensor.numel():
            tensor.fill_(float("nan") if tensor.is_floating_point() else 77)
            size = tensor.untyped_storage().nbytes()
            run.scratch[tensor.data_ptr()] = tensor, np.zeros(size, bool)
        return tensor

    def launched(kernel: Any, *args: Any, grid: tuple[int, ...], warmup: bool, **options: Any) -> None:
        run(kernel, grid, args, options)

    with (
        replay.launching(run),
        mock.patch.object(JITFunction, "run", launched),
        mock.patch.object(replay, "_triton_launches_as_we_do", return_value=False),  # nothing is made again
        mock.patch.object(torch, "empty", unwritten),
        mock.patch.object(implementation, "have_kernels", devices.supports),
    ):
        yield run
