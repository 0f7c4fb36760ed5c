"""Gates and maps by every forward kernel: as exact as eager mode, in every layout, and where NaN goes."""

from __future__ import annotations

import pytest
import torch
from eager_block import ACTIVATIONS, eager_gate_from_pool
from kernel_cases import (
    FEW_SMS,
    INF,
    LAYOUTS,
    MANY_SMS,
    NAN,
    SOME_SMS,
    Row,
    Site,
    assert_earned,
    batch_norm,
    covering,
    label,
    same_special_values,
    site_of,
)
from one_launch import config_of

from eca_triton.launch import devices
from eca_triton.launch import gates as launch_gates
from eca_triton.reference.arguments import PoolArguments
from eca_triton.tuning.config import Device
from eca_triton.tuning.families.passes import pass_config
from eca_triton.tuning.layout import common_layout
from eca_triton.tuning.problem import PassProblem

pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # NaN on purpose

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
TWO_PASSES = ["two_pass", "chosen"]
CHANNELS_LAST = ["tile_channels_last", "lagged"]

OPTIONS = {
    "dtype": DTYPES,
    "bn": ["none", "affine", "plain"],
    "before": ["identity", "silu", "relu"],
    "gate": ["sigmoid", "hard_sigmoid"],
    "padding": ["zero", "circular"],
    "bias": [False, True],
    "gain": [2.0, 1.0],
    "activation": list(ACTIVATIONS),
}
CASES = covering(
    OPTIONS
    | {
        "kernel": TWO_PASSES,
        "layout": list(LAYOUTS),
        "k": [1, 3, 5, 7, 9],
        "c": [1, 2, 3, 19, 142, 2047],
        "spatial": [(1, 1), (7, 7), (16, 16), (49, 3), (33,), (3, 4, 5)],
        "residual": [False, True, "contiguous"],
    }
)
CASES += covering(
    OPTIONS
    | {
        "kernel": ["tile"],
        "layout": ["contiguous"],
        "k": [1, 5, 9],
        "c": [8, 19, 40],
        "spatial": [(1, 1), (3,), (7, 7), (14, 14), (3, 4, 5)],
        "residual": [False, True],
        "device": [FEW_SMS, SOME_SMS],
    }
)
CASES += covering(
    OPTIONS
    | {
        "kernel": CHANNELS_LAST,
        "layout": ["channels_last"],
        "k": [1, 3, 5, 9, 17],
        "c": [8, 24, 72, 160],
        "spatial": [(1, 1), (7, 7), (14, 14), (33,), (3, 4, 5)],
        "residual": [False, True],
        "device": [FEW_SMS, MANY_SMS],
    }
)


@pytest.mark.parametrize("row", CASES, ids=label)
def test_gates_and_maps_are_as_exact_as_eager(row: Row) -> None:
    many_channels = row["c"] > 1000  # one image and its gates alone, to keep the interpreter quick
    site = site_of(row | {"n": 1 if many_channels else 2})
    kernel, device, before = row["kernel"], row.get("device", FEW_SMS), site.to(torch.float64)
    if kernel == "tile" and config_of(kernel, site.call(torch.empty_like(site.x)), device) is None:
        assert row["k"] - 1 > row["c"] // 2, "only where the halo outweighs the map"
        return
    (native_gates, native), (exact_gates, exact) = site.by_torch(), before.by_torch()
    if not many_channels:
        assert_earned(site.map_by_kernel(kernel, device), native, exact)
    if kernel in TWO_PASSES:
        assert_earned(site.gates_by_kernel(), native_gates, exact_gates)
    assert torch.equal(site.x.double(), before.x), "inputs are never changed"


@pytest.mark.parametrize(
    ("hw", "dtype"),
    [(9, torch.float32), (25, torch.float16), (49, torch.float32), (49, torch.float16), (196, torch.float16)],
    ids=str,
)
def test_rows_read_by_aligned_windows_take_nothing_from_their_neighbours(hw: int, dtype: torch.dtype) -> None:
    x = torch.randn(2, 24, hw).to(dtype)
    vector = 16 // x.element_size()
    layout = common_layout(x.shape, x.stride())
    window = pass_config(PassProblem(layout, dtype, x.element_size(), MANY_SMS, "pool")).window
    assert window == (vector if hw % vector else 1)
    site = Site(x, torch.randn(3), bn=batch_norm(24, torch.float32), pre_activation="silu")
    gates, _ = site.to(torch.float64).by_torch()
    assert (site.gates_by_kernel(torch.float32) - gates).abs().max() < 1e-6


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("spatial", [(63, 65), (64, 64)], ids=["odd", "even"])
def test_a_map_cut_over_many_programs_gives_the_same_gates(
    layout: str, spatial: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "device_of", lambda device: MANY_SMS)
    x = LAYOUTS[layout]((1, 8, *spatial), torch.float16)
    site = Site(x, torch.randn(3), bn=batch_norm(8, torch.float32), residual=torch.randn_like(x))
    gates, out = site.to(torch.float64).by_torch()
    assert (site.gates_by_kernel(torch.float32) - gates).abs().max() < 1e-6
    assert (site.map_by_kernel() - out).abs().max() <= torch.finfo(x.dtype).eps * out.abs().max()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_tile_kept_in_16_bits_loses_nothing(dtype: torch.dtype) -> None:
    site = Site(torch.randn(1, 20, 56, 56).to(dtype), torch.randn(5).to(dtype))
    assert config_of("tile", site.call(torch.empty_like(site.x)), FEW_SMS).packed
    assert_earned(site.map_by_kernel("tile"), site.by_torch()[1], site.to(torch.float64).by_torch()[1])


@pytest.mark.parametrize(
    ("spatial", "circular", "device"),
    [
        ((24, 24), False, FEW_SMS),
        ((24, 24), True, MANY_SMS),
        ((16, 4, 8), True, FEW_SMS),
        ((16, 4, 8), False, MANY_SMS),
    ],
    ids=["2-D", "2-D-circular-many_sms", "3-D-circular", "3-D-many_sms"],
)
def test_large_contiguous_maps_lag_too(spatial: tuple[int, ...], circular: bool, device: Device) -> None:
    x = torch.randn(2, 19, *spatial).half()
    site = Site(x, torch.randn(5), circular=circular, bn=batch_norm(19, torch.float32), residual=x.flip(0))
    native, exact = (site.to(dtype).by_torch()[1] for dtype in (torch.float32, torch.float64))
    assert_earned(site.map_by_kernel("lagged", device), native, exact)


# The interpreter runs one program after the other: none finds sums that later ones make, and of the next
# image there are none at all.
@pytest.mark.parametrize(
    ("layout", "bn", "before", "ahead", "patience"),
    [
        ("contiguous", "affine", "identity", 1, 2),
        ("channels_last", "none", "identity", 0, 2),
        ("channels_last", "affine", "silu", 1, 0),
    ],
)
def test_who_waits_in_vain_forms_the_same_gates(
    layout: str, bn: str, before: str, ahead: int, patience: int
) -> None:
    row = {"layout": layout, "bn": bn, "before": before, "c": 40, "k": 5, "spatial": (24, 24)}
    site = site_of(row | {"dtype": torch.float16})
    device = Device(num_sms=12, warp_size=32)  # six tiles or more per image
    out = site.map_by_kernel("lagged", device, in_vain=(ahead, patience))
    assert out[:ahead].isnan().all(), "no program is ahead of the first"
    assert torch.equal(out[ahead:], site.map_by_kernel("lagged", device)[ahead:])


@pytest.mark.parametrize("kernel", ["chosen", *CHANNELS_LAST])
def test_every_tensor_may_have_a_dtype_of_its_own(kernel: str) -> None:
    layout = "contiguous" if kernel == "chosen" else "channels_last"
    x, residual = (LAYOUTS[layout]((2, 24, 5, 5), torch.float32) for _ in range(2))
    site = Site(
        x=x.half(),
        weight=torch.randn(5, dtype=torch.float64),
        bias=torch.randn(1).bfloat16(),
        bn=batch_norm(24, torch.float32),
        residual=residual,
    )
    gates, out = site.to(torch.float64).by_torch()
    assert (site.map_by_kernel(kernel) - out).abs().max() <= torch.finfo(torch.float16).eps * out.abs().max()
    assert (site.gates_by_kernel(torch.float32) - gates).abs().max() < 1e-6


@pytest.mark.parametrize(
    ("dtype", "circular", "gate"),
    [
        (torch.float32, False, "hard_sigmoid"),
        (torch.float16, True, "hard_sigmoid"),
        (torch.bfloat16, True, "sigmoid"),
        (torch.float32, False, "sigmoid"),
    ],
    ids=str,
)
def test_gates_from_pooled_values_of_any_stride(dtype: torch.dtype, circular: bool, gate: str) -> None:
    weight, bias = torch.randn(1, 1, 7).to(dtype), torch.randn(1).to(dtype)
    wide = torch.randn(40, 6).to(dtype)
    for pooled in (wide, wide.t(), wide.t()[::2, 1::2], wide[:1].expand(5, 6)):
        out = torch.full(pooled.shape, NAN, dtype=dtype)
        launch_gates.gate_from_pool(PoolArguments(pooled, weight, bias, circular, gate), out)
        native, exact = (
            eager_gate_from_pool(
                *(tensor.to(to) for tensor in (pooled, weight, bias)), circular=circular, gate=gate
            )
            for to in (dtype, torch.float64)
        )
        assert_earned(out, native, exact)


@pytest.mark.parametrize("kernel", ["gate", *CHANNELS_LAST])
def test_weights_of_any_stride(kernel: str) -> None:
    x, weight = LAYOUTS["channels_last"]((2, 16, 3, 3), torch.float32), torch.randn(1, 1, 10)[..., 1::2]
    sites = Site(x, weight), Site(x, weight.contiguous())
    strided, dense = (
        site.gates_by_kernel() if kernel == "gate" else site.map_by_kernel(kernel) for site in sites
    )
    assert torch.equal(strided, dense)


# Blocks of channels meet before channels 8, 16, 32 and 64; rows of 49 elements share vectors with their
# neighbours; the last channel is in a block that it does not fill.
BAD_ELEMENTS = covering(
    {
        "kernel": TWO_PASSES,
        "layout": ["contiguous", "channels_last"],
        "spatial": [(7, 7), (8, 8)],
        "c": [48],
        "channel": [0, 15, 16, 47],
        "value": [NAN, INF, -INF],
        "padding": ["zero", "circular"],
    }
)
BAD_ELEMENTS += covering(
    {
        "kernel": ["tile"],
        "layout": ["contiguous"],
        "spatial": [(7, 7), (8, 8)],
        "c": [70],
        "channel": [0, 7, 32, 69],
        "value": [NAN, INF],
        "padding": ["zero", "circular"],
        "bn": ["affine"],
        "device": [FEW_SMS, SOME_SMS],
    }
)
BAD_ELEMENTS += covering(
    {
        "kernel": CHANNELS_LAST,
        "layout": ["channels_last"],
        "spatial": [(7, 7)],
        "c": [72],
        "channel": [0, 63, 64, 71],
        "value": [NAN, INF, -INF],
        "padding": ["zero", "circular"],
        "device": [FEW_SMS, MANY_SMS],
    }
)


@pytest.mark.parametrize("row", BAD_ELEMENTS, ids=label)
def test_a_bad_element_reaches_what_eager_poisons(row: Row) -> None:
    kernel, device = row["kernel"], row.get("device", FEW_SMS)
    site = site_of(row | {"dtype": torch.float16 if kernel == "tile" else torch.float32, "k": 5, "gain": 1.0})
    site.x[1, row["channel"], -1 if row["channel"] else 0, -1 if row["channel"] else 0] = row["value"]
    gates, out = site.by_torch()
    assert same_special_values(site.map_by_kernel(kernel, device), out)
    if kernel in TWO_PASSES:
        assert same_special_values(site.gates_by_kernel(), gates)
    if kernel == "tile":
        windowed = config_of(kernel, site.call(torch.empty_like(site.x)), device).windowed
        assert windowed == (row["spatial"] == (7, 7))


@pytest.mark.parametrize("kernel", ["gate", *CHANNELS_LAST])
def test_a_bad_tap_is_not_multiplied_by_padding(kernel: str) -> None:
    """Eager itself differs here from one convolution algorithm to the next."""
    site = Site(torch.ones(1, 3, 3, 16).transpose(1, -1), torch.tensor([NAN, 1.0, 1.0]))
    out = site.gates_by_kernel() if kernel == "gate" else site.map_by_kernel(kernel)[..., 0, 0]
    assert out[0].isnan().tolist() == [False] + 15 * [True]


@pytest.mark.parametrize(
    ("before", "activation"),
    [*zip(["identity", "relu", "silu"] * 2, ACTIVATIONS, strict=True), ("relu", "gelu"), ("silu", "relu")],
)
def test_activations_treat_nan_and_inf_as_torch(before: str, activation: str) -> None:
    x = torch.randn(1, 6, 4, 4)
    x[0, :3, 0, 0] = torch.tensor([NAN, INF, -INF])
    residual = torch.zeros_like(x)
    residual[0, 3:, 1, 1] = torch.tensor([NAN, INF, -INF])
    site = Site(x, torch.randn(1), pre_activation=before, residual=residual, activation=activation)
    # In float64: on CPUs the vectorised gelu(inf) of fp32 is NaN; on GPUs inf.
    gates, out = site.to(torch.float64).by_torch()
    assert same_special_values(site.gates_by_kernel(), gates)
    for kernel in TWO_PASSES:
        assert same_special_values(site.map_by_kernel(kernel), out)


@pytest.mark.parametrize("gate", ["sigmoid", "hard_sigmoid"])
def test_batch_norm_keeps_nan_in_its_channel(gate: str) -> None:
    mean, var, weight, bias = batch_norm(8, torch.float32)
    weight[3] = NAN
    site = Site(torch.randn(1, 8, 5, 5), torch.randn(3), bn=(mean, var, weight, bias), gate=gate)
    gates, out = site.by_torch()
    assert gates[0].isnan().nonzero().flatten().tolist() == [2, 3, 4]
    assert same_special_values(site.gates_by_kernel(), gates)
    assert same_special_values(site.map_by_kernel(), out)
