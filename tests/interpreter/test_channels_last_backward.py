"""Backward kernels that read a map once, each against float64 autograd; what the forward saves for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from backward_cases import Backward, Gradients
from kernel_cases import ACTIVATIONS, LAYOUTS, Site, assert_earned, batch_norm, covering, label

from eca_triton.launch import backward_channels_last as launch_backward_channels_last
from eca_triton.tuning.config import Device
from eca_triton.tuning.families.lagged import lagged_backward_config
from eca_triton.tuning.families.tile_channels_last import tile_channels_last_backward_config

NAN, INF = float("nan"), float("inf")
FEW_SMS = Device(num_sms=2, warp_size=32)  # large tiles
MANY_SMS = Device(num_sms=132, warp_size=32)  # small ones, many per image


def by_tile(case: Backward, device: Device) -> Gradients:
    call = case.call()
    config = tile_channels_last_backward_config(call.layout, call.itemsize, call.weight.numel(), device)
    assert config is not None
    return case.by_kernel(launch_backward_channels_last.tile_channels_last_backward, config)


def by_lag(case: Backward, device: Device, in_vain: tuple[int, int] | None = None) -> Gradients:
    """With `in_vain`: what programs spread is so many images ahead of what they sum, and their patience."""
    call = case.call()
    recomputed = call.activation != "identity" and call.mask is None
    config = lagged_backward_config(
        call.layout, call.itemsize, recomputed, call.d_residual is not None, call.mask is not None, device
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
        "c": [8, 24, 72],
        "spatial": [(7, 7), (14, 14), (33,), (3, 4, 5)],
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
    assert_gradients_earned(KERNELS[row["kernel"]](case, row["device"]), case)


def assert_gradients_earned(got: Gradients, case: Backward) -> None:
    native, exact = case.by_torch(), case.to(torch.float64).by_torch()
    for name, of_kernel in got._asdict().items():
        of_eager, of_float64 = getattr(native, name), getattr(exact, name)
        assert (of_kernel is None) == (of_eager is None)
        if of_kernel is not None:
            # Sums of few terms, in which eager's errors may have cancelled by luck.
            assert_earned(of_kernel, of_eager, of_float64, ulps=1 if of_kernel.dim() > 2 else 4)


@pytest.mark.parametrize(("size", "activation"), [(28, "identity"), (56, "relu")])
def test_maps_of_many_tiles(size: int, activation: str) -> None:
    torch.manual_seed(0)
    x, residual, dy = (LAYOUTS["channels_last"]((1, 24, size, size), torch.float16) for _ in range(3))
    site = Site(x, torch.randn(5).half(), residual=residual, activation=activation)
    case = Backward(site, dy, bits=activation == "relu", store_p=activation == "relu")
    assert_gradients_earned(by_lag(case, MANY_SMS), case)


@on_both_devices
@pytest.mark.parametrize("circular", [False, True], ids=["zero", "circular"])
@pytest.mark.parametrize("activation", ["relu+bits", "silu"])
def test_large_contiguous_maps_lag_too(activation: str, circular: bool, device: Device) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 19, 24, 24).half()
    activation, _, bits = activation.partition("+")
    site = Site(
        x, torch.randn(5).half(), circular=circular, bn=batch_norm(19, torch.float16), residual=x.flip(0),
        activation=activation,
    )  # fmt: skip
    case = Backward(site, torch.randn_like(x), bits=bool(bits), moments=True, store_p=circular)
    assert_gradients_earned(by_lag(case, device), case)


# The interpreter runs one program after the other: none finds sums that later ones make, and of the next
# image there are none at all.
@pytest.mark.parametrize(
    ("layout", "activation", "store_p", "ahead", "patience"),
    [
        ("contiguous", "silu", True, 1, 2),
        ("channels_last", "relu", True, 0, 2),
        ("channels_last", "silu", False, 1, 0),
    ],
)
def test_who_waits_in_vain_forms_the_same_gradients(
    layout: str, activation: str, store_p: bool, ahead: int, patience: int
) -> None:
    torch.manual_seed(0)
    x, dy = (LAYOUTS[layout]((2, 16, 24, 24), torch.float16) for _ in range(2))
    site = Site(x, torch.randn(5), bn=batch_norm(16, torch.float32), activation=activation)
    case = Backward(site, dy, bits=activation == "relu", moments=True, store_p=store_p)
    device = Device(num_sms=12, warp_size=32)  # three tiles or more per image
    got, expected = by_lag(case, device, in_vain=(ahead, patience)), by_lag(case, device)
    assert got.d_x[:ahead].isnan().all(), "no program is ahead of the first"
    for name in ("d_x", "d_gate", "p_sum", "p_dot_x"):
        assert torch.equal(getattr(got, name)[ahead:], getattr(expected, name)[ahead:])


# Channels 63 and 64 lie on two sides of a tile's edge; 71 is the last, in a tile that it does not fill.
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # that is the point
@on_both_kernels
@pytest.mark.parametrize("bits", [False, True], ids=["recomputed", "bits"])
@pytest.mark.parametrize("where", ["x", "dy"])
@pytest.mark.parametrize(
    ("channel", "value", "circular"), [(0, NAN, True), (63, INF, False), (64, -INF, True), (71, NAN, False)]
)
def test_a_bad_element_reaches_what_autograd_poisons(
    kernel: Kernel, where: str, bits: bool, channel: int, value: float, circular: bool
) -> None:
    torch.manual_seed(0)
    x, dy = (LAYOUTS["channels_last"]((2, 72, 7, 7), torch.float32) for _ in range(2))
    {"x": x, "dy": dy}[where][1, channel, -1, -1] = value
    site = Site(
        x, torch.randn(5), circular=circular, activation="relu" if bits else "silu", gate="hard_sigmoid"
    )
    case = Backward(site, dy, bits=bits, store_p=True)
    got, native = kernel(case, MANY_SMS), case.by_torch()
    for name in ("d_x", "d_residual", "d_gate"):
        for special in (torch.isnan, torch.isposinf, torch.isneginf):
            assert torch.equal(special(getattr(got, name)), special(getattr(native, name))), name


@on_both_kernels
@pytest.mark.parametrize("activation", ["relu", "relu6", "hardswish"])
def test_no_gradient_passes_where_torch_selects_zero(kernel: Kernel, activation: str) -> None:
    """Not even NaN: a product with a slope of zero would let it."""
    x = -10 - LAYOUTS["channels_last"]((1, 8, 3, 3), torch.float32).abs()
    site = Site(x, torch.zeros(3), activation=activation)
    for bits in {False, activation != "hardswish"}:
        got = kernel(Backward(site, torch.full_like(x, NAN), bits=bits, store_p=True), FEW_SMS)
        assert not got.d_x.any()
        assert not got.d_residual.any()


@on_both_kernels
def test_a_bad_tap_is_not_multiplied_by_padding(kernel: Kernel) -> None:
    x, dy = (torch.ones(1, 3, 3, 16).transpose(1, -1) for _ in range(2))
    got = kernel(Backward(Site(x, torch.tensor([1.0, 1.0, NAN])), dy), FEW_SMS)
    assert got.d_gate[0].isfinite().all()
    assert got.d_x[0, :, 0, 0].isnan().all(), "of each channel but the last the gate itself is NaN"


@on_both_kernels
def test_every_tensor_may_have_a_dtype_of_its_own(kernel: Kernel) -> None:
    torch.manual_seed(0)
    x, residual, dy = (LAYOUTS["channels_last"]((2, 24, 5, 5), torch.float64) for _ in range(3))
    site = Site(
        x=x.half(),
        weight=torch.randn(1, 1, 5, dtype=torch.float64),
        bn=batch_norm(24, torch.float32),
        residual=residual.float(),
        activation="gelu",
    )
    case = Backward(site, dy.half(), moments=True, store_p=True)
    got, exact = kernel(case, FEW_SMS), case.to(torch.float64).by_torch()
    for of_kernel, of_float64 in zip(got, exact, strict=True):
        assert (of_kernel - of_float64).abs().max() <= 2 * torch.finfo(
            torch.float16
        ).eps * of_float64.abs().max()


@on_both_kernels
def test_weights_of_any_stride(kernel: Kernel) -> None:
    torch.manual_seed(0)
    x, dy = (LAYOUTS["channels_last"]((2, 16, 3, 3), torch.float32) for _ in range(2))
    weight = torch.randn(1, 1, 10)[..., 1::2]
    strided, dense = (kernel(Backward(Site(x, w), dy), FEW_SMS).d_x for w in (weight, weight.contiguous()))
    assert torch.equal(strided, dense)
