"""Kernels compiled before they are launched, in parallel: what their code takes says which cannot be fast.

Triton compiles as for a launch, so that the launch finds the code. Candidates whose values spill, or that ask
for more shared memory than a block may have, are not worth the launch.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

from ..launch.replay import launching


class Launch(NamedTuple):
    """A launch that was not made: kernel[grid](*args, **options)."""

    kernel: Any
    grid: tuple[int, ...]
    args: tuple[object, ...]
    options: Mapping[str, object]


@dataclass(frozen=True)
class Usage:
    """Resources that compiled code takes.

    Attributes:
        shared_bytes: Of shared memory, per program.
        registers: Per thread; None where no tool can tell.
        spilled_bytes: Of registers, per thread; None where no tool can tell.
    """

    shared_bytes: int
    registers: int | None = None
    spilled_bytes: int | None = None

    def objection(self, shared_limit: int) -> str:
        """Return why a launch is not worth trying, or ""."""
        if self.shared_bytes > shared_limit:
            return f"needs {self.shared_bytes} bytes of shared memory, and a block may have {shared_limit}"
        if self.spilled_bytes:
            return f"spills {self.spilled_bytes} bytes of registers"
        return ""


def launches_of(function: Callable[[], object]) -> list[Launch]:
    """The launches that a function would make, for tensors on the meta device; none of them is made."""
    launches: list[Launch] = []
    with launching(lambda *launch: launches.append(Launch(*launch))):
        function()
    return launches


def compiled(launches: Sequence[Launch], workers: int | None = None) -> list[Any]:
    """Triton's compiled kernel of each launch, or the error that its compilation ended with.

    workers: threads, beside Python in Triton's passes and in ptxas; by default one per core.
    """
    import triton

    with (
        ThreadPoolExecutor(workers or os.cpu_count()) as pool,
        triton.AsyncCompileMode(pool, ignore_errors=True),
    ):
        handles = [_outcome(lambda launch=launch: _begun(launch)) for launch in launches]  # type: ignore[misc]
        # Here, for at its end the mode drops the errors.
        return [_outcome(handle.result) if hasattr(handle, "result") else handle for handle in handles]


def _begun(launch: Launch) -> Any:
    return launch.kernel.warmup(*launch.args, grid=launch.grid, **launch.options)


def _outcome(function: Callable[[], Any]) -> Any:
    """Return what the function returns or raises; a compiler's errors are of no common class."""
    try:
        return function()
    except Exception as error:
        return error


def usage_of(binary: Any) -> Usage:
    """Return what compiled code takes; registers and spills for NVIDIA GPUs, by a tool in Triton's wheel."""
    shared = int(binary.metadata.shared)
    code = binary.asm.get("cubin")
    if code is None:
        return Usage(shared)
    import triton

    try:
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(code)
            file.flush()
            command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
            text = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
    except (OSError, RuntimeError, subprocess.SubprocessError):
        return Usage(shared)
    found = [re.search(rf"\b{name}:(\d+)", text) for name in ("REG", "STACK", "LOCAL")]
    if None in found:
        return Usage(shared)
    registers, stack, local = (int(match[1]) for match in found if match)
    return Usage(shared, registers, stack + local)


def objections(functions: Sequence[Callable[[], object]], shared_limit: int) -> list[str]:
    """For each function, which launches, why its launches are not worth trying, or "".

    Args:
        functions: Given tensors on the meta device.
        shared_limit: Bytes of shared memory that a block may have.
    """
    launches = [
        (index, launch) for index, function in enumerate(functions) for launch in launches_of(function)
    ]
    binaries = compiled([launch for _, launch in launches])
    said = {id(binary): _objection(binary, shared_limit) for binary in {id(b): b for b in binaries}.values()}
    found = [""] * len(functions)
    for (index, _), binary in zip(launches, binaries, strict=True):
        found[index] = found[index] or said[id(binary)]
    return found


def _objection(binary: Any, shared_limit: int) -> str:
    """To a compiled kernel, or the error that it ended with."""
    if isinstance(binary, Exception):
        lines = str(binary).strip().splitlines() or [""]
        return f"does not compile: {type(binary).__name__}: {lines[-1][:200]}"
    return usage_of(binary).objection(shared_limit)
