"""Kernels compiled before they are launched, in parallel, for a GPU that need not be there.

What a launch would compile is compiled: on the GPU's machine its launch finds the code in Triton's cache. The
code says which candidates cannot be fast: those whose values spill, or that ask for more shared memory than
a block may have.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..direct import launching

_TYPES = {
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.int32: "*i32",
    torch.uint8: "*u8",
}
_OPTIONS = ("num_warps", "maxnreg")  # of the compiler; every other keyword is the kernel's


@dataclass(frozen=True)
class Launch:
    """A launch that was not made.

    Attributes:
        kernel: Triton's function.
        grid: Programs.
        arguments: By name.
        options: Of the compiler.
    """

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, object]
    options: dict[str, Any]


@dataclass(frozen=True)
class Usage:
    """What compiled code takes.

    Attributes:
        shared_bytes: Of shared memory, per program.
        registers: Per thread; None where no tool can tell.
        spilled_bytes: Of registers, per thread; None where no tool can tell.
    """

    shared_bytes: int
    registers: int | None = None
    spilled_bytes: int | None = None

    def objection(self, shared_limit: int) -> str:
        """Why a launch is not worth trying, or ""."""
        if self.shared_bytes > shared_limit:
            return f"needs {self.shared_bytes} bytes of shared memory, and a block may have {shared_limit}"
        if self.spilled_bytes:
            return f"spills {self.spilled_bytes} bytes of registers"
        return ""


def launches_of(function: Callable[..., object], *args: object) -> list[Launch]:
    """The launches that a launcher makes for tensors on the meta device; none of them is made."""
    launches: list[Launch] = []

    def note(kernel: Any, grid: tuple[int, ...], given: tuple[object, ...], named: Any) -> None:
        options = {"num_warps": 4} | {name: named[name] for name in _OPTIONS if name in named}
        arguments = dict(zip(kernel.arg_names, given, strict=False))
        arguments |= {name: value for name, value in named.items() if name not in _OPTIONS}
        launches.append(Launch(kernel, grid, arguments, options))

    with launching(note):
        function(*args)
    return launches


def compile_ahead(launch: Launch, target: Any) -> Any:
    """Triton's compiled kernel for its target, as the launch would have it made.

    1 is a constant there, multiples of 16 are known, and so is that whole allocations are aligned.
    """
    import triton
    from triton.compiler import ASTSource

    signature: dict[str, str] = {}
    constants: dict[tuple[int, ...], object] = {}
    attributes: dict[tuple[int, ...], list[list[object]]] = {}
    kernel = launch.kernel
    for index, (parameter, name) in enumerate(zip(kernel.params, kernel.arg_names, strict=True)):
        value = launch.arguments[name]
        if parameter.is_constexpr or value is None or (type(value) is int and value == 1):
            signature[name] = "constexpr"
            constants[(index,)] = value
            continue
        if isinstance(value, Tensor):
            signature[name] = _TYPES[value.dtype]
        elif isinstance(value, float):
            signature[name] = "fp32"
        else:
            assert isinstance(value, int), f"{name} is {value!r}"
            signature[name] = "i32" if -(2**31) <= value < 2**31 else "i64"
        if isinstance(value, Tensor) or (type(value) is int and value % 16 == 0):
            attributes[(index,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constants, attributes)
    return triton.compile(source, target=target, options=launch.options)


def usage_of(binary: Any) -> Usage:
    """What a compiled kernel takes; registers and spills for NVIDIA GPUs, by a tool in Triton's wheel."""
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


def objections(
    functions: Sequence[Callable[[], object]], target: Any, shared_limit: int, workers: int | None = None
) -> list[str]:
    """For each function, which launches, why its launches are not worth trying, or "".

    Args:
        functions: Given tensors on the meta device.
        target: Triton's.
        shared_limit: Bytes of shared memory that a block may have.
        workers: Threads; Triton's passes and ptxas run beside Python. By default one per core.
    """

    def objection(function: Callable[[], object]) -> str:
        try:
            for launch in launches_of(function):
                found = usage_of(compile_ahead(launch, target)).objection(shared_limit)
                if found:
                    return found
        except Exception as error:  # a compiler's errors are of no common class
            return f"does not compile: {type(error).__name__}: {str(error).strip().splitlines()[:1]}"
        return ""

    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        return list(pool.map(objection, functions))
