"""NaN and Inf reach exactly the channels that eager poisons: those within reach of the band, and no other."""

from __future__ import annotations

import pytest
import torch
from kernel_cases import ACTIVATIONS, LAYOUTS, Site, batch_norm
from torch import Tensor

from eca_triton.launch import forward as launch_forward

pytestmark = pytest.mark.filterwarnings(
    "ignore:invalid value encountered:RuntimeWarning"
)  # that is the point

NAN, INF = float("nan"), float("inf")


def assert_same_special_values(got: Tensor, native: Tensor) -> None:
    assert torch.equal(got.isnan(), native.isnan())
    assert torch.equal(got.isposinf(), native.isposinf())
    assert torch.equal(got.isneginf(), native.isneginf())


# Channel 15 ends a block of 16, 16 begins one; rows of 49 elements share their vectors with their neighbours.
@pytest.mark.parametrize("channel", [0, 15, 16, 47])
@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("spatial", [(7, 7), (8, 8)], ids=["odd", "even"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_one_bad_element(layout: str, spatial: tuple[int, int], value: float, channel: int) -> None:
    torch.manual_seed(0)
    x = LAYOUTS[layout]((2, 48, *spatial), torch.float32)
    x[1, channel, -1, -1] = value
    site = Site(x=x, weight=torch.randn(1, 1, 5))
    gates, out = site.by_torch()
    assert_same_special_values(site.gates_by_kernel(), gates)
    for function in (launch_forward.eca, launch_forward.pool_and_rescale):
        assert_same_special_values(site.map_by_kernel(function), out)


@pytest.mark.parametrize("channel", [0, 18])
def test_circular_padding_carries_nan_around(channel: int) -> None:
    x = torch.zeros(1, 19, 3, 3)
    x[0, channel, 1, 1] = NAN
    gates = Site(x=x, weight=torch.ones(5), circular=True).gates_by_kernel()
    reached = {(channel + shift) % 19 for shift in (-2, -1, 0, 1, 2)}
    assert set(gates[0].isnan().nonzero().flatten().tolist()) == reached


def test_zero_padding_stops_nan_at_the_edge() -> None:
    x = torch.zeros(1, 19, 3, 3)
    x[0, 0, 1, 1] = NAN
    gates = Site(x=x, weight=torch.ones(5)).gates_by_kernel()
    assert gates[0].isnan().nonzero().flatten().tolist() == [0, 1, 2]


def test_a_bad_tap_is_not_multiplied_by_padding() -> None:
    """Eager itself differs here from one convolution algorithm to the next."""
    gates = Site(torch.ones(1, 9, 3, 3), torch.tensor([NAN, 1.0, 1.0])).gates_by_kernel()
    assert gates[0].isnan().tolist() == [False] + 8 * [True]


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("pre_activation", ["identity", "relu", "silu"])
def test_activations_treat_nan_and_inf_as_torch(pre_activation: str, activation: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 6, 4, 4)
    x[0, :3, 0, 0] = torch.tensor([NAN, INF, -INF])
    residual = torch.zeros_like(x)
    residual[0, 3:, 1, 1] = torch.tensor([NAN, INF, -INF])
    site = Site(x, torch.randn(1), pre_activation=pre_activation, residual=residual, activation=activation)
    gates, out = site.to(
        torch.float64
    ).by_torch()  # on CPUs the vectorised gelu(inf) of fp32 is NaN; on GPUs inf
    assert_same_special_values(site.gates_by_kernel(), gates)
    for function in (launch_forward.eca, launch_forward.pool_and_rescale):
        assert_same_special_values(site.map_by_kernel(function), out)


@pytest.mark.parametrize("gate", ["sigmoid", "hard_sigmoid"])
def test_batch_norm_keeps_nan_in_its_channel(gate: str) -> None:
    torch.manual_seed(0)
    mean, var, weight, bias = batch_norm(8, torch.float32)
    weight[3] = NAN
    site = Site(torch.randn(1, 8, 5, 5), torch.randn(3), bn=(mean, var, weight, bias), gate=gate)
    gates, out = site.by_torch()
    assert gates[0].isnan().nonzero().flatten().tolist() == [2, 3, 4]
    assert_same_special_values(site.gates_by_kernel(), gates)
    assert_same_special_values(site.map_by_kernel(), out)
