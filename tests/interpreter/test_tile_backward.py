"""The register tile in training: what its forward saves, and its backward against float64 autograd."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from kernel_cases import Site, assert_earned, batch_norm, covering, label
from torch import Tensor

from eca_triton.launch import forward as launch_forward
from eca_triton.launch.backward import tile_backward
from eca_triton.launch.call import BackwardCall
from eca_triton.tuning.config import Device
from eca_triton.tuning.families.tile import TileBackwardConfig, tile_backward_config, tile_config
from eca_triton.tuning.layout import common_layout

pytestmark = pytest.mark.filterwarnings("ignore:(invalid value|overflow) encountered:RuntimeWarning")

FEW_SMS = Device(num_sms=2, warp_size=32)  # many channels per program
MANY_SMS = Device(num_sms=4, warp_size=32)  # few, so that most neighbours are in the halo
NAN, INF = float("nan"), float("inf")

Gradients = dict[str, Tensor]  # and the map itself


def by_torch(site: Site, dy: Tensor) -> Gradients:
    """By autograd, in the site's dtype."""
    x = site.x.detach().requires_grad_()
    residual = torch.zeros_like(x) if site.residual is None else site.residual
    residual = residual.detach().requires_grad_()
    gates, out = replace(site, x=x, residual=residual).by_torch()
    d_x, p, d_gate = torch.autograd.grad(out, (x, residual, gates), dy)
    centred = site.x if site.bn is None else site.x - site.bn[0].reshape(-1, *(1 for _ in x.shape[2:]))
    return {
        "out": out.detach(),
        "d_x": d_x,
        "d_residual": p,
        "d_gate": d_gate,
        "p_sum": p.flatten(2).sum(2),
        "p_dot_x": (p * centred).flatten(2).sum(2),
    }


def config_of(site: Site, device: Device, bits: bool) -> TileBackwardConfig | None:
    layout = common_layout(site.x.shape, site.x.stride())
    itemsize = site.x.element_size()
    recomputed = site.activation != "identity" and not bits
    return tile_backward_config(layout, itemsize, itemsize, site.weight.numel(), bits, recomputed, device)


def forward(site: Site, device: Device, bits: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """The forward kernel's map, pooled and mask, which start as something else."""
    x = site.x
    n, c = x.shape[:2]
    itemsize = x.element_size()
    layout = common_layout(x.shape, x.stride())
    config = tile_config(layout, itemsize, itemsize, site.weight.numel(), device, bits)
    assert config is not None
    pooled = torch.full((n, c), NAN)
    mask = torch.full((n, x[0].numel() // 8), 0b10011010, dtype=torch.uint8) if bits else None
    out = torch.empty_like(x).fill_(NAN)
    launch_forward.tile(site.call(out)._replace(pooled=pooled, mask=mask), config)
    return out, pooled, mask


def by_kernels(site: Site, dy: Tensor, device: Device, bits: bool) -> Gradients:
    """By the forward and the backward kernel, into buffers full of NaN."""
    config = config_of(site, device, bits)
    assert config is not None
    out, pooled, mask = forward(site, device, bits)
    vectors = {name: torch.full_like(pooled, NAN) for name in ("d_gate", "p_sum", "p_dot_x")}
    maps = {name: torch.full_like(site.x, NAN) for name in ("d_x", "d_residual")}
    recomputed = site.activation != "identity" and not bits
    tile_backward(
        BackwardCall(
            dy=dy, x=site.x, weight=site.weight, bias=site.bias, bn=site.bn, bn_eps=site.bn_eps,
            circular=site.circular, gate=site.gate, gain=site.gain,
            residual=site.residual if recomputed else None, activation=site.activation,
            pooled=pooled, mask=mask, **maps, **vectors,
        ),
        config,
    )  # fmt: skip
    return {"out": out} | maps | vectors


def assert_exact(site: Site, dy: Tensor, got: Gradients) -> None:
    """As exact as autograd in fp32, but for one rounding to the dtype of each output."""
    exact, fp32 = by_torch(site.to(torch.float64), dy.double()), by_torch(site.to(torch.float32), dy.float())
    for name, value in got.items():
        assert_earned(value, fp32[name], exact[name])


CASES = covering(
    {
        "dtype": [torch.float32, torch.float16, torch.bfloat16],
        "k": [1, 3, 5, 7, 9],
        "c": [8, 19, 24],
        "spatial": [(7, 7), (14, 14), (28, 28), (3, 4, 5)],
        "bn": [False, True],
        "gate": ["sigmoid", "hard_sigmoid"],
        "padding": ["zero", "circular"],
        "residual": [False, True],
        "activation": ["identity", "relu", "relu6", "silu", "gelu", "hardswish"],
        "bits": [True, False],
        "bias_and_gain": [False, True],
        "device": ["few_sms", "many_sms"],
    }
)


@pytest.mark.parametrize("row", CASES, ids=label)
def test_gradients_are_exact(row: dict[str, object]) -> None:
    torch.manual_seed(0)
    dtype, c = row["dtype"], row["c"]
    n = 1 if row["spatial"] in ((14, 14), (28, 28)) else 2
    x, dy, residual = (torch.randn(n, c, *row["spatial"]).to(dtype) for _ in range(3))
    site = Site(
        x=x,
        weight=torch.randn(1, 1, row["k"]).to(dtype),
        bias=torch.randn(1).to(dtype) if row["bias_and_gain"] else None,
        bn=batch_norm(c, dtype) if row["bn"] else None,
        circular=row["padding"] == "circular",
        gate=row["gate"],
        gain=2.0 if row["bias_and_gain"] else 1.0,
        residual=residual if row["residual"] else None,
        activation=row["activation"],
    )
    bits = row["bits"] and row["activation"] in ("relu", "relu6") and x[0].numel() % 8 == 0
    device = FEW_SMS if row["device"] == "few_sms" else MANY_SMS
    assert_exact(site, dy, by_kernels(site, dy, device, bits))


@pytest.mark.parametrize("activation", ["identity", "relu"])
def test_long_rows_in_several_blocks_and_a_tail(activation: str) -> None:
    torch.manual_seed(0)
    x, dy, residual = (torch.randn(1, 6, 56, 56).half() for _ in range(3))
    site = Site(x, torch.randn(1, 1, 5), residual=residual, activation=activation)
    tile = config_of(site, FEW_SMS, activation == "relu").tile
    assert tile.block_tail
    assert tile.packed
    assert tile.block_c < 6, "two programs"
    assert_exact(site, dy, by_kernels(site, dy, FEW_SMS, activation == "relu"))


@pytest.mark.parametrize("activation", ["relu", "relu6"])
@pytest.mark.parametrize("spatial", [(7, 7), (8, 8)], ids=["windows", "rows"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_bits_say_where_the_gradient_passes(
    dtype: torch.dtype, spatial: tuple[int, int], activation: str
) -> None:
    torch.manual_seed(0)
    residual = torch.randn(2, 24, *spatial).to(dtype).mul_(4)
    x = torch.randn_like(residual)
    x[0, 3, 1, 1], residual[0, 20, 2, 2] = NAN, INF
    x[1, 5], residual[1, 5] = (
        0.0,
        torch.tensor([0.0, 6.0, -0.0]).repeat(22)[: x[1, 5].numel()].reshape(spatial),
    )
    site = Site(x, torch.randn(1, 1, 3).to(dtype), residual=residual, activation=activation)
    u = replace(site, activation="identity").to(torch.float64).by_torch()[1]
    passes = ~(u <= 0) if activation == "relu" else ~((u <= 0) | (u >= 6))
    _, pooled, mask = forward(site, MANY_SMS, bits=True)
    bits = (mask[:, :, None] >> torch.arange(8)) & 1
    assert torch.equal(bits.flatten(1).bool(), passes.flatten(1))
    torch.testing.assert_close(pooled, x.float().flatten(2).mean(2), equal_nan=True)


@pytest.mark.parametrize("spatial", [(7, 7), (8, 8)], ids=["windows", "rows"])
def test_bits_and_recomputation_agree(spatial: tuple[int, int]) -> None:
    torch.manual_seed(0)
    x, dy, residual = (torch.randn(1, 24, *spatial).half() for _ in range(3))
    site = Site(
        x, torch.randn(1, 1, 5), bn=batch_norm(24, torch.float32), residual=residual, activation="relu"
    )
    stored, again = (by_kernels(site, dy, FEW_SMS, bits) for bits in (True, False))
    assert torch.equal(stored["d_residual"], again["d_residual"])
    for name in ("d_x", "d_gate", "p_sum", "p_dot_x"):
        torch.testing.assert_close(stored[name], again[name])


@pytest.mark.parametrize("value", [NAN, INF], ids=["nan", "inf"])
@pytest.mark.parametrize(
    ("where", "channel", "element", "spatial", "activation", "gate"),
    [
        ("x", 0, 0, (7, 7), "identity", "sigmoid"),
        ("x", 7, -1, (8, 8), "relu", "hard_sigmoid"),
        ("x", 8, 0, (7, 7), "silu", "sigmoid"),
        ("dy", 7, -1, (7, 7), "relu", "hard_sigmoid"),
        ("dy", 8, 0, (8, 8), "hardswish", "sigmoid"),
    ],
)
def test_bad_elements_reach_what_they_reach_in_torch(
    where: str,
    channel: int,
    element: int,
    spatial: tuple[int, int],
    activation: str,
    gate: str,
    value: float,
) -> None:
    """Blocks of 8 meet after channel 7. A bad dy where the activation is flat reaches nothing."""
    torch.manual_seed(0)
    x, dy, residual = (torch.randn(2, 16, *spatial) for _ in range(3))
    {"x": x, "dy": dy}[where].flatten(2)[1, channel, element] = value
    if activation in ("relu", "hardswish"):
        dy[0, 3], residual[0, 3] = value, -100.0
    bn = None if activation == "identity" else batch_norm(16, torch.float32)
    site = Site(x, torch.randn(1, 1, 5), bn=bn, gate=gate, residual=residual, activation=activation)
    got = by_kernels(site, dy, MANY_SMS, bits=activation == "relu")
    native = by_torch(site.to(torch.float64), dy.double())
    for name in got:
        assert torch.equal(got[name].isfinite(), native[name].isfinite()), name
        if bn is None:  # with it, d_gate is of two sums, which may be infinite with opposite signs
            assert torch.equal(got[name].isnan(), native[name].isnan()), name


def test_circular_bands_carry_gradients_around() -> None:
    x, dy = torch.zeros(1, 40, 7, 7).half(), torch.zeros(1, 40, 7, 7).half()
    x[0, 39, 1, 1], dy[0, 39, 1, 1] = 1.0, 1.0
    site = Site(x, torch.ones(5).half(), circular=True)
    d_x = by_kernels(site, dy, MANY_SMS, bits=False)["d_x"]
    reached = d_x.flatten(2).ne(0).all(2)[0]
    assert reached.nonzero().flatten().tolist() == [0, 1, 37, 38, 39]


def test_gradients_have_the_same_bits_every_run() -> None:
    torch.manual_seed(0)
    site = Site(torch.randn(2, 24, 7, 7), torch.randn(1, 1, 5), activation="relu")
    dy = torch.randn_like(site.x)
    first, second = (by_kernels(site, dy, FEW_SMS, bits=True) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_only_what_is_asked_for_is_written() -> None:
    site = Site(torch.randn(1, 8, 4, 4), torch.randn(1, 1, 3))
    dy, d_x, d_gate = torch.randn_like(site.x), torch.empty_like(site.x), torch.empty(1, 8)
    _, pooled, _ = forward(site, FEW_SMS, bits=False)
    call = BackwardCall(
        dy, site.x, site.weight, None, None, 0.0, False, "sigmoid", 1.0, None, "identity",
        pooled, None, d_x, None, d_gate, None, None,
    )  # fmt: skip
    tile_backward(call, config_of(site, FEW_SMS, bits=False))
    assert_exact(site, dy, {"d_x": d_x, "d_gate": d_gate})
