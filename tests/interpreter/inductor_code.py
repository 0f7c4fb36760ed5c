"""What Inductor generates for a GPU, run on CPU tensors: its wrapper, and its kernels in the interpreter."""

from __future__ import annotations

import importlib.util
import math
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import triton.language as tl
from torch import Tensor, nn
from torch._inductor.async_compile import AsyncCompile
from torch._inductor.runtime import triton_helpers, triton_heuristics

from eca_triton import deviceless
from eca_triton.deviceless import recorder

BLOCKS = {"XBLOCK": 64, "YBLOCK": 16, "ZBLOCK": 4}  # of Inductor's own kernels, whose tuner needs a GPU


def generated(model: nn.Module, inputs: Sequence[Tensor], **options: Any) -> str:
    """The Python module that Inductor makes of a model for an absent H200; options as `deviceless.lower`."""
    codes = []

    def keep(graph: Any, _: bool) -> list[Any]:
        code = graph.codegen()[0]
        codes.append(getattr(code, "value", code))
        return []

    with patch.object(recorder, "_kernels", keep):
        deviceless.lower(model, tuple(inputs), **options)
    (code,) = codes
    return code


def run(code: str, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Call such a module on CPU tensors (the model's parameters first, then its inputs) and its outputs."""
    for cuda, cpu in {
        "torch.cuda._DeviceGuard(0)": "nullcontext()",
        "torch.cuda.set_device(0)": "pass",
        "device='cuda'": "device='cpu'",
    }.items():
        code = code.replace(cuda, cpu)
    module: dict[str, Any] = {"__name__": "generated", "nullcontext": nullcontext}
    with (
        patch.object(AsyncCompile, "triton", lambda self, name, source, **_: Kernel(name, source)),
        patch.object(AsyncCompile, "wait", lambda self, scope: None),
    ):
        exec(compile(code, "<generated>", "exec"), module)
    module["empty_strided_cuda"] = poisoned
    module["get_raw_stream"] = lambda device: 0
    return list(module["call"](list(inputs)))


def poisoned(size: Sequence[int], stride: Sequence[int], dtype: torch.dtype) -> Tensor:
    """An empty tensor in which nothing looks right by chance."""
    return torch.empty_strided(size, stride, dtype=dtype).fill_(math.nan if dtype.is_floating_point else 99)


class Kernel:
    """Stands for the compiled kernel in the wrapper: launches the source in the interpreter."""

    def __init__(self, name: str, source: str) -> None:
        plain: Callable[..., Any] = lambda *_, **__: lambda function: function  # noqa: E731  a decorator
        with ExitStack() as patches, tempfile.TemporaryDirectory() as folder:
            for decorator in ("template", "pointwise", "reduction", "persistent_reduction"):
                patches.enter_context(patch.object(triton_heuristics, decorator, plain))
            patches.enter_context(patch.object(triton_helpers, "set_driver_to_gpu", lambda: None))
            path = Path(folder, f"{name}.py")
            path.write_text(source)
            spec = importlib.util.spec_from_file_location(name, path)
            assert spec is not None
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        module.libdevice = tl.math  # whose functions the interpreter has
        self.function = getattr(module, name)
        self.is_template = "triton_heuristics.template" in source

    def run(self, *args: Any, **_: Any) -> None:
        if self.is_template:
            *args, x, y, z = args
            self.function[(x, y, z)](*args)
            return
        names = self.function.arg_names
        blocks = {name: BLOCKS[name] for name in names if name in BLOCKS}
        grid = [math.ceil(args[names.index(f"{b[0].lower()}numel")] / size) for b, size in blocks.items()]
        order = sorted(range(len(grid)), key=lambda i: list(blocks)[i])
        self.function[tuple(grid[i] for i in order)](*args, **blocks)
