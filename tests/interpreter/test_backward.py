"""Every kernel of a training step against float64 autograd: what forward saves, and the gradients."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from backward_cases import Step, differing_bits
from eager_block import ACTIVATIONS
from kernel_cases import (
    FEW_SMS,
    INF,
    LAYOUTS,
    MANY_SMS,
    NAN,
    Row,
    Site,
    batch_norm,
    covering,
    label,
    same_special_values,
    site_of,
)
from one_launch import config_of
from torch import Tensor

from eca_triton.launch import two_pass as launch_two_pass
from eca_triton.ops.outputs import mask_order_for
from eca_triton.ops.schema import ECA_BACKWARD, ECA_FORWARD
from eca_triton.tuning.config import Device

pytestmark = pytest.mark.filterwarnings("ignore:(invalid value|overflow) encountered:RuntimeWarning")

FOUR_SMS = Device(num_sms=4, warp_size=32)  # few channels per contiguous tile
CHANNELS_LAST = ["tile_channels_last", "lagged"]
KERNELS = {"two_pass": "contiguous", "tile": "contiguous", **dict.fromkeys(CHANNELS_LAST, "channels_last")}
on_both_kernels = pytest.mark.parametrize("kernel", CHANNELS_LAST)
on_every_kernel = pytest.mark.parametrize("kernel", KERNELS)

OPTIONS = {
    "dtype": [torch.float32, torch.float16, torch.bfloat16],
    "bn": ["none", "affine", "plain"],
    "gate": ["sigmoid", "hard_sigmoid"],
    "padding": ["zero", "circular"],
    "bias": [False, True],
    "gain": [2.0, 0.7],
    "residual": [False, True],
}
BITS = ["relu+bits", "relu6+bits"]
CASES = covering(
    OPTIONS
    | {
        "kernel": ["two_pass"],
        "layout": ["contiguous", "channels_last"],
        "mean": [0.5],
        "gain": [0.7],
        "n": [2, 4],
        "k": [1, 5, 9],
        "c": [1, 8, 19],
        "spatial": [(1, 1), (7, 7), (8, 8), (3, 2, 4)],
        "activation": ["identity", *BITS, *list(ACTIVATIONS)[3:]],
    }
)
CASES += covering(
    OPTIONS
    | {
        "kernel": ["tile"],
        "layout": ["contiguous"],
        "k": [1, 3, 5, 9],
        "c": [8, 19, 24],
        "spatial": [(7, 7), (14, 14), (28, 28), (3, 4, 5)],
        "activation": [*BITS, *ACTIVATIONS],
        "device": [FEW_SMS, FOUR_SMS],
    }
)
CASES += covering(
    OPTIONS
    | {
        "kernel": CHANNELS_LAST,
        "layout": ["channels_last"],
        "k": [1, 3, 5, 9, 17],
        "c": [8, 24, 72],
        "spatial": [(7, 7), (14, 14), (33,), (3, 4, 5)],
        "activation": [*BITS, *ACTIVATIONS],
        "moments": [False, True],
        "store_p": [False, True],
        "device": [FEW_SMS, MANY_SMS],
    }
)


def step_of(row: Row) -> Step:
    """One combination; bits where the kernel can have them."""
    activation, _, bits = row["activation"].partition("+")
    site = site_of(row | {"activation": activation})
    if row["kernel"] == "two_pass":
        bits = mask_order_for(site.x, site.residual, activation) != "none"
    elif row["kernel"] == "tile":
        bits = bits and site.x[0].numel() % 8 == 0
    dy = torch.empty_like(site.x)
    # Positive for two passes, whose errors eager's bound: sums that cancel are known to many ulps of theirs.
    dy.copy_(torch.rand(dy.shape) if row["kernel"] == "two_pass" else torch.randn(dy.shape))
    store_p = row.get("store_p", row["kernel"] == "tile" or activation != "identity")
    return Step(site, dy, bool(bits), row.get("moments", True), store_p)


def assert_saved(step: Step, pooled: Tensor, mask: Tensor | None) -> None:
    """The means of x itself; all bits, but perhaps one where u is zero, or six, but for rounding."""
    x = step.site.x
    assert (pooled - x.double().flatten(2).mean(2)).abs().max() <= 1e-6 * x.abs().max()
    assert mask is None or differing_bits(mask, step.site) <= 1


@pytest.mark.parametrize("row", CASES, ids=label)
def test_a_step_is_as_exact_as_eager(row: Row) -> None:
    kernel, device = row["kernel"], row.get("device", FEW_SMS)
    small = row["kernel"] != "tile" or row["spatial"] not in ((14, 14), (28, 28))
    step = step_of({"n": 2 if small else 1} | row)
    out, pooled, mask = step.forward(kernel, device)
    assert_saved(step, pooled, mask)
    got = {"out": out} | step.backward(kernel, device, pooled=pooled, mask=mask)
    if kernel == "tile":
        step.assert_earned(got, native=torch.float32)  # rounded once
    else:
        step.assert_earned(got, ulps=1 if kernel == "two_pass" else 4)


@on_both_kernels
@pytest.mark.parametrize("device", [FEW_SMS, MANY_SMS], ids=["few_sms", "many_sms"])
def test_what_is_saved_changes_no_map(kernel: str, device: Device) -> None:
    x, residual = (3 * LAYOUTS["channels_last"]((2, 72, 7, 7), torch.float16) for _ in range(2))
    site = Site(x, torch.randn(5), bn=batch_norm(72, torch.float32), residual=residual, activation="relu6")
    out, pooled, mask = Step(site, x, bits=True).forward(kernel, device)
    assert torch.equal(out, site.map_by_kernel(kernel, device))
    assert_saved(Step(site, x), pooled, mask)


@pytest.mark.parametrize(("size", "activation"), [(28, "identity"), (56, "relu")])
def test_maps_of_many_tiles(size: int, activation: str) -> None:
    x, residual, dy = (LAYOUTS["channels_last"]((1, 24, size, size), torch.float16) for _ in range(3))
    site = Site(x, torch.randn(5).half(), residual=residual, activation=activation)
    step = Step(site, dy, bits=activation == "relu", store_p=activation == "relu")
    step.assert_earned(step.backward("lagged", MANY_SMS), ulps=4)


@pytest.mark.parametrize(
    ("activation", "bits", "circular", "device"),
    [
        ("relu", True, False, FEW_SMS),
        ("silu", False, True, FEW_SMS),
        ("relu6", True, True, MANY_SMS),
        ("silu", False, False, MANY_SMS),
    ],
    ids=["bits-few_sms", "circular-few_sms", "bits-circular-many_sms", "many_sms"],
)
def test_large_contiguous_maps_lag_too(activation: str, bits: bool, circular: bool, device: Device) -> None:
    x = torch.randn(2, 19, 24, 24).half()
    site = Site(
        x, torch.randn(5).half(), circular=circular, bn=batch_norm(19, torch.float16), residual=3 * x.flip(0),
        activation=activation,
    )  # fmt: skip
    step = Step(site, torch.randn_like(x), bits=bits, moments=True, store_p=circular)
    _, pooled, mask = step.forward("lagged", device)
    assert_saved(step, pooled, mask)
    step.assert_earned(step.backward("lagged", device), ulps=4)


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
    x, dy = (LAYOUTS[layout]((2, 16, 24, 24), torch.float16) for _ in range(2))
    site = Site(x, torch.randn(5), bn=batch_norm(16, torch.float32), activation=activation)
    step = Step(site, dy, bits=activation == "relu", moments=True, store_p=store_p)
    device = Device(num_sms=12, warp_size=32)  # three tiles or more per image
    got, expected = step.backward("lagged", device, (ahead, patience)), step.backward("lagged", device)
    assert got["d_x"][:ahead].isnan().all(), "no program is ahead of the first"
    for name in ("d_x", "d_gate", "p_sum", "p_dot_x"):
        assert torch.equal(got[name][ahead:], expected[name][ahead:])


@pytest.mark.parametrize("activation", ["identity", "relu"])
def test_long_rows_in_several_blocks_and_a_tail(activation: str) -> None:
    x, dy, residual = (torch.randn(1, 6, 56, 56).half() for _ in range(3))
    site = Site(x, torch.randn(1, 1, 5), residual=residual, activation=activation)
    step = Step(site, dy, bits=activation == "relu", moments=True, store_p=True)
    tile = config_of("tile", step.call(), FEW_SMS)
    assert tile.block_tail
    assert tile.packed
    assert tile.block_c < 6, "two programs"
    step.assert_earned(step.by_kernels("tile"), native=torch.float32)


@on_every_kernel
@pytest.mark.parametrize(("activation", "mask"), [("relu", 0b11110001), ("relu6", 0b10010001)])
def test_the_gradient_passes_at_nan_but_not_at_the_bends(kernel: str, activation: str, mask: int) -> None:
    u = torch.tensor([NAN, 0.0, -0.0, -1.0, 1.0, 6.0, 7.0, 5.0])
    if KERNELS[kernel] == "contiguous":
        x, residual = torch.zeros(1, 8, 1, 8), u.expand(1, 8, 1, 8).contiguous()
    else:
        x, residual = (v.reshape(1, 1, 1, 8).transpose(1, -1) for v in (torch.zeros(8), u))
    step = Step(Site(x, torch.ones(1), residual=residual, activation=activation), x, bits=True)
    assert {*step.forward(kernel)[2].flatten().tolist()} == {mask}


@pytest.mark.parametrize("spatial", [(7, 7), (8, 8)], ids=["windows", "rows"])
def test_bits_and_recomputation_agree(spatial: tuple[int, int]) -> None:
    x, dy, residual = (torch.randn(1, 24, *spatial).half() for _ in range(3))
    bn = batch_norm(24, torch.float32)
    site = Site(x, torch.randn(1, 1, 5), bn=bn, residual=residual, activation="relu")
    stored, again = (Step(site, dy, bits, True, True).by_kernels("tile") for bits in (True, False))
    assert torch.equal(stored["d_residual"], again["d_residual"])
    for name in ("d_x", "d_gate", "p_sum", "p_dot_x"):
        torch.testing.assert_close(stored[name], again[name])


# Channels 63 and 64 lie on two sides of a tile's edge, as do 7 and 8; 71 is the last, in a tile that it does
# not fill.
BAD_ELEMENTS = covering(
    {
        "kernel": CHANNELS_LAST,
        "c": [72],
        "where": ["x", "dy"],
        "place": [(0, NAN), (63, INF), (64, -INF), (71, NAN)],
        "padding": ["zero", "circular"],
        "activation": ["relu", "silu"],
        "gate": ["hard_sigmoid"],
        "spatial": [(7, 7)],
    }
)
BAD_ELEMENTS += covering(
    {
        "kernel": ["tile"],
        "c": [16],
        "where": ["x", "dy"],
        "place": [(0, NAN), (7, INF), (8, NAN), (15, INF)],
        "padding": ["zero", "circular"],
        "activation": ["identity", "relu", "silu"],
        "bn": ["none", "affine"],
        "gate": ["sigmoid", "hard_sigmoid"],
        "spatial": [(7, 7), (8, 8)],
    }
)
BAD_ELEMENTS += [
    row | {"activation": "hardswish", "where": "dy", "padding": "zero", "bn": "none"}
    for row in BAD_ELEMENTS[-2:]
]


@pytest.mark.parametrize("row", BAD_ELEMENTS, ids=label)
def test_a_bad_element_reaches_what_autograd_poisons(row: Row) -> None:
    kernel, activation, (channel, value) = row["kernel"], row["activation"], row["place"]
    site = site_of(row | {"layout": KERNELS[kernel], "dtype": torch.float32, "k": 5, "gain": 1.0})
    dy = torch.empty_like(site.x).copy_(torch.randn(site.x.shape))
    {"x": site.x, "dy": dy}[row["where"]][1, channel, -1, -1] = value
    step = Step(site, dy, bits=activation == "relu", moments=kernel == "tile", store_p=True)
    got = step.backward(kernel, FOUR_SMS if kernel == "tile" else MANY_SMS)
    native = step.to(torch.float64).by_torch()
    for name in got.keys() & {"d_x", "d_residual", "d_gate", "p_sum", "p_dot_x"}:
        if site.bn is None:
            assert same_special_values(got[name], native[name]), name
        else:  # d_gate is of two sums, which may be infinite with opposite signs
            assert torch.equal(got[name].isfinite(), native[name].isfinite()), name


@on_every_kernel
@pytest.mark.parametrize("activation", ["relu", "relu6", "hardswish"])
def test_no_gradient_passes_where_torch_selects_zero(kernel: str, activation: str) -> None:
    """Not even NaN: a product with a slope of zero would let it."""
    x = -10 - LAYOUTS[KERNELS[kernel]]((1, 8, 3, 3), torch.float32).abs()
    site = Site(x, torch.zeros(3), activation=activation)
    for bits in {False, activation != "hardswish"}:
        got = Step(site, torch.full_like(x, NAN), bits, moments=True, store_p=True).backward(kernel)
        assert not got["d_x"].any()
        assert not got["d_residual"].any()


@on_both_kernels
def test_a_bad_tap_is_not_multiplied_by_padding(kernel: str) -> None:
    x, dy = (torch.ones(1, 3, 3, 16).transpose(1, -1) for _ in range(2))
    got = Step(Site(x, torch.tensor([1.0, 1.0, NAN])), dy).backward(kernel)
    assert got["d_gate"][0].isfinite().all()
    assert got["d_x"][0, :, 0, 0].isnan().all(), "of each channel but the last the gate itself is NaN"


def test_circular_bands_carry_gradients_around() -> None:
    x, dy = torch.zeros(1, 40, 7, 7).half(), torch.zeros(1, 40, 7, 7).half()
    x[0, 39, 1, 1], dy[0, 39, 1, 1] = 1.0, 1.0
    d_x = Step(Site(x, torch.ones(5).half(), circular=True), dy).by_kernels("tile", FOUR_SMS)["d_x"]
    reached = d_x.flatten(2).ne(0).all(2)[0]
    assert reached.nonzero().flatten().tolist() == [0, 1, 37, 38, 39]


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_a_bad_gradient_stays_within_reach_of_the_band(layout: str) -> None:
    site = Site(LAYOUTS[layout]((2, 40, 4, 4), torch.float32), torch.randn(1, 1, 5), activation="relu")
    dy = torch.empty_like(site.x).copy_(torch.randn(site.x.shape))
    dy[1, 20, 0, 0] = NAN
    site.x[1, 20, 0, 0] = 1.0  # so that it passes
    got = Step(site, dy, bits=True, moments=True, store_p=True).by_kernels("two_pass")
    assert got["d_x"].isnan().flatten(2).any(2).nonzero().tolist() == [[1, c] for c in (18, 19, 20, 21, 22)]
    assert got["d_residual"].isnan().sum() == 1


@on_every_kernel
def test_gradients_have_the_same_bits_every_run(kernel: str) -> None:
    x, dy = (LAYOUTS[KERNELS[kernel]]((2, 24, 7, 7), torch.float32) for _ in range(2))
    site = Site(x, torch.randn(1, 1, 5), bn=batch_norm(24, torch.float32), activation="relu")
    first, second = (Step(site, dy, True, True, True).by_kernels(kernel) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@on_both_kernels
def test_every_tensor_may_have_a_dtype_of_its_own(kernel: str) -> None:
    x, residual, dy = (LAYOUTS["channels_last"]((2, 24, 5, 5), torch.float64) for _ in range(3))
    site = Site(
        x=x.half(),
        weight=torch.randn(1, 1, 5, dtype=torch.float64),
        bn=batch_norm(24, torch.float32),
        residual=residual.float(),
        activation="gelu",
    )
    call = Step(site, dy.half(), moments=True, store_p=True)
    got, exact = call.backward(kernel), call.to(torch.float64).by_torch()
    half = torch.finfo(torch.float16).eps
    for name, of_kernel in got.items():
        assert (of_kernel - exact[name]).abs().max() <= 2 * half * exact[name].abs().max(), name


@on_both_kernels
def test_weights_of_any_stride(kernel: str) -> None:
    x, dy = (LAYOUTS["channels_last"]((2, 16, 3, 3), torch.float32) for _ in range(2))
    weight = torch.randn(1, 1, 10)[..., 1::2]
    strided, dense = (Step(Site(x, w), dy).backward(kernel)["d_x"] for w in (weight, weight.contiguous()))
    assert torch.equal(strided, dense)


def test_a_tile_writes_only_what_is_asked_for() -> None:
    step = Step(Site(torch.randn(1, 8, 4, 4), torch.randn(1, 1, 3)), torch.randn(1, 8, 4, 4))
    got = step.backward("tile")
    assert {*got} == {"d_x", "d_gate", "weight"}
    step.assert_earned(got)


@pytest.mark.parametrize("activation", ["identity", "relu", "gelu"])
@pytest.mark.parametrize("wanted", ["d_x", "d_residual", "neither"])
def test_what_nobody_needs_changes_nothing_else(wanted: str, activation: str) -> None:
    x, residual, dy = (torch.randn(3, 16, 8, 8) for _ in range(3))
    site = Site(x, torch.randn(1, 1, 5), residual=residual, activation=activation)
    step = Step(site, dy, bits=activation == "relu", moments=True, store_p=activation != "identity")
    everything, call = step.backward("two_pass"), step.call()
    call = replace(call, **{name: None for name in ("d_x", "d_residual") if name != wanted})
    launch_two_pass.backward(call)
    assert ("d_x" in call.outputs) == (wanted == "d_x")
    for name, got in call.outputs.items():
        if name.startswith("d_"):
            torch.testing.assert_close(got, everything[name])
        else:
            assert torch.equal(got, everything[name])


SOME = ["contiguous", "channels_last", "cropped", "expanded"]
STRIDES = covering({"x": SOME, "residual": SOME, "grad": SOME, "activation": ["relu", "silu"]})


@pytest.mark.parametrize("row", STRIDES, ids=label)
def test_any_strides_and_any_order_of_bits(row: Row) -> None:
    """The operators, which copy what the kernels cannot walk, against the reference in float64."""
    names, activation = ("x", "residual", "grad"), row["activation"]
    maps = [LAYOUTS[row[name]]((2, 8, 3, 5), torch.float32) for name in names]
    weight = torch.randn(3)

    def run(order: str, x: Tensor, residual: Tensor, grad: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
        options = {"activation": activation, "mask_order": order}
        out, pooled, mask = ECA_FORWARD(x, weight, residual=residual, **options)
        site = (x, weight, None, None, None, None, None, residual, pooled)
        masks = (None,) if order == "none" else (mask,)
        return out, mask, *ECA_BACKWARD(grad, *site, *masks, wants_residual=True, **options)

    double = [tensor.double() for tensor in (*maps, weight)]
    for order in ("contiguous", "channels_last") if activation == "relu" else ("none",):
        for got, exact in zip(run(order, *maps, weight), run(order, *double), strict=True):
            torch.testing.assert_close(got.double(), exact.double(), rtol=1e-4, atol=1e-5)
