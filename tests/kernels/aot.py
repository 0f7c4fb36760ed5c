"""Compile what the launcher would launch, for GPUs that are not there, and read the machine code."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from unittest import mock

import pytest
import torch
import triton
from one_launch import config_of, launcher_of
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from eca_triton.launch import devices
from eca_triton.launch.call import BackwardCall, EcaCall, GateCall
from eca_triton.reference.arguments import BackwardArguments, SiteArguments
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
    torch.float64: "*fp64",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.int32: "*i32",
    torch.int64: "*i64",
    torch.uint8: "*u8",
    torch.bool: "*i1",
}

NVIDIA_WIDTHS = {"U8": 8, "S8": 8, "U16": 16, "S16": 16, "": 32, "64": 64, "128": 128}
AMD_WIDTHS = {"ubyte": 8, "ushort": 16, "short": 16, "dword": 32}
AMD_WIDTHS |= {f"dwordx{size}": 32 * size for size in (2, 3, 4)}
AMD_WIDTHS |= {f"{kind}{width}": width for kind in "bui" for width in (8, 16, 32, 64, 96, 128)}  # of RDNA 3

VERSION = ".".join(triton.__version__.split(".")[:2])
DEARER = {  # (Triton, kernel): registers, and bytes put away, of code that takes a little more on sm_90
    ("3.7", "batch_statistics_kernel"): (138, 0),
    ("3.7", "gate_backward_kernel"): (0, 8),
    ("3.7", "tile_channels_last_backward_kernel"): (0, 8),
    ("3.9", "gate_backward_kernel"): (136, 0),
    ("3.9", "projection_kernel"): (0, 8),
}


COMPILER = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1",
    reason="the interpreter has no compiler: unset TRITON_INTERPRET",
)


def meta(*shape: int, dtype: torch.dtype = torch.float32, last: bool = False) -> torch.Tensor:
    memory_format = torch.channels_last if last else torch.contiguous_format
    return torch.empty(shape, dtype=dtype, device="meta", memory_format=memory_format)


@dataclass(frozen=True)
class Site:
    """What the operator is called for: tensors of the meta device.

    Attributes:
        shape: Of the maps.
        taps: Of the convolution.
        dtype: Of the maps.
        last: Whether the maps are channels-last.
        bn: Whether batch norm comes first; the backward then makes its moments.
        before: The activation before pooling.
        after: The activation at the end; a residual is added before it unless it is the identity.
        bits: Whether the backward has the activation's bits from the forward.
        stored: Whether the backward writes the residual's gradient.
        rare: Whether there is a bias, a gain, circular padding and a hard sigmoid.
    """

    shape: tuple[int, int, int, int]
    taps: int = 5
    dtype: torch.dtype = torch.bfloat16
    last: bool = False
    bn: bool = False
    before: str = "identity"
    after: str = "identity"
    bits: bool = False
    stored: bool = False
    rare: bool = False

    def __str__(self) -> str:
        flags = [name for name in ("last", "bn", "bits", "stored", "rare") if getattr(self, name)]
        named = [name for name in (self.before, self.after) if name != "identity"]
        dtype = str(self.dtype).removeprefix("torch.")
        return "-".join(["x".join(map(str, self.shape)), dtype, str(self.taps), *flags, *named])

    def a_map(self) -> torch.Tensor:
        return meta(*self.shape, dtype=self.dtype, last=self.last)

    @property
    def _front(self) -> tuple[object, ...]:
        """weight, bias and bn."""
        bn = [meta(self.shape[1]) if self.bn else None for _ in range(4)]
        return meta(1, 1, self.taps), meta(1) if self.rare else None, *bn

    @property
    def _options(self) -> dict[str, object]:
        rare = {"circular": True, "gate": "hard_sigmoid", "gain": 2.0} if self.rare else {}
        order = "channels_last" if self.last else "contiguous"
        return {"activation": self.after, "mask_order": order if self.bits else "none"} | rare

    @property
    def _mask(self) -> torch.Tensor | None:
        n, c, h, w = self.shape
        return meta(n, c * h * w // 8, dtype=torch.uint8) if self.bits else None

    def gate(self) -> GateCall:
        """The call of the gates alone."""
        return GateCall(self._site(), meta(*self.shape[:2], dtype=self.dtype))

    def _site(self) -> SiteArguments:
        residual = None if self.after == "identity" else self.a_map()
        return SiteArguments(
            self.a_map(), *self._front, residual, pre_activation=self.before, **self._options
        )

    def forward(self, saved: bool = False) -> EcaCall:
        """The call; `saved`: with the means and bits that the backward needs."""
        kept = (meta(*self.shape[:2]), self._mask) if saved else ()
        return EcaCall(self._site(), self.a_map(), *kept)

    def backward(self) -> BackwardCall:
        """The backward's call."""
        recomputed, channels = self.after != "identity" and not self.bits, meta(*self.shape[:2])
        residual = self.a_map() if recomputed and self.stored else None
        a = BackwardArguments(
            self.a_map(), self.a_map(), *self._front, residual, channels, self._mask, **self._options
        )
        d_residual = self.a_map() if self.stored else None
        return BackwardCall(a, self.a_map(), d_residual, channels, *[channels if self.bn else None] * 2)


@dataclass(frozen=True)
class Launch:
    """One captured kernel launch: argument name -> value, as the launcher passed it."""

    kernel: JITFunction
    arguments: dict[str, object]
    options: dict[str, int]  # of the compiler: OPTIONS
    grid: tuple[int, ...]
    target: str

    @property
    def threads(self) -> int:
        """Of one program."""
        return self.options["num_warps"] * TARGETS[self.target].warp_size


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


def launched(kernel: str, call: EcaCall | BackwardCall, target: str) -> Launch:
    """The one launch of a kernel of `one_launch`, with the config that its rule makes."""
    config = config_of(kernel, call, DEVICES[target])
    assert config is not None
    (item,) = captured(target, launcher_of(kernel, call), call, config)
    return item


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
        aligned = False
        if isinstance(value, torch.Tensor):
            signature[name] = _TYPES[value.dtype]
            aligned = value.data_ptr() % 16 == 0  # meta tensors stand for whole allocations
        elif isinstance(value, float):
            signature[name] = "fp32"
        else:
            signature[name] = "i32" if -(2**31) <= value < 2**31 else "i64"
        if aligned or (type(value) is int and value % 16 == 0):
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
    found = re.findall(r"\b(LDG|STG)\.(\S+)", sass)
    accesses = [(kind, modifiers.split(".")) for kind, modifiers in found]
    return Code(
        registers,
        stack + local,
        binary.metadata.shared,
        _by_width(accesses, "LDG", NVIDIA_WIDTHS),
        _by_width(accesses, "STG", NVIDIA_WIDTHS),
        _instructions(sass),
    )


def _by_width(accesses: list[tuple[str, list[str]]], kind: str, widths: dict[str, int]) -> dict[int, int]:
    """How many accesses of a kind there are, by the first modifier that names a width, or by none."""
    named = [
        [part for part in parts if part and part in widths] for found, parts in accesses if found == kind
    ]
    return dict(Counter(widths[parts[0] if parts else ""] for parts in named))


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
    found = re.findall(r"\b(?:global|buffer)_(load|store)_(\S+)", asm)
    accesses = [(kind, modifiers.split("_")) for kind, modifiers in found]
    loads, stores = (_by_width(accesses, kind, AMD_WIDTHS) for kind in ("load", "store"))
    return Code(registers, spilled, binary.metadata.shared, loads, stores)


@cache
def _tool(name: str) -> str:
    """A CUDA binary tool, which Triton's own wheel carries."""
    return str(Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name)


def _run(tool: str, *arguments: str) -> str:
    return subprocess.run([_tool(tool), *arguments], check=True, capture_output=True, text=True).stdout
