"""What Inductor generates for a GPU, run on CPU tensors: its wrapper, and its kernels in the interpreter."""

from __future__ import annotations

import importlib.util
import math
import os
import re
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import triton.language as tl
from torch import Tensor, fx, nn
from torch._inductor.async_compile import AsyncCompile
from torch._inductor.runtime import triton_helpers, triton_heuristics

from eca_triton import deviceless
from eca_triton.compile import backend
from eca_triton.deviceless import recorder
from eca_triton.launch import replay

# Of Inductor's own kernels, whose tuner needs a GPU. In a reduction the interpreter goes element by element.
POINTWISE_BLOCKS = {"XBLOCK": 128, "YBLOCK": 16, "ZBLOCK": 4}
REDUCTION_BLOCKS = {"XBLOCK": 16, "R0_BLOCK": 32}


def generated(model: nn.Module, inputs: Sequence[Tensor], **options: Any) -> str:
    """The Python module that Inductor makes of a model for an absent H200; options as `deviceless.lower`."""
    (code,) = _codes(model, inputs, **options)
    return code


def _codes(model: nn.Module, inputs: Sequence[Tensor], **options: Any) -> list[str]:
    codes = []

    def keep(graph: Any, _: bool) -> list[Any]:
        code = graph.codegen()[0]
        codes.append(getattr(code, "value", code))
        return []

    with patch.object(recorder, "_kernels", keep):
        deviceless.lower(model, tuple(inputs), **options)
    return codes


@dataclass(frozen=True)
class Training:
    """The modules that Inductor makes of a model's forward and backward with our pass, for an absent H200.

    `inputs`: what forward takes, a tensor by Dynamo's name, a size by such a name and a dim.
    """

    forward: str
    backward: str
    inputs: tuple[str | tuple[str, int], ...]

    @classmethod
    def of(cls, model: nn.Module, inputs: Sequence[Tensor], **options: Any) -> Training:
        """Options as `deviceless.lower`."""
        graphs = []

        def keep(gm: fx.GraphModule, *args: Any) -> Any:
            graphs.append(gm)
            return compiled(gm, *args)

        compiled = backend.inductor_compile
        with patch.object(backend, "inductor_compile", keep):
            forward, back = _codes(model, inputs, backend="eca_triton", training=True, **options)
        given = graphs[-1].graph.find_nodes(op="placeholder")
        examples = {node.target: node.meta["example_value"] for node in given}
        sizes = {
            str(size): (name, dim)
            for name, value in examples.items()
            if isinstance(value, Tensor)
            for dim, size in enumerate(value.shape)
        }
        return cls(forward, back, tuple(sizes.get(str(value), name) for name, value in examples.items()))

    def step(
        self, model: nn.Module, inputs: dict[str, Tensor], upstream: Sequence[Tensor]
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Outputs, and the gradients of parameters and inputs by name; the model's buffers are updated."""
        places = {_placeholder(name, "parameters"): name for name, _ in model.named_parameters()}
        places |= {_placeholder(name, "buffers"): name for name, _ in model.named_buffers()}
        places |= {f"L_{name}_": name for name in inputs}
        tensors = {**dict(model.named_parameters()), **dict(model.named_buffers()), **inputs}
        given = [
            tensors[places[i]] if isinstance(i, str) else tensors[places[i[0]]].shape[i[1]]
            for i in self.inputs
        ]
        with torch.no_grad():
            results = run(self.forward, given)
            unpacked = re.search(r"^ *(.*) = args$", self.backward, re.MULTILINE)
            assert unpacked is not None
            saved = unpacked[1].count(",") + 1 - unpacked[1].rstrip(",").count("tangents")
            outputs, kept = results[:-saved], results[-saved:]
            # AOTAutograd's order: numbers come last from forward and first into backward.
            kept.sort(key=lambda value: isinstance(value, Tensor))
            grads = run(self.backward, [*kept, *upstream])
        pairs = zip(self.inputs, grads, strict=True)
        return outputs, {places[i]: grad for i, grad in pairs if isinstance(i, str) and grad is not None}


def _placeholder(name: str, kind: str) -> str:
    """Dynamo's name of a module's parameter or buffer."""
    *path, leaf = name.split(".")
    return "".join(["L_self_", *(f"modules_{part}_" for part in path), f"{kind}_{leaf}_"])


def run(code: str, inputs: Sequence[Any]) -> list[Any]:
    """Results of such a module for CPU tensors (the model's parameters first, then its inputs) and sizes."""
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
        if os.environ.get("TRITON_INTERPRET") == "1":
            module.libdevice = tl.math  # whose functions the interpreter has
        self.function = getattr(module, name)
        self.is_template = "triton_heuristics.template" in source
        self.blocks = REDUCTION_BLOCKS if "reduction(\n" in source else POINTWISE_BLOCKS

    def run(self, *args: Any, **_: Any) -> None:
        if self.is_template:
            *args, x, y, z = args
            replay.run(self.function, (x, y, z), *args)
            return
        names = self.function.arg_names
        blocks = {name: size for name, size in self.blocks.items() if name in names}
        grid = [
            math.ceil(args[names.index(f"{name[0].lower()}numel")] / size)
            for name, size in blocks.items()
            if name != "R0_BLOCK"
        ]
        replay.run(self.function, tuple(grid), *args, **blocks)
