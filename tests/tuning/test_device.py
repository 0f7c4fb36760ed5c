"""What is known of a GPU by its properties, and what follows: its warps do not tell who made it."""

from __future__ import annotations

from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from aot import DEVICES
from recording_driver import recorded_launches
from torch import Tensor

from eca_triton import reference
from eca_triton.cli import doctor
from eca_triton.compile.plan.gather import _served
from eca_triton.compile.settings import Settings
from eca_triton.launch import devices
from eca_triton.ops import implementation
from eca_triton.ops.schema import RESCALED_PROJECTION
from eca_triton.reference.arguments import RescaledArguments
from eca_triton.tuning.config import Device
from eca_triton.tuning.families.projection import projection_config

# Properties: name, architecture of ROCm's or the name again, capability, threads per warp.
# What follows: the vendor, whether Triton compiles, and bytes of the floats that matrix units multiply.
GPUS = {
    "GTX 1080": (("NVIDIA GeForce GTX 1080", "NVIDIA GeForce GTX 1080", (6, 1), 32), ("nvidia", False, ())),
    "V100": (("Tesla V100-SXM2-16GB", "Tesla V100-SXM2-16GB", (7, 0), 32), ("nvidia", True, ())),
    "T4": (("Tesla T4", "Tesla T4", (7, 5), 32), ("nvidia", True, ())),
    "A100": (("NVIDIA A100-SXM4-80GB", "NVIDIA A100-SXM4-80GB", (8, 0), 32), ("nvidia", True, (2,))),
    "H200": (("NVIDIA H200", "NVIDIA H200", (9, 0), 32), ("nvidia", True, (2,))),
    "RTX 5090": (("NVIDIA GeForce RTX 5090", "NVIDIA GeForce RTX 5090", (12, 0), 32), ("nvidia", True, (2,))),
    "MI300X": (("AMD Instinct MI300X", "gfx942:sramecc+:xnack-", (9, 4), 64), ("amd", True, (2, 4))),
    "RX 6900": (("AMD Radeon RX 6900 XT", "gfx1030", (10, 3), 32), ("amd", True, ())),
    "RX 7900": (("AMD Radeon RX 7900 XTX", "gfx1100", (11, 0), 32), ("amd", True, ())),
}


def properties(gpu: str) -> SimpleNamespace:
    name, architecture, (major, minor), warp_size = GPUS[gpu][0]
    return SimpleNamespace(
        name=name, gcnArchName=architecture, major=major, minor=minor, warp_size=warp_size,
        multi_processor_count=40, shared_memory_per_block=48 << 10, total_memory=16 << 30,
    )  # fmt: skip


@pytest.mark.parametrize("gpu", GPUS)
def test_vendor_and_capability_say_what_runs(gpu: str) -> None:
    device, (vendor, served, floats) = Device.of(properties(gpu)), GPUS[gpu][1]
    assert device.vendor == vendor
    assert device.served == served
    assert tuple(itemsize for itemsize in (2, 4) if device.multiplies(itemsize)) == floats


@pytest.mark.parametrize(
    ("target", "half", "single"),
    [
        ("sm_75", ("ieee", 16), ("ieee", 16)),
        ("sm_90", ("tf32", 64), ("ieee", 16)),
        ("gfx942", ("ieee", 64), ("ieee", 64)),
        ("gfx1100", ("ieee", 16), ("ieee", 16)),
    ],
)
def test_a_projection_is_one_of_tf32_where_a_gpu_has_it(
    target: str, half: tuple[str, int], single: tuple[str, int]
) -> None:
    configs = [projection_config(128, 2048, 5, itemsize, DEVICES[target]) for itemsize in (2, 4)]
    assert [(config.precision, config.block_i) for config in configs] == [half, single]


def test_registers_are_limited_for_ptxas_alone() -> None:
    assert devices.at_most(168, 4, DEVICES["sm_75"]) == {"maxnreg": 168}
    assert devices.at_most(255, 16, DEVICES["sm_75"]) == {"maxnreg": 128}
    assert devices.at_most(168, 4, DEVICES["gfx1100"]) == devices.at_most(168, 4, DEVICES["gfx942"]) == {}


@pytest.mark.parametrize("target", ["sm_75", "sm_90"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=["fp16", "fp32"])
def test_an_eager_product_is_launched_where_matrix_units_multiply(target: str, dtype: torch.dtype) -> None:
    x = torch.randn(2, 32, 6, 6).to(dtype, memory_format=torch.channels_last)
    others = torch.randn(64, 32, 1, 1).to(dtype), torch.rand(2, 64), torch.randn(2, 64)
    with (
        recorded_launches([0]) as launches,
        mock.patch.object(devices, "_INTERPRETER", DEVICES[target]),
        torch.no_grad(),
    ):
        out = RESCALED_PROJECTION(x, *others)
    multiplied = target == "sm_90" and dtype == torch.float16
    assert len(launches) == multiplied
    if not multiplied:
        exact = reference.rescaled_projection(RescaledArguments(x, *others, torch.float32))
        torch.testing.assert_close(out, exact.to(dtype))


class OnGpu(Tensor):
    """Takes itself for a map on a GPU."""

    is_cuda = True
    device = torch.device("cuda", 0)


@pytest.mark.parametrize(("gpu", "served"), [("GTX 1080", False), ("V100", True), ("RX 7900", True)])
def test_kernels_are_for_gpus_that_triton_serves(gpu: str, served: bool) -> None:
    x = torch.randn(2, 8, 4, 4).as_subclass(OnGpu)
    devices._gpu.cache_clear()
    with mock.patch.object(torch.cuda, "get_device_properties", return_value=properties(gpu)):
        assert implementation.have_kernels(x) == served
        with mock.patch.object(torch.cuda, "is_available", return_value=True):
            assert _served(x.device, Settings()) == served
            assert _served(x.device, Settings(device="cuda")), "it is planned for another one"
            assert _served(torch.device("cpu"), Settings())
    devices._gpu.cache_clear()


def test_doctor_names_the_architecture() -> None:
    for gpu, architecture in {"T4": "sm_75", "RX 7900": "gfx1100"}.items():
        with mock.patch.object(torch.cuda, "get_device_properties", return_value=properties(gpu)):
            assert f", {architecture}, 40 SMs, 16 GiB" in doctor._gpu(0)


@pytest.mark.parametrize(
    ("shape", "dtype", "taken"),
    [
        ((2, 3), torch.float16, True),
        ((2, 3, 4, 5, 6), torch.float32, True),
        ((2, 3, 4), torch.float64, False),
        ((2,), torch.float32, False),
        ((2, 3, 1, 1, 1, 1), torch.float32, False),
        ((0, 3, 4), torch.float32, False),
        ((2, 3, 0), torch.float32, False),
        ((2**15, 2**15, 2**15), torch.bfloat16, True),
        ((2**16, 2**15, 4), torch.bfloat16, False),
        ((1, 2, 2**31), torch.bfloat16, False),
    ],
    ids=str,
)
def test_kernels_take_elements_that_int32_counts(
    shape: tuple[int, ...], dtype: torch.dtype, taken: bool
) -> None:
    assert devices.supports(torch.empty(shape, dtype=dtype, device="meta")) is taken
