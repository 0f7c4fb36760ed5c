"""gate, gate_from_pool and eca against float64, with eager's own error in the same dtype as the yardstick."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from kernel_cases import (
    ACTIVATIONS,
    LAYOUTS,
    Site,
    assert_earned,
    batch_norm,
    covering,
    gates_by_torch,
    label,
)

from eca_triton.launch import devices
from eca_triton.launch import forward as launch_forward
from eca_triton.launch import gates as launch_gates
from eca_triton.tuning.config import Device
from eca_triton.tuning.families.passes import pool_config
from eca_triton.tuning.layout import common_layout

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
H200 = Device(num_sms=132, warp_size=32)

GATE_CASES = covering(
    {
        "dtype": DTYPES,
        "layout": list(LAYOUTS),
        "k": [1, 3, 5, 7, 9],
        "c": [1, 2, 3, 19, 142, 2047],
        "spatial": [(1, 1), (7, 7), (14, 14), (49, 3), (33,), (3, 4, 5)],
        "front": ["plain", "bn", "bn_without_affine", "bn+silu", "relu", "bn+relu"],
        "gate": ["sigmoid", "hard_sigmoid"],
        "padding": ["zero", "circular"],
        "bias": [False, True],
    }
)

ECA_CASES = covering(
    {
        "dtype": DTYPES,
        "layout": list(LAYOUTS),
        "k": [1, 5, 9],
        "c": [1, 3, 19, 142],
        "spatial": [(1, 1), (7, 7), (16, 16), (33,), (3, 4, 5)],
        "front": ["plain", "bn", "bn+silu"],
        "residual": ["none", "same_layout", "contiguous"],
        "activation": list(ACTIVATIONS),
    }
)


def site_of(row: dict[str, object]) -> Site:
    """Random tensors for one combination; large maps get one image, to keep the interpreter quick."""
    torch.manual_seed(0)
    dtype, c, k = row["dtype"], row["c"], row["k"]
    shape = (1 if c > 1000 else 2, c, *row["spatial"])
    x = LAYOUTS[row["layout"]](shape, dtype)
    front = row["front"]
    residual = None
    if row.get("residual", "none") != "none":
        layout = row["layout"] if row["residual"] == "same_layout" else "contiguous"
        residual = LAYOUTS[layout](shape, dtype)
    return Site(
        x=x,
        weight=torch.randn(1, 1, k).to(dtype),
        bias=torch.randn(1).to(dtype) if row.get("bias") else None,
        bn=batch_norm(c, dtype, affine=front != "bn_without_affine") if front.startswith("bn") else None,
        pre_activation=front.rpartition("+")[2] if "lu" in front else "identity",
        # torch refuses to wrap around more than once
        circular=row.get("padding") == "circular" and k // 2 <= c,
        gate=row.get("gate", "sigmoid"),
        gain=2.0,
        residual=residual,
        activation=row.get("activation", "identity"),
    )


@pytest.mark.parametrize("row", GATE_CASES, ids=label)
def test_gates_are_as_exact_as_eager(row: dict[str, object]) -> None:
    site = site_of(row)
    native, exact = site.by_torch()[0], site.to(torch.float64).by_torch()[0]
    assert_earned(site.gates_by_kernel(), native, exact)


@pytest.mark.parametrize(
    "function", [launch_forward.eca, launch_forward.pool_and_rescale], ids=["chosen", "two_pass"]
)
@pytest.mark.parametrize("row", ECA_CASES, ids=label)
def test_maps_are_as_exact_as_eager(row: dict[str, object], function: Callable[..., None]) -> None:
    site = site_of(row)
    before = site.to(torch.float64)
    native, exact = site.by_torch()[1], before.by_torch()[1]
    assert_earned(site.map_by_kernel(function), native, exact)
    assert torch.equal(site.x.double(), before.x), "inputs are never changed"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("hw", [9, 25, 49, 196])
def test_rows_read_by_aligned_windows_take_nothing_from_their_neighbours(hw: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 24, hw).to(dtype)
    vector = 16 // x.element_size()
    expected_window = vector if hw % vector else 1
    assert pool_config(common_layout(x.shape, x.stride()), x.element_size(), H200).window == expected_window
    site = Site(x=x, weight=torch.randn(3), bn=batch_norm(24, torch.float32), pre_activation="silu")
    gates, _ = site.to(torch.float64).by_torch()
    assert (site.gates_by_kernel(torch.float32) - gates).abs().max() < 1e-6


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("spatial", [(63, 65), (64, 64)], ids=["odd", "even"])
def test_a_map_cut_over_many_programs_gives_the_same_gates(
    layout: str, spatial: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "device_of", lambda device: H200)
    torch.manual_seed(0)
    x = LAYOUTS[layout]((1, 8, *spatial), torch.float16)
    site = Site(x=x, weight=torch.randn(3), bn=batch_norm(8, torch.float32), residual=torch.randn_like(x))
    gates, out = site.to(torch.float64).by_torch()
    assert (site.gates_by_kernel(torch.float32) - gates).abs().max() < 1e-6
    assert (site.map_by_kernel() - out).abs().max() <= torch.finfo(x.dtype).eps * out.abs().max()


def test_every_tensor_may_have_a_dtype_of_its_own() -> None:
    torch.manual_seed(0)
    site = Site(
        x=torch.randn(2, 19, 5, 5).bfloat16(),
        weight=torch.randn(5, dtype=torch.float64),
        bias=torch.randn(1).half(),
        bn=batch_norm(19, torch.float32),
        residual=torch.randn(2, 19, 5, 5),
    )
    gates, out = site.to(torch.float64).by_torch()
    assert (site.gates_by_kernel(torch.float32) - gates).abs().max() < 1e-6
    assert (site.map_by_kernel() - out).abs().max() <= 2 * torch.finfo(torch.bfloat16).eps * out.abs().max()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("circular", [False, True], ids=["zero", "circular"])
@pytest.mark.parametrize("gate", ["sigmoid", "hard_sigmoid"])
def test_gates_from_pooled_values_of_any_stride(dtype: torch.dtype, circular: bool, gate: str) -> None:
    torch.manual_seed(0)
    weight, bias = torch.randn(1, 1, 7).to(dtype), torch.randn(1).to(dtype)
    wide = torch.randn(40, 6).to(dtype)
    for pooled in (wide, wide.t(), wide.t()[::2, 1::2], wide[:1].expand(5, 6)):
        out = torch.full(pooled.shape, float("nan"), dtype=dtype)
        launch_gates.gate_from_pool(pooled, weight, bias, circular, gate, out)
        native = gates_by_torch(pooled, weight, bias, circular, gate)
        exact = gates_by_torch(pooled.double(), weight.double(), bias.double(), circular, gate)
        assert_earned(out, native, exact)


def test_weights_of_any_stride() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 9, 3, 3)
    weight = torch.randn(1, 1, 10)[..., 1::2]
    site = Site(x=x, weight=weight)
    assert torch.equal(site.gates_by_kernel(), Site(x=x, weight=weight.contiguous()).gates_by_kernel())
