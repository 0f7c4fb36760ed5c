"""The two-pass kernels of a training step against float64 autograd, and what they do with any strides."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from kernel_cases import ACTIVATIONS, LAYOUTS, Site, assert_earned, batch_norm, covering, label
from torch import Tensor

from eca_triton.launch import training as launch_training
from eca_triton.launch import two_pass as launch_two_pass
from eca_triton.launch.call import BackwardCall
from eca_triton.ops.schema_training import ECA_BACKWARD, ECA_FORWARD, mask_order_for
from eca_triton.reference import training as reference_training

pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # NaN on purpose

CASES = covering(
    {
        "dtype": [torch.float32, torch.float16, torch.bfloat16],
        "layout": ["contiguous", "channels_last"],
        "n": [2, 5],
        "k": [1, 5, 9],
        "c": [1, 8, 19],
        "spatial": [(1, 1), (7, 7), (8, 8), (3, 2, 4)],
        "bn": ["none", "affine", "not affine"],
        "gate": ["sigmoid", "hard_sigmoid"],
        "padding": ["zero", "circular"],
        "bias": [False, True],
        "residual": [False, True],
        "activation": list(ACTIVATIONS),
    }
)


def site_of(row: dict[str, object]) -> Site:
    torch.manual_seed(0)
    dtype, c, k = row["dtype"], row["c"], row["k"]
    shape = (row["n"], c, *row["spatial"])
    return Site(
        x=LAYOUTS[row["layout"]](shape, dtype) + 0.5,
        weight=torch.randn(1, 1, k).to(dtype),
        bias=torch.randn(1).to(dtype) if row["bias"] else None,
        bn=None if row["bn"] == "none" else batch_norm(c, dtype, affine=row["bn"] == "affine"),
        circular=row["padding"] == "circular" and k // 2 <= c,
        gate=row["gate"],
        gain=0.7,
        residual=LAYOUTS[row["layout"]](shape, dtype) if row["residual"] else None,
        activation=row["activation"],
    )


def nan(*shape: int, like: Tensor | None = None) -> Tensor:
    return (torch.empty(shape) if like is None else torch.empty_like(like)).fill_(float("nan"))


def by_kernel(site: Site, dy: Tensor, d_x: bool = True, d_residual: bool = True) -> dict[str, Tensor]:
    """Output and gradients, into buffers full of NaN."""
    n, c = site.x.shape[:2]
    order = mask_order_for(site.x, site.residual, site.activation)
    mask = None
    if order != "none":
        mask = torch.full((n, site.x[0].numel() // 8), 0xAA, dtype=torch.uint8)
    out, pooled = nan(like=site.x), nan(n, c)
    launch_two_pass.forward(site.call(out)._replace(pooled=pooled, mask=mask))
    if mask is not None:
        stored = reference_training.unpack(mask, site.x.shape, order)
        assert torch.equal(stored, out != 0 if site.activation == "relu" else (out != 0) & (out != 6))
    call = BackwardCall(
        dy, site.x, site.weight, site.bias, site.bn, site.bn_eps, site.circular, site.gate, site.gain,
        site.residual if mask is None else None, site.activation, pooled, mask,
        d_x=nan(like=site.x) if d_x else None,
        d_residual=nan(like=site.x) if d_residual and site.activation != "identity" else None,
        d_gate=nan(n, c), p_sum=nan(n, c), p_dot_x=nan(n, c),
    )  # fmt: skip
    launch_two_pass.backward(call)
    _, _, bn_weight, bn_bias = site.bn or (None,) * 4
    parameters = {"weight": site.weight, "bias": site.bias, "bn_weight": bn_weight, "bn_bias": bn_bias}
    gradients = {name: None if p is None else nan(like=p) for name, p in parameters.items()}
    launch_training.parameter_gradients(call, *gradients.values())
    gradients |= {"x": call.d_x, "residual": dy if site.activation == "identity" else call.d_residual}
    return {"out": out} | {name: tensor for name, tensor in gradients.items() if tensor is not None}


def by_autograd(site: Site, dy: Tensor) -> dict[str, Tensor]:
    """The same in plain torch, every step in the site's dtype."""
    tensors = {"x": site.x, "weight": site.weight, "bias": site.bias, "residual": site.residual}
    if site.bn is not None:
        tensors |= {"bn_weight": site.bn[2], "bn_bias": site.bn[3]}
    leaves = {name: t.detach().requires_grad_() for name, t in tensors.items() if t is not None}
    bn = site.bn and (*site.bn[:2], leaves.get("bn_weight"), leaves.get("bn_bias"))
    own = {name: leaves[name] for name in ("x", "weight", "bias", "residual") if name in leaves}
    out = replace(site, bn=bn, **own).by_torch()[1]
    out.backward(dy)
    return {"out": out.detach()} | {name: leaf.grad for name, leaf in leaves.items()}


def assert_all_earned(got: dict[str, Tensor], site: Site, dy: Tensor) -> None:
    native, exact = by_autograd(site, dy), by_autograd(site.to(torch.float64), dy.double())
    for name in exact.keys() & got.keys():
        assert_earned(got[name], native[name], exact[name])


@pytest.mark.parametrize("row", CASES, ids=label)
def test_gradients_are_as_exact_as_eager(row: dict[str, object]) -> None:
    site = site_of(row)
    # Positive: sums over the map that cancel would be known to many ulps of theirs only, by luck or not.
    dy = torch.empty_like(site.x).copy_(torch.rand(site.x.shape))
    got = by_kernel(site, dy)
    assert got.keys() >= by_autograd(site, dy).keys()
    assert_all_earned(got, site, dy)


def site_with_everything(activation: str, shape: tuple[int, ...] = (3, 16, 8, 8)) -> tuple[Site, Tensor]:
    torch.manual_seed(0)
    x, residual, dy = (torch.randn(shape) for _ in range(3))
    vectors = batch_norm(shape[1], torch.float32)
    return Site(x, torch.randn(1, 1, 5), None, vectors, residual=residual, activation=activation), dy


@pytest.mark.parametrize("activation", ["identity", "relu", "gelu"])
@pytest.mark.parametrize("wanted", ["d_x", "d_residual", "neither"])
def test_what_nobody_needs_changes_nothing_else(wanted: str, activation: str) -> None:
    site, dy = site_with_everything(activation)
    everything = by_kernel(site, dy)
    got = by_kernel(site, dy, wanted == "d_x", wanted == "d_residual")
    for name in ("weight", "bn_weight", "bn_bias"):
        assert torch.equal(got[name], everything[name])
    assert ("x" in got) == (wanted == "d_x")
    if wanted == "d_x":
        torch.testing.assert_close(got["x"], everything["x"])


def test_gradients_have_the_same_bits_every_run() -> None:
    site, dy = site_with_everything("relu6", (3, 20, 12, 12))
    first, second = by_kernel(site, dy), by_kernel(site, dy)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_a_bad_gradient_stays_within_reach_of_the_band(layout: str) -> None:
    torch.manual_seed(0)
    site = Site(LAYOUTS[layout]((2, 40, 4, 4), torch.float32), torch.randn(1, 1, 5), activation="relu")
    dy = torch.empty_like(site.x).copy_(torch.randn(site.x.shape))
    dy[1, 20, 0, 0] = float("nan")
    site.x[1, 20, 0, 0] = 1.0  # so that it passes
    got = by_kernel(site, dy)
    reached = got["x"].isnan().flatten(2).any(2).nonzero().tolist()
    assert reached == [[1, c] for c in (18, 19, 20, 21, 22)]
    assert got["residual"].isnan().sum() == 1


SOME = ["contiguous", "channels_last", "cropped", "expanded"]
STRIDES = covering({"x": SOME, "residual": SOME, "grad": SOME, "relu": [True, False]})


@pytest.mark.parametrize("row", STRIDES, ids=label)
def test_any_strides_and_any_order_of_bits(row: dict[str, object]) -> None:
    """The operators, which copy what the kernels cannot walk, against the reference in float64."""
    torch.manual_seed(0)
    x, residual, grad = (
        LAYOUTS[row[name]]((2, 8, 3, 5), torch.float32) for name in ("x", "residual", "grad")
    )
    orders = ("contiguous", "channels_last") if row["relu"] else ("none",)
    weight, options = torch.randn(3), {"activation": "relu" if row["relu"] else "silu"}
    double = [t.double() for t in (x, weight, residual, grad)]
    for order in orders:

        def run(
            x: Tensor, weight: Tensor, residual: Tensor, grad: Tensor, order: str = order
        ) -> tuple[Tensor, ...]:
            options["mask_order"] = order
            out, pooled, mask = ECA_FORWARD(x, weight, residual=residual, **options)
            site = (x, weight, None, None, None, None, None, residual, pooled)
            masks = (None,) if order == "none" else (mask,)
            return out, mask, *ECA_BACKWARD(grad, *site, *masks, wants_residual=True, **options)

        for got, exact in zip(run(x, weight, residual, grad), run(*double), strict=True):
            torch.testing.assert_close(got.double(), exact.double(), rtol=1e-4, atol=1e-5)
