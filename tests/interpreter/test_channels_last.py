"""The kernels that read a map once, each against float64: channels-last tiles, and tiles rescaled from L2."""

from __future__ import annotations

import pytest
import torch
from channels_last_kernels import (
    FEW_SMS,
    INF,
    KERNELS,
    MANY_SMS,
    NAN,
    Kernel,
    by_lag,
    on_both_devices,
    on_both_kernels,
)
from kernel_cases import ACTIVATIONS, LAYOUTS, Site, assert_earned, batch_norm, covering, label

from eca_triton.tuning.config import Device

CASES = covering(
    {
        "kernel": list(KERNELS),
        "dtype": [torch.float32, torch.float16, torch.bfloat16],
        "device": [FEW_SMS, MANY_SMS],
        "k": [1, 3, 5, 9, 17],
        "c": [8, 24, 72, 160],
        "spatial": [(1, 1), (7, 7), (14, 14), (33,), (3, 4, 5)],
        "front": ["plain", "bn", "bn_without_affine", "bn+silu", "relu"],
        "gate": ["sigmoid", "hard_sigmoid"],
        "padding": ["zero", "circular"],
        "bias": [False, True],
        "residual": [False, True],
        "activation": list(ACTIVATIONS),
    }
)


@pytest.mark.parametrize("row", CASES, ids=lambda row: label(row | {"device": row["device"].num_sms}))
def test_maps_are_as_exact_as_eager(row: dict[str, object]) -> None:
    torch.manual_seed(0)
    dtype, c, k, front = row["dtype"], row["c"], row["k"], row["front"]
    shape = (2, c, *row["spatial"])
    site = Site(
        x=LAYOUTS["channels_last"](shape, dtype),
        weight=torch.randn(1, 1, k).to(dtype),
        bias=torch.randn(1).to(dtype) if row["bias"] else None,
        bn=batch_norm(c, dtype, affine=front != "bn_without_affine") if front.startswith("bn") else None,
        pre_activation=front.rpartition("+")[2] if "lu" in front else "identity",
        circular=row["padding"] == "circular" and k // 2 <= c,
        gate=row["gate"],
        gain=2.0,
        residual=LAYOUTS["channels_last"](shape, dtype) if row["residual"] else None,
        activation=row["activation"],
    )
    before = site.to(torch.float64)
    assert_earned(KERNELS[row["kernel"]](site, row["device"]), site.by_torch()[1], before.by_torch()[1])
    assert torch.equal(site.x.double(), before.x), "inputs are never changed"


@on_both_devices
@pytest.mark.parametrize("circular", [False, True], ids=["zero", "circular"])
@pytest.mark.parametrize("spatial", [(24, 24), (16, 4, 8)], ids=["2-D", "3-D"])
def test_large_contiguous_maps_lag_too(spatial: tuple[int, ...], circular: bool, device: Device) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 19, *spatial).half()
    site = Site(x, torch.randn(5), circular=circular, bn=batch_norm(19, torch.float32), residual=x.flip(0))
    exact = site.to(torch.float64).by_torch()[1]
    assert_earned(by_lag(site, device), site.to(torch.float32).by_torch()[1], exact)


# The interpreter runs one program after the other: none finds sums that later ones make, and of the next
# image there are none at all.
@pytest.mark.parametrize(
    ("layout", "front", "ahead", "patience"),
    [("contiguous", "bn", 1, 2), ("channels_last", "plain", 0, 2), ("channels_last", "bn+silu", 1, 0)],
)
def test_who_waits_in_vain_forms_the_same_gates(layout: str, front: str, ahead: int, patience: int) -> None:
    torch.manual_seed(0)
    site = Site(
        x=LAYOUTS[layout]((2, 40, 24, 24), torch.float16),
        weight=torch.randn(5),
        bn=batch_norm(40, torch.float32) if front != "plain" else None,
        pre_activation="silu" if front == "bn+silu" else "identity",
    )
    device = Device(num_sms=12, warp_size=32)  # six tiles or more per image
    out = by_lag(site, device, in_vain=(ahead, patience))
    assert out[:ahead].isnan().all(), "no program is ahead of the first"
    assert torch.equal(out[ahead:], by_lag(site, device)[ahead:])


# Channels 63 and 64 lie on two sides of a tile's edge; 71 is the last, in a tile that it does not fill.
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # that is the point
@on_both_kernels
@on_both_devices
@pytest.mark.parametrize("circular", [False, True], ids=["zero", "circular"])
@pytest.mark.parametrize(("channel", "value"), [(0, NAN), (63, INF), (64, -INF), (71, NAN)])
def test_a_bad_element_reaches_what_eager_poisons(
    kernel: Kernel, device: Device, circular: bool, channel: int, value: float
) -> None:
    torch.manual_seed(0)
    x = LAYOUTS["channels_last"]((2, 72, 7, 7), torch.float32)
    x[1, channel, -1, -1] = value
    site = Site(x, torch.randn(5), circular=circular)
    got, native = kernel(site, device), site.by_torch()[1]
    for special in (torch.isnan, torch.isposinf, torch.isneginf):
        assert torch.equal(special(got), special(native))


@on_both_kernels
def test_a_bad_tap_is_not_multiplied_by_padding(kernel: Kernel) -> None:
    x = torch.ones(1, 3, 3, 16).transpose(1, -1)
    out = kernel(Site(x, torch.tensor([NAN, 1.0, 1.0])), FEW_SMS)
    assert out[0, :, 0, 0].isnan().tolist() == [False] + 15 * [True]


@on_both_kernels
def test_every_tensor_may_have_a_dtype_of_its_own(kernel: Kernel) -> None:
    torch.manual_seed(0)
    site = Site(
        x=LAYOUTS["channels_last"]((2, 24, 5, 5), torch.float16),
        weight=torch.randn(5, dtype=torch.float64),
        bias=torch.randn(1).bfloat16(),
        bn=batch_norm(24, torch.float32),
        residual=LAYOUTS["channels_last"]((2, 24, 5, 5), torch.float32),
    )
    exact = site.to(torch.float64).by_torch()[1]
    got = kernel(site, FEW_SMS)
    assert (got - exact).abs().max() <= torch.finfo(torch.float16).eps * exact.abs().max()


@on_both_kernels
def test_weights_of_any_stride(kernel: Kernel) -> None:
    torch.manual_seed(0)
    x = LAYOUTS["channels_last"]((2, 16, 3, 3), torch.float32)
    weight = torch.randn(1, 1, 10)[..., 1::2]
    assert torch.equal(kernel(Site(x, weight), FEW_SMS), kernel(Site(x, weight.contiguous()), FEW_SMS))
