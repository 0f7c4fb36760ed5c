"""What makes the lowering for an absent GPU the one that the GPU would get."""

from __future__ import annotations

from typing import Any

import deviceless_models
import pytest
import torch
from torch import Tensor, nn
from torch._functorch.aot_autograd import aot_module_simplified
from torch._functorch.partitioners import default_partition

from eca_triton.deviceless import TARGETS, lower
from eca_triton.deviceless.backward import engine_grad, walk
from eca_triton.deviceless.mocks import absent_gpu


@pytest.mark.parametrize("target", TARGETS.values(), ids=list(TARGETS))
def test_the_device_answers_with_the_targets_properties(target: Any) -> None:
    from torch._inductor.runtime.hints import DeviceProperties
    from triton.runtime import driver

    with absent_gpu(target):
        properties = DeviceProperties.create(torch.device("cuda", 0))
        assert (properties.cc, properties.major) == (target.arch, target.capability[0])  # 90, not "90"
        assert properties.multi_processor_count == target.device.num_sms
        assert properties.warp_size == 32
        assert torch.cuda.get_device_properties(0).L2_cache_size == target.device.l2_bytes
        assert driver.active.get_current_target().arch == target.arch
        assert driver.active.utils.get_device_properties(0)["max_shared_mem"] == target.device.shared_bytes


@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
def test_convolutions_become_channels_last_inside_a_contiguous_network(training: bool) -> None:
    """It follows from what cuDNN answers about layouts; else every convolution would stay NCHW."""
    model = deviceless_models.Stem()
    kernels = lower(
        model, torch.empty(64, 3, 64, 64), dtype=torch.bfloat16, training=training
    ).forward.kernels
    _, second = [k for k in kernels if k.name == "aten.convolution.default"]
    (written,) = second.writes
    assert written.stride[1] == 1
    maps = [buffer for buffer in second.reads if buffer.shape[0] == 64 and buffer.shape[2] > 3]
    assert [buffer.stride[1] for buffer in maps] == [1]


def test_a_depthwise_convolution_in_nchw_is_atens_own() -> None:
    from torch._C import _ConvBackend

    x, weight = torch.empty(2, 8, 5, 5), torch.empty(8, 1, 3, 3)
    with absent_gpu(TARGETS["h200"]):
        select = torch._C._select_conv_backend
        assert select(x, weight, groups=8) == _ConvBackend.CudaDepthwise2d
        assert select(x.to(memory_format=torch.channels_last), weight, groups=8) == _ConvBackend.Cudnn
        assert select(x, torch.empty(8, 8, 3, 3), groups=1) == _ConvBackend.Cudnn
        assert select(x, torch.empty(8, 8, 3, 3), transposed=True) == _ConvBackend.CudnnTranspose


@pytest.mark.parametrize("backend", ["inductor", "eca_triton"])
def test_a_contiguous_network_costs_two_layout_copies_and_our_op_adds_none(backend: str) -> None:
    """Its two inputs come in NCHW: the convolution's is copied, the residual is read as it is in the tail."""
    model, inputs, s = deviceless_models.tail()
    options = {"eca.plan": "block"} if backend == "eca_triton" else None  # `convblock` has no convolution
    kernels = lower(model, inputs, dtype=torch.bfloat16, backend=backend, options=options).kernels
    mixed = [
        kernel.name
        for kernel in kernels
        if len({b.stride[1] == 1 for b in kernel.reads + kernel.writes if b.bytes_moved >= s // 4}) > 1
    ]
    assert len(mixed) == 2


@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
def test_autocast_casts_as_on_a_cuda_device(training: bool) -> None:
    model, inputs, s = deviceless_models.tail()
    kernels = lower(model, inputs, autocast=torch.bfloat16, training=training).kernels
    convolution = next(kernel for kernel in kernels if kernel.name == "aten.convolution.default")
    assert convolution.writes[0].dtype == torch.bfloat16
    assert convolution.writes[0].bytes_moved == s
    dtypes = {buffer.dtype for kernel in kernels for buffer in kernel.reads}
    assert torch.float32 in dtypes  # the parameters


class Mixed(nn.Module):
    """What autograd's engine does between nodes: sum, broadcast, promote. A Function, an unused input too."""

    class Double(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, scale: float, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            ctx.save_for_backward(x)
            ctx.scale = scale
            return x * scale, x + y

        @staticmethod
        def backward(ctx: Any, dx: Tensor, dy: Tensor) -> tuple[None, Tensor, None]:
            (x,) = ctx.saved_tensors
            return None, dx * ctx.scale + dy + x * 0, None

    def __init__(self) -> None:
        super().__init__()
        self.tail = deviceless_models.Tail(16)
        self.scale = nn.Parameter(torch.ones(16, 1, 1, dtype=torch.float64))
        self.unused = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        out = self.tail(x, residual)
        double, _ = self.Double.apply(2.0, out * self.scale, residual)
        low, high = out.chunk(2, dim=1)
        return double, (low * high).sum(), residual * self.scale


def joint_graph(grad: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    """AOTAutograd's joint graph of `Mixed` on the CPU, as text, with this function in the place of grad."""
    graphs: list[str] = []

    def partition(joint: torch.fx.GraphModule, inputs: Any, **arguments: Any) -> Any:
        graphs.append(joint.code)
        return default_partition(joint, inputs, **arguments)

    def backend(gm: torch.fx.GraphModule, inputs: Any) -> Any:
        return aot_module_simplified(gm, inputs, fw_compiler=lambda graph, _: graph, partition_fn=partition)

    torch._dynamo.reset()
    monkeypatch.setattr(torch.autograd, "grad", grad)
    inputs = torch.randn(2, 4, 5, 5), torch.randn(2, 16, 5, 5, requires_grad=True)
    torch.compile(Mixed(), backend=backend)(*inputs)
    monkeypatch.undo()
    (graph,) = graphs
    return graph


def test_our_walk_of_the_backward_traces_what_the_engine_traces(monkeypatch: pytest.MonkeyPatch) -> None:
    def walked(outputs: Any, inputs: Any, grad_outputs: Any, **_: Any) -> Any:
        with torch.no_grad():
            return walk(list(outputs), list(inputs), list(grad_outputs))

    assert joint_graph(walked, monkeypatch) == joint_graph(engine_grad, monkeypatch)
