"""Machine code of the kernels that Inductor generates for an H200, ours with their neighbours in them."""

from __future__ import annotations

from unittest import mock

import deviceless_models
import pytest
import torch
import torch.nn.functional as F
from aot import Code, read_nvidia
from torch import Tensor, nn
from torch._inductor import config
from torch._inductor.codecache import PyCodeCache
from torch._inductor.runtime.triton_heuristics import CachingAutotuner, DebugAutotuner
from torch._inductor.utils import fresh_cache

from eca_triton.compile import compat
from eca_triton.compile.plan.cost import PRODUCT
from eca_triton.deviceless import TARGETS, Kernel, lower
from eca_triton.deviceless.mocks import absent_gpu
from eca_triton.tuning.config import Device

STAGES = {"56x56": (256, 56), "28x28": (512, 28), "14x14": (1024, 14), "7x7": (2048, 7)}


def machine_code(kernel: Kernel, target: str = "h200") -> list[Code]:
    """Of every config that Inductor would try."""
    with (
        absent_gpu(TARGETS[target]),
        fresh_cache(),
        config.patch(use_static_triton_launcher=False),  # so that the compiled kernel keeps its code
    ):
        tuner = launcher(kernel)
        tuner.precompile(warm_cache_only=True)
        binaries = [result.kernel for result in tuner.compile_results]
    assert {binary.metadata.target.arch for binary in binaries} == {TARGETS[target].arch}
    return [read_nvidia(binary) for binary in binaries]


def launcher(kernel: Kernel) -> CachingAutotuner:
    """What launches the kernel in Inductor's code."""
    assert kernel.source is not None
    return getattr(PyCodeCache.load(kernel.source), kernel.name)


def triton_kernels(model: type[nn.Module], stage: str, channels_last: bool = True) -> list[Kernel]:
    """What Inductor makes of a module of a stage's channels, for its input and a residual."""
    channels, side = STAGES[stage]
    with torch.device("meta"):
        module, residual = model(channels), torch.empty(128, channels, side, side)
        x = torch.empty_like(residual) if model is Rescale else torch.empty(128, channels // 4, side, side)
    arguments = {"dtype": torch.bfloat16, "channels_last": channels_last, "backend": "eca_triton"}
    result = lower(module, (x, residual), sources=True, **arguments)
    return [kernel for kernel in result.kernels if kernel.kind == "triton"]


class Rescale(nn.Module):
    """Batch norm, ECA, residual, ReLU on a map in memory."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(channels)
        self.eca = deviceless_models.Eca()

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return F.relu(self.eca(self.bn(x)) + residual)


@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("stage", STAGES)
def test_templates_compile_without_spills(stage: str, channels_last: bool) -> None:
    kernels = triton_kernels(Rescale, stage, channels_last)
    # Until torch 2.11 rows that do not end on a vector keep the gate.
    template = channels_last or compat.EPILOGUES_IN_ANY_LOOPS or stage == "56x56"
    assert any("triton_tem" in kernel.name for kernel in kernels) == template
    for kernel in kernels:
        for code in machine_code(kernel):
            assert code.spilled_bytes == 0
            assert code.registers <= 128


@pytest.mark.parametrize("profile", [False, True], ids=["", "profile"])
@pytest.mark.parametrize(("stage", "names"), [("56x56", ["arg_SCRATCH", "arg_ARRIVED"]), ("14x14", [])])
def test_inductor_knows_what_a_template_mutates(stage: str, names: list[str], profile: bool) -> None:
    """Where it launches a kernel again to time it, it does so on copies of these."""
    with config.patch(profile_bandwidth=profile), fresh_cache():
        kernels = triton_kernels(Rescale, stage)
        (template,) = [kernel for kernel in kernels if "triton_tem" in kernel.name]
        with absent_gpu(TARGETS["h200"]):
            tuner = launcher(template)
    assert isinstance(tuner, DebugAutotuner) == profile
    assert list(tuner.mutated_arg_names) == names
    assert set(names) <= set(tuner.fn.arg_names)


class Bottleneck(deviceless_models.Tail):
    """Behind a ReLU that makes the convolution's input, so that the mean rides on it."""

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return super().forward(F.relu(x), residual)


@pytest.mark.parametrize("stage", ["56x56", "28x28"])
def test_the_product_leaves_registers_for_three_programs_and_moves_whole_vectors(stage: str) -> None:
    kernels = triton_kernels(Bottleneck, stage)
    (product,) = [kernel for kernel in kernels if "rescaled_projection" in kernel.name]
    for code in machine_code(product):
        assert code.spilled_bytes == 0
        assert code.registers <= 168  # three programs of 128 threads share 65536
        assert 3 * code.shared_bytes <= 227 << 10
        assert code.stores.keys() == {128}
        if code.instructions is not None:  # no loop over the input's channels
            assert code.instructions * 128 / (64 * 128) <= PRODUCT * 1.05


@pytest.mark.parametrize(("capability", "ours"), [("7.5", False), ("9.0", True)])
def test_a_product_is_a_template_where_matrix_units_multiply(capability: str, ours: bool) -> None:
    device = Device(num_sms=132, warp_size=32, capability=capability, shared_bytes=227 << 10)
    with torch.device("meta"):
        model, x, residual = Bottleneck(256), torch.empty(128, 64, 56, 56), torch.empty(128, 256, 56, 56)
    with mock.patch.object(Device, "of", return_value=device):
        result = lower(model, (x, residual), dtype=torch.bfloat16, channels_last=True, backend="eca_triton")
    names = [kernel.name for kernel in result.kernels]
    assert ("aten.convolution.default" in names) != ours


def test_stock_kernels_compile_for_the_target() -> None:
    """The sources are what a GPU would get."""
    model, inputs, _ = deviceless_models.tail()
    arguments = {"dtype": torch.bfloat16, "channels_last": True, "sources": True}
    kernels = [kernel for kernel in lower(model, inputs, **arguments).kernels if kernel.kind == "triton"]
    assert len(kernels) == 2
    for kernel in kernels:
        assert all(code.spilled_bytes == 0 for code in machine_code(kernel))
