"""Backward kernels that read a map once, each against float64 autograd; what the forward saves for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from backward_cases import Backward, Gradients, bits_by_torch
from kernel_cases import ACTIVATIONS, LAYOUTS, Site, assert_earned, batch_norm, covering, label

from eca_triton import launch_backward_channels_last, launch_channels_last
from eca_triton.tuning.config import Device
from eca_triton.tuning.lagged_backward import lagged_backward_config
from eca_triton.tuning.tile_channels_last import tile_channels_last_config
from eca_triton.tuning.tile_channels_last_backward import tile_channels_last_backward_config

NAN, INF = float("nan"), float("inf")
FEW_SMS = Device(num_sms=2, warp_size=32)  # large tiles
MANY_SMS = Device(num_sms=132, warp_size=32)  # small ones, many per image


def by_tile(case: Backward, device: Device) -> Gradients:
    call = case.call()
    recomputed = call.activation != "identity" and call.mask is None
    config = tile_channels_last_backward_config(
        call.layout, call.itemsize, call.weight.numel(), call.bn is not None, recomputed, device
    )
    assert config is not None
    return case.by_kernel(launch_backward_channels_last.tile_channels_last_backward, config)


def by_lag(case: Backward, device: Device, in_vain: tuple[int, int] | None = None) -> Gradients:
    """With `in_vain`: what programs spread is so many images ahead of what they sum, and their patience."""
    call = case.call()
    recomputed = call.activation != "identity" and call.mask is None
    returning = 2 + (call.residual is not None) if recomputed and call.d_residual is None else 1
    config = lagged_backward_config(
        call.layout, call.itemsize, call.mask is not None, returning, device
    )
    assert config is not None
    if in_vain is not None:
        config = replace(config, lag=-in_vain[0] * config.tiles(call.layout), patience=in_vain[1])
    return case.by_kernel(launch_backward_channels_last.lagged_backward, config)


KERNELS = {"tile": by_tile, "lagged": by_lag}
Kernel = Callable[[Backward, Device], Gradients]

on_both_kernels = pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
on_both_devices = pytest.mark.parametrize("device", [FEW_SMS, MANY_SMS], ids=["few_sms", "many_sms"])

CASES = covering(
    {
        "kernel": list(KERNELS),
        "dtype": [torch.float32, torch.float16, torch.bfloat16],
        "device": [FEW_SMS, MANY_SMS],
        "k": [1, 3, 5, 7, 9, 17],
        "c": [8, 24, 72, 160],
        "spatial": [(1, 1), (7, 7), (14, 14), (33,), (3, 4, 5)],
        "bn": ["none", "bn", "bn_without_affine", "bn+moments"],
        "gate": ["sigmoid", "hard_sigmoid"],
        "padding": ["zero", "circular"],
        "bias": [False, True],
        "residual": [False, True],
        "activation": ["identity", "relu+bits", "relu6+bits", *list(ACTIVATIONS)[1:]],
        "store_p": [False, True],
    }
)


@pytest.mark.parametrize("row", CASES, ids=lambda row: label(row | {"device": row["device"].num_sms}))
def test_gradients_are_as_exact_as_eager(row: dict[str, object]) -> None:
    torch.manual_seed(0)
    dtype, c, k = row["dtype"], row["c"], row["k"]
    shape = (2, c, *row["spatial"])
    activation, _, bits = row["activation"].partition("+")
    case = Backward(
        Site(
            x=LAYOUTS["channels_last"](shape, dtype),
            weight=torch.randn(1, 1, k).to(dtype),
            bias=torch.randn(1).to(dtype) if row["bias"] else None,
            bn=batch_norm(c, dtype, affine=row["bn"] != "bn_without_affine") if row["bn"] != "none" else None,
            circular=row["padding"] == "circular" and k // 2 <= c,
            gate=row["gate"],
            gain=2.0,
            residual=LAYOUTS["channels_last"](shape, dtype) if row["residual"] else None,
            activation=activation,
        ),
        dy=LAYOUTS["channels_last"](shape, dtype),
        bits=bool(bits),
        moments=row["bn"].endswith("moments"),
        store_p=row["store_p"],
    )
    got = KERNELS[row["kernel"]](case, row["device"])
    native, exact = case.by_torch(), case.to(torch.float64).by_torch()
    for name, of_kernel in got._asdict().items():
        of_eager, of_float64 = getattr(native, name), getattr(exact, name)
        assert (of_kernel is None) == (of_eager is None)
        if of_kernel is not None:
            # Sums of few terms, in which eager's errors may have cancelled by luck.
            assert_earned(of_kernel, of_eager, of_float64, ulps=1 if of_kernel.dim() > 2 else 4)
