"""What the forward kernels that read a map once save for the backward: means of x, bits of relu and relu6."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from backward_cases import bits_by_torch
from channels_last_kernels import FEW_SMS, KERNELS, NAN, on_both_devices, on_both_kernels
from kernel_cases import LAYOUTS, Site, batch_norm
from torch import Tensor

from eca_triton.tuning.config import Device

Forward = Callable[..., Tensor]


def check_saved(site: Site, kernel: Forward, device: Device) -> None:
    n, c, *spatial = site.x.shape
    pooled = torch.full((n, c), NAN)
    mask = torch.full((n, c * math.prod(spatial) // 8), 99, dtype=torch.uint8)
    out = kernel(site, device, pooled=pooled, mask=mask)
    assert torch.equal(out, kernel(site, device)), "with or without"
    exact = site.x.double().flatten(2).mean(2)
    assert (pooled - exact).abs().max() <= 1e-6 * site.x.abs().max()
    # All bits, but perhaps one where u is zero, or six, but for rounding.
    differing = mask ^ bits_by_torch(site)
    assert sum(byte.bit_count() for byte in differing.flatten().tolist()) <= 1


@pytest.mark.parametrize(
    ("c", "spatial", "activation", "dtype"),
    [
        (8, (7, 7), "relu", torch.float32),
        (72, (7, 7), "relu6", torch.float16),
        (72, (14, 14), "relu", torch.bfloat16),
    ],
    ids=str,
)
@on_both_kernels
@on_both_devices
def test_means_of_x_itself_and_bits_in_the_order_of_memory(
    kernel: Forward, device: Device, c: int, spatial: tuple[int, int], activation: str, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    x, residual = (3 * LAYOUTS["channels_last"]((2, c, *spatial), dtype) for _ in range(2))
    bn = batch_norm(c, torch.float32)
    check_saved(Site(x, torch.randn(5), bn=bn, residual=residual, activation=activation), kernel, device)


@on_both_devices
def test_of_large_contiguous_maps(device: Device) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 19, 24, 24)
    check_saved(
        Site(x, torch.randn(5), residual=3 * x.flip(0), activation="relu6"), KERNELS["lagged"], device
    )


@on_both_kernels
@pytest.mark.parametrize("activation", ["relu", "relu6"])
def test_the_gradient_passes_at_nan_but_not_at_the_bends(kernel: Forward, activation: str) -> None:
    x = torch.tensor([NAN, 0.0, -0.0, -1.0, 1.0, 6.0, 7.0, 5.0]).reshape(1, 1, 1, 8).transpose(1, -1)
    mask = torch.zeros(1, 1, dtype=torch.uint8)
    # The gate is 1, but for NaN.
    kernel(Site(x, torch.ones(1), torch.full((1,), 100.0), activation=activation), FEW_SMS, mask=mask)
    assert mask.item() == (0b11110001 if activation == "relu" else 0b10010001)
