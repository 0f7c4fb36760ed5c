"""Compile what the launcher would launch, for GPUs that are not there, and read the machine code."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from eca_triton.launch import devices
from eca_triton.tuning.config import Device

TARGETS = {  # of Triton's compiler
    "sm_75": GPUTarget("cuda", 75, 32),
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
    "gfx1100": GPUTarget("hip", "gfx1100", 32),
}

DEVICES = {  # of the heuristics
    "sm_75": Device(num_sms=40, warp_size=32, capability="7.5", shared_bytes=64 << 10),
    "sm_80": Device(num_sms=108, warp_size=32, capability="8.0", shared_bytes=163 << 10),
    "sm_90": Device(num_sms=132, warp_size=32, capability="9.0", shared_bytes=227 << 10),
    "sm_100": Device(num_sms=148, warp_size=32, capability="10.0", shared_bytes=227 << 10),
    "gfx942": Device(num_sms=304, warp_size=64, capability="9.4", shared_bytes=64 << 10, vendor="amd"),
    "gfx1100": Device(num_sms=96, warp_size=32, capability="11.0", shared_bytes=64 << 10, vendor="amd"),
}

OPTIONS = ("num_warps", "num_stages", "maxnreg", "enable_fp_fusion")
_TYPES = {
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.int32: "*i32",
    torch.uint8: "*u8",
}


VERSION = ".".join(triton.__version__.split(".")[:2])
DEARER = {  # (Triton, kernel): registers, and bytes put away, of code that takes a little more on sm_90
    ("3.7", "batch_statistics_kernel"): (138, 0),
    ("3.7", "gate_backward_kernel"): (0, 8),
    ("3.7", "tile_channels_last_backward_kernel"): (0, 8),
    ("3.9", "gate_backward_kernel"): (136, 0),
    ("3.9", "projection_kernel"): (0, 8),
}


@dataclass(frozen=True)
class Launch:
    """One captured kernel launch: argument name -> value, as the launcher passed it."""

    kernel: JITFunction
    arguments: dict[str, object]
    options: dict[str, int]  # of the compiler: OPTIONS
    grid: tuple[int, ...]
    target: str

    @property
    def num_warps(self) -> int:
        return self.options["num_warps"]


@dataclass(frozen=True)
class Code:
    """What the compiler made of a launch."""

    registers: int
    spilled_bytes: int
    shared_bytes: int
    loads: dict[int, int]  # global loads in the code, by width in bits
    stores: dict[int, int]
    instructions: int | None = None  # of one thread; None if the code loops, or is not NVIDIA's


def captured(target: str, function: Callable[..., None], *arguments: object) -> list[Launch]:
    """The launches that a function of `eca_triton.launch` makes for meta tensors, none of which runs."""
    launches = []

    def record(
        kernel: JITFunction, *args: object, grid: tuple[int, ...], warmup: bool, **kwargs: object
    ) -> None:
        options = {"num_warps": 4} | {k: kwargs.pop(k) for k in OPTIONS if k in kwargs}
        named = dict(zip(kernel.arg_names, args, strict=False)) | kwargs
        assert set(named) == set(kernel.arg_names)
        launches.append(Launch(kernel, named, options, grid, target))

    device = mock.patch.object(devices, "device_of", return_value=DEVICES[target])
    with mock.patch.object(JITFunction, "run", record), device:
        function(*arguments)
    return launches


def compiled(item: Launch) -> Code:
    """What `built` made."""
    return (_read_amd if TARGETS[item.target].backend == "hip" else read_nvidia)(built(item))


def compiled_within(registers: int, item: Launch) -> Code:
    """What `compiled` gives, which takes no more registers of a thread and spills none, but for DEARER."""
    code, name = compiled(item), item.kernel.__name__
    more, spilled = DEARER.get((VERSION, name), (0, 0)) if item.target == "sm_90" else (0, 0)
    assert code.spilled_bytes <= spilled, name
    assert code.registers <= max(registers, more), name
    return code


def built(item: Launch) -> triton.compiler.CompiledKernel:
    """Compiles as a launch would: 1 is a constant, multiples of 16 and aligned pointers are known."""
    signature, constants, attributes = {}, {}, {}
    for index, (parameter, name) in enumerate(zip(item.kernel.params, item.kernel.arg_names, strict=True)):
        value = item.arguments[name]
        if parameter.is_constexpr or value is None or (type(value) is int and value == 1):
            signature[name] = "constexpr"
            constants[(index,)] = value
            continue
        if isinstance(value, torch.Tensor):
            signature[name] = _TYPES[value.dtype]  # meta tensors stand for whole allocations: aligned
        elif isinstance(value, float):
            signature[name] = "fp32"
        else:
            signature[name] = "i32" if -(2**31) <= value < 2**31 else "i64"
        if isinstance(value, torch.Tensor) or (type(value) is int and value % 16 == 0):
            attributes[(index,)] = [["tt.divisibility", 16]]
    source = ASTSource(item.kernel, signature, constants, attributes)
    return triton.compile(source, target=TARGETS[item.target], options=item.options)


def orders_of(ptx: str) -> list[str]:
    """How each access to a counter is ordered across the GPU; `red` is `atom` without a result."""
    return re.findall(r"\b(?:atom|red|ld)\.global\.gpu\.(\w+)", ptx)


def read_nvidia(binary: triton.compiler.CompiledKernel) -> Code:
    """Of a compiled kernel's machine code for an NVIDIA GPU."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary.asm["cubin"])
        file.flush()
        usage = _run("cuobjdump", "--dump-resource-usage", file.name)
        sass = _run("nvdisasm", "-c", file.name)
    registers, stack, local = (int(re.search(rf"{key}:(\d+)", usage)[1]) for key in ("REG", "STACK", "LOCAL"))
    widths = {"U8": 8, "S8": 8, "U16": 16, "S16": 16, "": 32, "64": 64, "128": 128}
    accesses = {"LDG": {}, "STG": {}}
    for kind, modifiers in re.findall(r"\b(LDG|STG)\.(\S+)", sass):
        found = [part for part in modifiers.split(".") if part in widths and part]
        width = widths[found[0] if found else ""]
        accesses[kind][width] = accesses[kind].get(width, 0) + 1
    return Code(
        registers,
        stack + local,
        binary.metadata.shared,
        accesses["LDG"],
        accesses["STG"],
        _instructions(sass),
    )


def _instructions(sass: str) -> int | None:
    """Instructions up to the end of the program, if none of them branches back."""
    count, seen, last = 0, set(), None
    for line in sass.splitlines():
        if label := re.match(r"(\.L_x_\d+):", line):
            seen.add(label[1])
        elif re.match(r"\s+/\*[0-9a-f]{4,}\*/", line):
            branch = re.search(r"\bBRA\b.*`\((\.L_x_\d+)\)", line)
            if branch and branch[1] in seen - {last}:  # a program ends with a branch to itself
                return None
            count += "NOP" not in line
        last = label[1] if label else None
    return count


def _read_amd(binary: triton.compiler.CompiledKernel) -> Code:
    asm = binary.asm["amdgcn"]
    registers = int(re.search(r"\.vgpr_count:\s+(\d+)", asm)[1])
    spilled = 4 * int(re.search(r"\.vgpr_spill_count:\s+(\d+)", asm)[1])
    widths = {
        "ubyte": 8,
        "ushort": 16,
        "short": 16,
        "dword": 32,
        "dwordx2": 64,
        "dwordx3": 96,
        "dwordx4": 128,
    }
    widths |= {f"{kind}{width}": width for kind in "bui" for width in (8, 16, 32, 64, 96, 128)}  # of RDNA 3
    accesses = {"load": {}, "store": {}}
    for kind, modifiers in re.findall(r"\b(?:global|buffer)_(load|store)_(\S+)", asm):
        found = [part for part in modifiers.split("_") if part in widths]
        width = widths[found[0]]
        accesses[kind][width] = accesses[kind].get(width, 0) + 1
    return Code(registers, spilled, binary.metadata.shared, accesses["load"], accesses["store"])


@cache
def _tool(name: str) -> str:
    """A CUDA binary tool, which Triton's own wheel carries."""
    return str(Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name)


def _run(tool: str, *arguments: str) -> str:
    return subprocess.run([_tool(tool), *arguments], check=True, capture_output=True, text=True).stdout
