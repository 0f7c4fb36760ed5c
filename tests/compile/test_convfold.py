"""The plans `convfold` and `convblock`: gates from the input of a 1x1 convolution, alone or with all of it.

Planned as for a GPU, run on the CPU. What must hold is the project's rule: the largest error against float64
is at most twice eager's own in the same dtype, plus one unit in the last place.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from harness import Lowering
from timm.layers import EcaModule, ScaledStdConv2d
from torch import Tensor, nn

from eca_triton.compile import compat
from eca_triton.compile.reasons import ASKED

INPUT, CHANNELS = 6, 16


def trained(bn: nn.BatchNorm2d) -> nn.BatchNorm2d:
    """With statistics and parameters far from their initial values."""
    nn.init.normal_(bn.running_mean, std=0.5)
    nn.init.uniform_(bn.running_var, 0.5, 2)
    nn.init.normal_(bn.weight, 1, 0.3)
    nn.init.normal_(bn.bias, std=0.3)
    return bn


class Bottleneck(nn.Module):
    """conv3, batch norm, ECA, in-place shortcut, in-place ReLU of a ResNet; the shortcut has a batch norm."""

    def __init__(self, **convolution: Any) -> None:
        super().__init__()
        self.conv = nn.Conv2d(INPUT, CHANNELS, **{"kernel_size": 1, "bias": False} | convolution)
        self.bn = trained(nn.BatchNorm2d(CHANNELS))
        self.se = EcaModule(CHANNELS)
        self.shortcut = nn.Sequential(nn.Conv2d(INPUT, CHANNELS, 1), trained(nn.BatchNorm2d(CHANNELS)))
        self.act = nn.ReLU(inplace=True)

    def forward(self, u: Tensor) -> Tensor:
        x = self.se(self.bn(self.conv(u)))
        x += self.shortcut(u)
        return self.act(x)


class Projection(Bottleneck):
    """MobileNetV2's linear bottleneck: the map is the result."""

    def forward(self, u: Tensor) -> Tensor:
        return self.se(self.bn(self.conv(u)))


class NormFree(nn.Module):
    """conv3 of a normalizer-free network: weight-standardised, biased; gains, one learnt; two results."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = ScaledStdConv2d(INPUT, CHANNELS, 1)
        nn.init.normal_(self.conv.bias)
        self.se = EcaModule(CHANNELS)
        self.skipinit_gain = nn.Parameter(torch.tensor(0.7))

    def forward(self, u: Tensor) -> tuple[Tensor, Tensor]:
        out = 2.0 * self.se(self.conv(u))
        out.mul_(self.skipinit_gain)
        out = out * 0.2 + u.repeat(1, 3, 1, 1)[:, :CHANNELS]
        return out, F.silu(out)


class Sequence(nn.Module):
    """[N, C, L], circular padding, GELU; others read the input too."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(INPUT, CHANNELS, 1)
        self.band = nn.Conv1d(1, 1, 3, padding=1, padding_mode="circular", bias=True)

    def forward(self, u: Tensor) -> tuple[Tensor, Tensor]:
        x = self.conv(u.flatten(2))
        gate = self.band(x.mean(2)[:, None]).sigmoid().transpose(1, 2)
        return F.gelu(x * gate, approximate="tanh"), u + 1


class Written(Bottleneck):
    """The sum is written into the shortcut, which stays outside; the map is rescaled in place."""

    def forward(self, u: Tensor) -> Tensor:
        x, shortcut = self.bn(self.conv(u)), self.shortcut(u)
        x *= self.se.conv(x.mean((2, 3))[:, None]).sigmoid()[:, 0, :, None, None]
        shortcut += x
        return shortcut.relu_()


class Accumulated(Bottleneck):
    """The sum is written into the shortcut, which the caller gets too."""

    def forward(self, u: Tensor) -> tuple[Tensor, Tensor]:
        shortcut = self.shortcut(u)
        return shortcut.add_(self.se(self.bn(self.conv(u)))).relu(), shortcut


class AccumulatedLast(Bottleneck):
    """The same sum, with nothing behind it."""

    def forward(self, u: Tensor) -> tuple[Tensor, Tensor]:
        shortcut = self.shortcut(u)
        return shortcut.add_(self.se(self.bn(self.conv(u)))), shortcut


class Changed(Bottleneck):
    """The shortcut is changed between the sum that reads it and the end of the block."""

    def forward(self, u: Tensor) -> tuple[Tensor, Tensor]:
        shortcut = self.shortcut(u)
        x = self.se(self.bn(self.conv(u))) + shortcut
        shortcut.mul_(2)
        return self.act(x), shortcut


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "bottleneck": Bottleneck,
    "biased convolution": lambda: Bottleneck(bias=True),
    "padding same": lambda: Projection(padding="same"),
    "padding valid": lambda: Projection(padding="valid"),
    "norm-free": NormFree,
    "sequence": Sequence,
    "in place": Written,
    "sum in the shortcut": Accumulated,
    "sum in the shortcut at the end": AccumulatedLast,
    "shortcut changed": Changed,
}


def lowered(monkeypatch: pytest.MonkeyPatch, product: bool, plan: str = "convfold", **then: Any) -> Lowering:
    """A backend with `convfold` in one of its forms, or `convblock`."""
    monkeypatch.setattr("eca_triton.compile.plan.reach.epilogues_of_products", lambda: product)
    return Lowering(device="cuda", plan=plan, **then)


BLOCKS = {
    name: NETWORKS[name]
    for name in ("bottleneck", "biased convolution", "padding same", "padding valid", "norm-free")
}
PRODUCT = pytest.mark.parametrize("product", [False, True], ids=["gate", "product"])


@PRODUCT
@pytest.mark.parametrize("name", NETWORKS)
def test_values(name: str, product: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for backend in compared(NETWORKS[name], lambda: lowered(monkeypatch, product)):
        assert [record.decision.plan for record in backend.sites] == ["convfold"]
        assert len(backend.calls(torch.mm)) == product


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", BLOCKS)
def test_values_of_one_op_for_convolution_and_block(
    name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    for backend in compared(BLOCKS[name], lambda: lowered(monkeypatch, False, "convblock"), dtype):
        assert [record.decision.plan for record in backend.sites] == ["convblock"]
        assert [name for name in backend.own_calls() if "pool" not in name][-1] == "rescaled_projection"
        # That of the shortcut stays.
        assert sum("conv2d" in str(node.target) for node in backend.nodes()) == (name not in PLAIN)


PLAIN = ("padding same", "padding valid", "norm-free")


@pytest.mark.parametrize("name", ["sequence", "in place"])
def test_other_maps_than_images_and_those_rescaled_in_place_are_no_blocks(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for backend in compared(NETWORKS[name], lambda: lowered(monkeypatch, False, "convblock")):
        assert [record.decision.reason for record in backend.records] == [ASKED]


def compared(
    make: Callable[[], nn.Module], backend: Callable[[], Lowering], dtype: torch.dtype = torch.float32
) -> Iterator[Lowering]:
    """Lower and run a network in each layout; its results must be as near to the exact ones as eager's."""
    torch.manual_seed(0)
    network = make().eval().to(dtype)
    exact = copy.deepcopy(network).double()
    u = torch.randn(3, INPUT, 5, 4).to(dtype)
    for layout in (torch.contiguous_format, torch.channels_last):
        x = u.contiguous(memory_format=layout)
        with torch.no_grad():
            used = backend()
            got, want = used.compile(network)(x), exact(x.double())
            native = network(x)
        yield used
        for g, n, w in zip(*(r if isinstance(r, tuple) else (r,) for r in (got, native, want)), strict=True):
            assert (g.dtype, g.stride()) == (n.dtype, n.stride())
            ulp = torch.finfo(g.dtype).eps * w.abs().max()
            assert (g - w).abs().max() <= 2 * (n - w).abs().max() + ulp


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@PRODUCT
def test_values_under_autocast(product: bool, dynamic: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The casts that autocast makes for a convolution, it, or we, make for the product and the gate."""
    torch.manual_seed(1)
    network = Bottleneck().eval()
    exact = copy.deepcopy(network).double()
    backend = lowered(monkeypatch, product)
    compiled = backend.compile(network, dynamic=None if dynamic else False)
    for shape in ((3, INPUT, 5, 4), (2, INPUT, 7, 3))[: 1 + dynamic]:
        u = torch.randn(shape)
        for dim in (0, 2, 3) if dynamic else ():
            torch._dynamo.mark_dynamic(u, dim)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            got, native = compiled(u), network(u)
        want = exact(u.double())
        assert got.dtype == native.dtype
        ulp = torch.finfo(torch.bfloat16).eps * want.abs().max()
        assert (got - want).abs().max() <= 2 * (native - want).abs().max() + ulp
    assert {record.decision.plan for record in backend.sites} == {"convfold"}
    assert len(backend.graphs) == 1


@pytest.mark.slow
def test_inductor_computes_the_same_with_frozen_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its constant folding meets what is left of the batch norm in the op's arguments."""
    torch.manual_seed(2)
    network, u = Bottleneck().eval(), torch.randn(2, INPUT, 6, 5)
    with torch.no_grad(), torch._inductor.config.patch(freezing=True, fx_graph_cache=False):
        compiled = lowered(monkeypatch, True, then="inductor").compile(network)
        torch.testing.assert_close(compiled(u), network(u))


@PRODUCT
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_spreads_as_in_eager(
    value: float, product: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mean of one channel takes it to all channels of the image, as the map's own means do."""
    torch.manual_seed(3)
    network, u = Projection().eval(), torch.randn(3, INPUT, 5, 4)
    u[1, 2, 3, 1] = value
    with torch.no_grad():
        got, native = lowered(monkeypatch, product).compile(network)(u), network(u)
    torch.testing.assert_close(got, native, equal_nan=True)
    assert not got[1].mean((1, 2)).isfinite().any()
    assert got[::2].isfinite().all()


class Around(Bottleneck):
    """One step of the bottleneck exchanged for another."""

    def __init__(self, site: Callable[[Around, Tensor], Tensor], **convolution: Any) -> None:
        super().__init__(**convolution)
        self.site = site

    def forward(self, u: Tensor) -> Tensor:
        return self.site(self, u)


def shared(net: Around, u: Tensor) -> Tensor:
    y = net.conv(u)
    return net.se(net.bn(y)) + y


def changed_input(net: Around, u: Tensor) -> Tensor:
    u = u + 1
    y = net.conv(u)
    u.mul_(2)
    return net.se(net.bn(y)) + u.mean()


def changed_statistics(net: Around, u: Tensor) -> Tensor:
    y = net.bn(net.conv(u))
    net.bn.running_mean.add_(1)
    return net.se(y)


def in_another_autocast(net: Around, u: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        y = net.conv(u)
    return net.se(net.bn(y.float()))


def before_an_autocast(net: Around, u: Tensor) -> Tensor:
    y = net.conv(u)
    with torch.autocast("cpu", torch.bfloat16):
        return net.se(net.bn(y))


def activated(net: Around, u: Tensor) -> Tensor:
    return net.se(torch.relu(net.bn(net.conv(u))))


def batch_statistics(net: Around, u: Tensor) -> Tensor:
    return net.se(F.batch_norm(net.conv(u), None, None, training=True))


def plain(net: Around, u: Tensor) -> Tensor:
    return net.se(net.bn(net.conv(u)))


NEAR_MISSES: dict[str, Callable[[], nn.Module]] = {
    "read by others": lambda: Around(shared),
    "input changed before the gate": lambda: Around(changed_input),
    "statistics changed before the gate": lambda: Around(changed_statistics),
    "autocast ends behind the convolution": lambda: Around(in_another_autocast),
    "autocast begins behind the convolution": lambda: Around(before_an_autocast),
    "an activation between": lambda: Around(activated),
    "statistics of the batch": lambda: Around(batch_statistics),
    "strided": lambda: Around(plain, stride=2),
    "grouped": lambda: Around(plain, groups=2),
    "padded": lambda: Around(plain, padding=1),
    "3x3": lambda: Around(plain, kernel_size=3),
}


@pytest.mark.parametrize("name", NEAR_MISSES)
def test_near_misses_keep_their_convolution(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    network, u = NEAR_MISSES[name]().eval(), torch.randn(2, INPUT, 6, 6)
    backend = lowered(monkeypatch, True)
    with torch.no_grad():
        got = backend.compile(copy.deepcopy(network))(u)
        torch.testing.assert_close(got, network(u), rtol=1e-4, atol=1e-5)
    assert [record.decision.reason for record in backend.records] == [ASKED]
    assert not backend.calls(torch.mm)


def test_training_keeps_its_convolution(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = lowered(monkeypatch, True)
    backend.compile(Bottleneck().eval())(torch.randn(2, INPUT, 6, 6))
    assert [record.decision.reason for record in backend.records] == [ASKED]


@pytest.mark.parametrize(
    ("mode", "options", "taken"),
    [
        (None, {}, False),
        ("reduce-overhead", None, False),
        ("max-autotune", None, True),
        ("max-autotune-no-cudagraphs", None, True),
        (None, {"max_autotune": True}, True),
        (None, {"max_autotune_gemm": True}, True),
        (None, {"max_autotune_gemm": True, "epilogue_fusion": False}, False),
        (None, {"max_autotune_gemm": True, "max_autotune_gemm_backends": "ATEN"}, False),
    ],
)
def test_products_take_epilogues_where_inductor_tunes_them(
    mode: str | None, options: dict[str, Any] | None, taken: bool
) -> None:
    with compat.settings_of(mode, options, None):
        assert compat.epilogues_of_products() is taken
    assert not compat.epilogues_of_products()
