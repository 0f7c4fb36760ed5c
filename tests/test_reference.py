"""The reference against the eager block in float64, and its rules for NaN and infinite values."""

import eager_block
import pytest
import torch
from eager_block import assert_as_good_as, eager_eca, eager_gate, to_double

from eca_triton import reference
from eca_triton.activations import ACTIVATIONS
from eca_triton.reference.arguments import SiteArguments

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
SITES = {
    "plain": {},
    "circular": {"circular": True},
    "hard sigmoid": {"gate": "hard_sigmoid"},
    "batch norm": {"bn": "affine"},
    "batch norm without affine": {"bn": "plain", "bn_eps": 1e-3},
    "batch norm, relu": {"bn": "affine", "pre_activation": "relu"},
    "silu": {"pre_activation": "silu"},
}


def batch_norm(kind, channels, dtype=torch.float32):
    mean, weight, bias = torch.randn(3, channels, dtype=dtype)
    var = torch.rand(channels, dtype=dtype) + 0.5
    return (mean, var, weight, bias) if kind == "affine" else (mean, var, None, None)


def gate(x, weight, bias=None, *, bn=(None,) * 4, **options):
    return reference.gate(SiteArguments(x, weight, bias, *bn, **options))


def eca(x, weight, bias=None, *, bn=(None,) * 4, **options):
    return reference.eca(SiteArguments(x, weight, bias, *bn, **options))


def options_of(site, channels):
    options = dict(SITES[site])
    if "bn" in options:
        options["bn"] = batch_norm(options["bn"], channels)
    return options


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("site", SITES)
def test_is_at_least_as_exact_as_eager(site, dtype):
    x = torch.randn(3, 19, 7, 5).to(dtype)
    tensors = x, torch.randn(1, 1, 5).to(dtype), torch.randn(1).to(dtype)
    options = options_of(site, 19)
    tail = {"gain": 2.0, "residual": torch.randn_like(x), "activation": "gelu"}
    for ours, eager, given in (
        (gate, eager_gate, options),
        (eca, eager_eca, options | tail),
    ):
        got, native = (block(*tensors, **given) for block in (ours, eager))
        assert got.dtype == dtype
        assert_as_good_as(got, native, eager(*to_double(tensors), **to_double(given)))


@pytest.mark.parametrize("site", SITES)
def test_computes_in_float64_for_float64_with_every_activation(site):
    x, weight = torch.randn(2, 6, 3, 4).double() * 6, torch.randn(1, 1, 3).double()
    residual, options = torch.randn_like(x) * 4, to_double(options_of(site, 6))
    for activation in ACTIVATIONS:
        tail = {"gain": 0.5, "residual": residual, "activation": activation}
        got, wanted = (block(x, weight, **options, **tail) for block in (eca, eager_eca))
        torch.testing.assert_close(got, wanted, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("shape", [(2, 1, 4), (1, 2, 1, 1), (2, 19, 3, 5), (2, 142, 2, 3, 2)], ids=str)
def test_any_channels_taps_and_spatial_dims(shape):
    for k in (1, 3, 5, 7, 9):
        x, weight = torch.randn(shape).double(), torch.randn(k).double()
        torch.testing.assert_close(eca(x, weight), eager_eca(x, weight))


@pytest.mark.parametrize("gate", ["sigmoid", "hard_sigmoid"])
@pytest.mark.parametrize("circular", [False, True], ids=["zeros", "circular"])
@pytest.mark.parametrize("k", [1, 3, 7])
def test_backward_is_autograd_of_eager(k, circular, gate):
    pooled = torch.randn(4, 9, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(1, 1, k, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(1, dtype=torch.float64, requires_grad=True)
    grad = torch.randn(4, 9, dtype=torch.float64)
    g = eager_block.eager_gate_from_pool(pooled * 3, weight, bias, circular=circular, gate=gate)
    wanted = torch.autograd.grad(g, (pooled, weight, bias), grad)
    d_pooled, d_weight, d_bias = reference.gate_from_pool_backward(
        grad, pooled.detach() * 3, weight.detach(), bias.detach(), circular=circular, gate=gate
    )
    torch.testing.assert_close((d_pooled * 3, d_weight, d_bias), wanted)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")], ids=str)
@pytest.mark.parametrize("circular", [False, True], ids=["zeros", "circular"])
@pytest.mark.parametrize("weight", [[0.5, -1.0, 0.0], [2.0], [-1.0, 0.0, 0.5, 0.0, 1.0]], ids=len)
def test_poison_spreads_to_the_channels_of_eager(weight, circular, value):
    x, weight = torch.randn(2, 11, 3, 3), torch.tensor(weight)
    x[0, 4, 1, 1] = value
    x[1, 10, 0, 0] = value
    got = eca(x, weight, circular=circular, activation="relu")
    torch.testing.assert_close(
        got, eager_eca(x, weight, circular=circular, activation="relu"), equal_nan=True
    )


def test_sums_of_half_precision_maps_neither_overflow_nor_drift():
    x, weight = torch.full((1, 1, 300, 300), 60000.0, dtype=torch.float16), torch.tensor([1e-5])
    g = gate(x, weight, out_dtype=torch.float32)
    torch.testing.assert_close(g, torch.sigmoid(torch.tensor([[0.6]])))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_nothing_between_load_and_store_is_rounded_to_half_precision(dtype):
    x, weight = torch.randn(2, 19, 7, 5).to(dtype), torch.randn(5).to(dtype)
    for ours, eager in ((gate, eager_gate), (eca, eager_eca)):
        got = ours(x, weight, out_dtype=torch.float32)
        torch.testing.assert_close(got, eager(x.float(), weight.float()), rtol=1e-5, atol=1e-6)
