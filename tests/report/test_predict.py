"""Predicted times: a roofline per kernel, under three assumptions about efficiency."""

from __future__ import annotations

import pytest
import torch
from reports import fixed, kernel

from eca_triton.deviceless import TARGETS, Lowering
from eca_triton.report.predict import (
    EFFICIENCIES,
    Efficiency,
    kernel_us,
    peak_flops_per_s,
    predict,
    site_us,
    speedup,
)

H200 = TARGETS["h200"]
PERFECT = Efficiency(1.0, 1.0)
LAUNCH_US = 1e6 * H200.launch_s


def network(*kernels: object) -> Lowering:
    return Lowering(tuple(kernels), 0.0)  # type: ignore[arg-type]  # kernels they are


def test_a_kernel_takes_the_longer_of_moving_and_computing_and_a_launch() -> None:
    second_of_bytes, second_of_flops = int(H200.copy_bytes_per_s), H200.tensor_flops_per_s
    moving = kernel(moved=second_of_bytes // 1000, flops=second_of_flops / 2000)
    computing = kernel(moved=second_of_bytes // 2000, flops=second_of_flops / 1000)
    assert kernel_us(moving, H200, PERFECT) == pytest.approx(1000 + LAUNCH_US)
    assert kernel_us(computing, H200, PERFECT) == pytest.approx(1000 + LAUNCH_US)
    assert kernel_us(moving, H200, Efficiency(0.5, 1.0)) == pytest.approx(2000 + LAUNCH_US)
    assert kernel_us(computing, H200, Efficiency(1.0, 0.5)) == pytest.approx(2000 + LAUNCH_US)
    assert kernel_us(kernel(), H200) == pytest.approx(LAUNCH_US)


@pytest.mark.parametrize(
    ("name", "dtype", "share"),
    [
        ("extern_kernels.mm", torch.float16, 1.0),
        ("aten.convolution.default", torch.float32, 0.5),  # TF32, which cuDNN may use
        ("extern_kernels.mm", torch.float32, 2 * 128 * 132 * 1.98e9 / 989e12),  # and cuBLAS may not
        ("aten.convolution.default", torch.float64, 128 * 132 * 1.98e9 / 989e12),
    ],
)
def test_the_peak_is_that_of_the_units_which_torch_uses_for_a_dtype(
    name: str, dtype: torch.dtype, share: float
) -> None:
    peak = peak_flops_per_s(kernel(name, moved=64, dtype=dtype), H200)
    assert peak == pytest.approx(share * H200.tensor_flops_per_s)


def test_a_network_is_the_sum_of_its_kernels_in_three_ways() -> None:
    lowering = network(kernel(moved=10**9), kernel("aten.mm", flops=10**12, moved=10**6))
    prediction = predict(lowering, H200)
    assert (prediction.bytes_moved, prediction.flops, prediction.kernels) == (1_001_000_000, 10**12, 2)
    assert prediction.step_us.low < prediction.step_us.likely < prediction.step_us.high
    assert prediction.step_us == pytest.approx(
        [sum(kernel_us(k, H200, efficiency) for k in lowering.kernels) for efficiency in EFFICIENCIES]
    )
    images = prediction.images_per_s(batch=128)
    assert images.low == pytest.approx(128e6 / prediction.step_us.high)
    assert images.low < images.likely < images.high


def test_a_speedup_is_surer_than_the_times_that_it_is_made_of() -> None:
    before, after = network(kernel(moved=10**9)), network(kernel(moved=5 * 10**8))
    times = predict(before, H200).step_us
    ratio = speedup(before, after, H200)
    assert ratio.likely == pytest.approx(2, rel=0.05)
    assert ratio.high / ratio.low < 1.01 < times.high / times.low


def test_a_site_takes_what_its_plan_costs_and_what_was_not_weighed_no_time() -> None:
    block, _, near_miss = fixed().sites
    map_us = 1e6 * block.map_bytes / H200.copy_bytes_per_s
    assert site_us(block, H200) == pytest.approx((5 * map_us + LAUNCH_US, 3 * map_us + LAUNCH_US))
    assert site_us(near_miss, H200) is None
