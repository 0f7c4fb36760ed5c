"""Batch norm that detectors freeze and spell out is one, by what it computes, and goes with its site."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import pytest
import torch
from eager_block import assert_as_good_as
from harness import Lowering, leaf
from pointwise import CHANNELS, INPUT, Bottleneck, compared, lowered
from styles import trained
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

EPS = 1e-5
Spelling = Callable[["Frozen", Tensor], Tensor]


class Frozen(FrozenBatchNorm2d):
    """Four buffers, and a way to write what they do to a map."""

    def __init__(self, spelling: Spelling) -> None:
        super().__init__(CHANNELS)
        self.spelling = spelling
        trained(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.spelling(self, x)


def detector(spelling: Spelling = FrozenBatchNorm2d.forward) -> Bottleneck:
    """conv, frozen batch norm, ECA, shortcut and ReLU of a detector's trunk."""
    network = Bottleneck()
    network.bn, network.shortcut = Frozen(spelling), nn.Conv2d(INPUT, CHANNELS, 1, bias=False)
    return network


def spread(vector: Tensor) -> Tensor:
    return vector.reshape(1, -1, 1, 1)


def spelled(scale_of: Callable[[Frozen], Tensor]) -> Spelling:
    """A scale, a shift that belongs to it, and then one product and one sum over the map."""

    def forward(bn: Frozen, x: Tensor) -> Tensor:
        scale = scale_of(bn)
        return x * spread(scale) + spread(bn.bias - bn.running_mean * scale)

    return forward


def divided(bn: Frozen, x: Tensor) -> Tensor:
    scale = (bn.weight / torch.sqrt(EPS + bn.running_var))[:, None, None]
    return (bn.bias[:, None, None] - scale * bn.running_mean[:, None, None]) + scale * x


SPELLINGS: dict[str, Spelling] = {
    "torchvision": FrozenBatchNorm2d.forward,
    "vectors first": spelled(lambda bn: bn.weight * (bn.running_var + EPS).rsqrt()),
    "without eps": spelled(lambda bn: bn.weight * bn.running_var.rsqrt()),
    "divided, shift first": divided,
}


@pytest.mark.parametrize(
    ("name", "plan"),
    [
        *(("torchvision", plan) for plan in ("block", "gate", "convblock")),
        ("vectors first", "block"), ("without eps", "gate"), ("divided, shift first", "convblock"),
    ],
)  # fmt: skip
def test_it_goes_with_the_site_in_inference(name: str, plan: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make = partial(detector, SPELLINGS[name])
    for backend in compared(make, lambda: lowered(monkeypatch, False, plan)):
        (site,) = backend.sites
        assert (site.decision.plan, "batch_norm" in site.decision.fused) == (plan, True)
        left = {str(node.target) for node in backend.nodes() if "sqrt" in str(node.target)}
        assert bool(left) == (plan == "gate")  # there the affine map stays, for Inductor to fuse


@pytest.mark.parametrize("product", [False, True], ids=["gate", "product"])
def test_its_gate_is_computed_ahead_of_the_convolution(
    product: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for backend in compared(detector, lambda: lowered(monkeypatch, product)):
        assert backend.plans == ["convfold"]
        assert len(backend.calls(torch.mm)) == product


@pytest.mark.parametrize("name", SPELLINGS)
def test_sizes_that_change_are_one_graph_more(name: str) -> None:
    network, backend = detector(SPELLINGS[name]).eval(), Lowering(device="cuda")
    exact = copy.deepcopy(network).double()
    compiled = backend.compile(network, dynamic=None)
    with torch.no_grad():
        for height, width in [(8, 12), (12, 8), (6, 10), (9, 9)]:
            u = torch.randn(1, INPUT, height, width)
            assert_as_good_as(compiled(u), network(u), exact(u.double()))
    assert len(backend.graphs) == len(backend.sites) == 2
    assert all("batch_norm" in site.decision.fused for site in backend.sites)


@pytest.mark.parametrize(("trains", "plan"), [(None, "block"), ("weight", "pool"), ("bias", "pool")])
def test_a_training_step_is_as_exact_as_eager_mode(trains: str | None, plan: str) -> None:
    """A batch norm of which a vector trains is no frozen one: its gradient is that of the arithmetic."""
    torch.manual_seed(0)
    network, backend = detector(), Lowering("aot_eager", device="cuda")
    if trains is not None:
        vector = getattr(network.bn, trains)
        delattr(network.bn, trains)
        network.bn.register_parameter(trains, nn.Parameter(vector))
    twin, exact = copy.deepcopy(network), copy.deepcopy(network).double()
    u = torch.randn(3, INPUT, 5, 4).contiguous(memory_format=torch.channels_last)
    runs = {}
    for name, run, state, dtype in [
        ("ours", backend.compile(network), network, torch.float32),
        ("eager", twin, twin, torch.float32),
        ("exact", exact, exact, torch.float64),
    ]:
        x = leaf(u.to(dtype))
        run(x).square().sum().backward()
        runs[name] = [x.grad, *(parameter.grad for parameter in state.parameters())]
    assert [site.decision.plan for site in backend.sites] == [plan]
    for ours, eager, want in zip(*runs.values(), strict=True):
        assert_as_good_as(ours, eager, want)


def mean_added(bn: Frozen, x: Tensor) -> Tensor:
    scale = bn.weight * (bn.running_var + EPS).rsqrt()
    return x * spread(scale) + spread(bn.bias + bn.running_mean * scale)


def another_eps_in_the_shift(bn: Frozen, x: Tensor) -> Tensor:
    scale, other = (bn.weight * (bn.running_var + eps).rsqrt() for eps in (EPS, 2 * EPS))
    return x * spread(scale) + spread(bn.bias - bn.running_mean * other)


def along_the_width(bn: Frozen, x: Tensor) -> Tensor:
    scale = bn.weight * (bn.running_var + EPS).rsqrt()
    return x * scale + (bn.bias - bn.running_mean * scale)


def scaled_map_kept(bn: Frozen, x: Tensor) -> Tensor:
    scale = spread(bn.weight * (bn.running_var + EPS).rsqrt())
    bn.kept = x * scale
    return bn.kept + (spread(bn.bias) - spread(bn.running_mean) * scale)


def statistics_changed(bn: Frozen, x: Tensor) -> Tensor:
    y = FrozenBatchNorm2d.forward(bn, x)
    bn.running_mean.add_(1)
    return y


NEAR_MISSES: dict[str, Spelling] = {
    "variance without a root": spelled(lambda bn: bn.weight * (bn.running_var + EPS)),
    "mean added": mean_added,
    "another eps in the shift": another_eps_in_the_shift,
    "two vectors": lambda bn, x: x * spread(bn.weight) + spread(bn.bias),
    "along the width": along_the_width,
    "scaled map kept": scaled_map_kept,
    "statistics changed before the gate": statistics_changed,
}


@pytest.mark.parametrize("name", NEAR_MISSES)
@torch.no_grad()
def test_near_misses_are_no_batch_norm(name: str) -> None:
    network, backend = detector(NEAR_MISSES[name]).eval(), Lowering(device="cuda")
    u = torch.randn(2, INPUT, 6, CHANNELS)
    want = copy.deepcopy(network)(u)
    torch.testing.assert_close(backend.compile(network)(u), want, rtol=1e-4, atol=1e-5)
    assert [site.decision.fused for site in backend.sites] == [("residual", "relu")]


@torch.no_grad()
def test_a_map_in_another_precision_than_the_vectors_is_none_of_a_batch_norm() -> None:
    network, backend = detector().eval(), Lowering(device="cuda")
    with torch.autocast("cpu", torch.bfloat16):
        backend.compile(network)(torch.randn(2, INPUT, 6, 6))
    assert [site.decision.fused for site in backend.sites] == [("residual", "relu")]
