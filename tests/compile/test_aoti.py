"""Packages of AOTInductor hold ECA as machine code, and call nothing that only Python registers."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch._inductor import codecache, config, cpu_vec_isa
from torch._inductor.codegen import cpp_wrapper_gpu
from torch._inductor.codegen.wrapper import PythonWrapperCodegen
from torch._inductor.compile_fx import get_cpp_wrapper_config
from torch._inductor.debug import DebugContext
from torch._inductor.graph import GraphLowering
from torch._inductor.virtualized import V
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import Dim, export
from torch.fx.experimental.symbolic_shapes import ShapeEnv

import eca_triton
from eca_triton.compile.inductor.trial import templates_work
from eca_triton.compile.passes import LoweringPass
from eca_triton.compile.reasons import PACKAGED
from eca_triton.compile.record import recording
from eca_triton.deviceless.mocks import absent_gpu
from eca_triton.ops.schema import ECA
from eca_triton.tuning.targets import TARGETS

BY_NAME = "aoti_torch_proxy_executor_call_function"
"""What calls an operator that Python registered."""


def packaged_code(shape: tuple[int, ...], order: torch.memory_format, **options: Any) -> tuple[str, list]:
    """The C++ of relu(eca(x, w)) for an H200 that is not there, and the operators that it calls by name."""
    by_name: list = []
    with absent_gpu(TARGETS["h200"]):
        mode = FakeTensorMode(shape_env=ShapeEnv())
        assert templates_work(torch.device("cuda", 0))
        with mode:
            x = torch.empty(shape, dtype=torch.float16, device="cuda:0").to(memory_format=order)
            inputs = [x, x.new_empty(1, 1, 5)]
        graph = fx.Graph()
        nodes = [graph.placeholder("x"), graph.placeholder("w")]
        eca = graph.call_function(ECA, tuple(nodes), options)
        relu = graph.call_function(torch.ops.aten.relu.default, (eca,))
        for node, tensor in zip((*nodes, eca, relu), (*inputs, x, x), strict=True):
            node.meta["val"] = tensor
        graph.output((relu,))

        def serialize(called: list) -> str:
            by_name.extend(called)
            return ""

        lowering = GraphLowering(
            fx.GraphModule({}, graph),
            example_inputs=inputs,
            shape_env=mode.shape_env,
            aot_mode=True,
            cpp_wrapper=True,
            extern_node_serializer=serialize,
        )
        with (
            # Kernels are neither tuned nor loaded here: their launchers are left out of the code.
            patch.object(PythonWrapperCodegen, "generate_and_run_autotune_block", lambda wrapper: None),
            patch.object(cpp_wrapper_gpu.DeferredTritonCallWrapper, "generate", lambda call, wrapper: None),
            config.patch(get_cpp_wrapper_config() | {"cpp_wrapper": True}),
            config.patch({"triton.autotune_at_compile_time": True, "aot_inductor.output_path": "none"}),
            V.set_aot_compilation(True),
            V.set_debug_handler(DebugContext()),
            V.set_graph_handler(lowering),
            V.set_extern_kernel_nodes([]),
            V.set_fake_mode(mode),
        ):
            lowering.run(*inputs)
            code: Any = lowering.codegen_with_cpp_wrapper()[0]
            by_name.extend(V.extern_kernel_nodes)
    return str(getattr(code, "value", code)), by_name


LAST, FIRST = torch.channels_last, torch.contiguous_format
# Shape, layout, what the op does besides, and whether a template takes it.
PACKAGED_MAPS: dict[str, tuple[tuple[int, ...], torch.memory_format, dict[str, Any], bool]] = {
    "tile-channels-last": ((64, 512, 14, 14), LAST, {}, True),
    "tile-contiguous": ((64, 64, 24, 24), FIRST, {}, True),
    "lagged": ((128, 256, 56, 56), LAST, {}, True),
    "no-kernel-takes-it": ((64, 61, 24, 24), LAST, {}, False),
    "with-a-tail": ((64, 64, 24, 24), LAST, {"gain": 2.0}, False),
}


@pytest.mark.parametrize("name", PACKAGED_MAPS)
def test_a_package_has_a_template_or_native_code(name: str) -> None:
    shape, order, options, template = PACKAGED_MAPS[name]
    code, by_name = packaged_code(shape, order, **options)
    assert ("call_triton_tem_fused" in code) is template
    assert template or "call_triton_tem" not in code
    assert "call_triton_" in code
    assert by_name == []
    assert BY_NAME not in code


class Sites(nn.Module):
    """ECA by hand, our function with a tail, and our gate."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 1, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        g = self.conv(x.mean((2, 3)).unsqueeze(1)).sigmoid().squeeze(1)
        x = F.relu(x * g[:, :, None, None] + x)
        gates = eca_triton.eca_gate(x, self.conv.weight)
        return eca_triton.eca(x, self.conv.weight, residual=x, activation="relu"), gates


def test_the_hook_leaves_to_a_package_what_would_call_python() -> None:
    """`eca_triton.enable()` and then torch's own aoti_compile_and_package."""
    program = export(Sites().eval(), (torch.randn(2, 8, 5, 6),))
    gm = program.module()
    assert isinstance(gm, fx.GraphModule)
    with recording() as records, V.set_aot_compilation(True):
        LoweringPass(force=True)(gm.graph)
    assert [record.decision.reason for record in records] == [PACKAGED]


@pytest.fixture
def scalar_code() -> Iterator[None]:
    """Without vectors: which the CPU has, Inductor finds out by compiling and running a program for each."""
    with patch.object(cpu_vec_isa, "valid_vec_isa_list", list):
        yield


class StoppedError(Exception):
    """Raised where the C++ compiler would begin."""


@pytest.mark.usefixtures("scalar_code")
def test_a_package_for_the_cpu_calls_nothing_by_name() -> None:
    program = export(Sites().eval(), (torch.randn(2, 8, 5, 6),), dynamic_shapes=({0: Dim("n", min=2)},))
    called = []

    def stop(graph: Any, code: Any, kernels: Any, by_name: Any, **_: Any) -> None:
        called.append((str(getattr(code, "value", code)), by_name))
        raise StoppedError

    with patch.object(codecache.AotCodeCompiler, "compile", stop), pytest.raises(Exception, match="Stopped"):
        eca_triton.aoti_compile_and_package(program)
    ((code, by_name),) = called
    assert "cpp_fused" in code
    assert BY_NAME not in code
    assert not by_name or "eca_triton" not in by_name


@pytest.mark.slow
@pytest.mark.usefixtures("scalar_code")
@pytest.mark.skipif(
    os.environ.get("ECA_TRITON_TEST_PACKAGES") != "1",
    reason="g++ takes a minute for torch's headers: set ECA_TRITON_TEST_PACKAGES=1",
)
def test_a_package_runs_in_a_process_without_us(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, x = Sites().eval(), torch.randn(2, 8, 5, 6)
    program = export(module, (x,), dynamic_shapes=({0: Dim("n", min=2, max=64)},))
    path = eca_triton.aoti_compile_and_package(
        program,
        package_path=str(tmp_path / "sites.pt2"),
        inductor_configs={"aot_inductor.compile_wrapper_opt_level": "O0"},
    )
    x = torch.randn(3, 8, 5, 6)
    torch.save((x, module(x)), tmp_path / "expected.pt")
    code = """
import sys, torch
x, expected = torch.load(sys.argv[2])
result = torch._inductor.aoti_load_package(sys.argv[1])(x)
torch.testing.assert_close(tuple(result), expected)
assert "eca_triton" not in sys.modules
"""
    command = [sys.executable, "-c", code, path, str(tmp_path / "expected.pt")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
