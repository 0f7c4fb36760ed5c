"""The register tile in training: what its forward saves, and its backward against float64 autograd."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from kernel_cases import Site, assert_earned, batch_norm, covering, label
from torch import Tensor

from eca_triton import launch
from eca_triton.call import BackwardCall
from eca_triton.launch_backward import tile_backward
from eca_triton.tuning.config import Device
from eca_triton.tuning.layout import common_layout
from eca_triton.tuning.tile import tile_config
from eca_triton.tuning.tile_backward import TileBackwardConfig, tile_backward_config

pytestmark = pytest.mark.filterwarnings("ignore:(invalid value|overflow) encountered:RuntimeWarning")

FEW_SMS = Device(num_sms=2, warp_size=32)  # many channels per program
MANY_SMS = Device(num_sms=8, warp_size=32)  # few, so that most neighbours are in the halo
NAN, INF = float("nan"), float("inf")

Gradients = dict[str, Tensor]


def by_torch(site: Site, dy: Tensor) -> Gradients:
    """By autograd, in the site's dtype."""
    x = site.x.detach().requires_grad_()
    residual = torch.zeros_like(x) if site.residual is None else site.residual
    residual = residual.detach().requires_grad_()
    gates, out = replace(site, x=x, residual=residual).by_torch()
    d_x, p, d_gate = torch.autograd.grad(out, (x, residual, gates), dy)
    centred = site.x if site.bn is None else site.x - site.bn[0].reshape(-1, *(1 for _ in x.shape[2:]))
    return {
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


def saved(site: Site, device: Device, bits: bool) -> tuple[Tensor, Tensor | None]:
    """The forward's pooled and mask, which start as something else."""
    x = site.x
    n, c = x.shape[:2]
    itemsize = x.element_size()
    layout = common_layout(x.shape, x.stride())
    config = tile_config(layout, itemsize, itemsize, site.weight.numel(), device, bits)
    assert config is not None
    pooled = torch.full((n, c), NAN)
    mask = torch.full((n, x[0].numel() // 8), 0b10011010, dtype=torch.uint8) if bits else None
    out = torch.empty_like(x).fill_(NAN)
    launch.tile(site.call(out)._replace(pooled=pooled, mask=mask), config)
    assert_earned(out, site.by_torch()[1], site.to(torch.float64).by_torch()[1])
    return pooled, mask


def by_kernels(site: Site, dy: Tensor, device: Device, bits: bool) -> Gradients:
    """By the forward and the backward kernel, into buffers full of NaN."""
    config = config_of(site, device, bits)
    assert config is not None
    pooled, mask = saved(site, device, bits)
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
    return maps | vectors


def assert_exact(site: Site, dy: Tensor, got: Gradients) -> None:
    """As exact as autograd in fp32, but for one rounding to the dtype of each output."""
    exact, fp32 = by_torch(site.to(torch.float64), dy.double()), by_torch(site.to(torch.float32), dy.float())
    for name, value in got.items():
        assert_earned(value, fp32[name], exact[name])


CASES = covering(
    {
        "dtype": [torch.float32, torch.float16, torch.bfloat16],
        "k": [1, 3, 5, 7, 9],
        "c": [8, 19, 40],
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
    n = 1 if row["spatial"] == (28, 28) else 2
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
    if config_of(site, device, bits) is None:
        assert row["k"] - 1 > c // 2, "only where the halo outweighs the map"
        return
    assert_exact(site, dy, by_kernels(site, dy, device, bits))
