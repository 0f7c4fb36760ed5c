"""The plans `convfold` and `convblock`: the gate from the input of a 1x1 convolution, or all of it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from eager_block import assert_as_good_as
from pointwise import INPUT, NETWORKS, Around, Bottleneck, compared, lowered, projection
from torch import Tensor, nn

from eca_triton.compile import compat
from eca_triton.compile.reasons import ASKED

PLAIN = "padding same", "padding valid", "norm-free"
BLOCKS = "bottleneck", "biased convolution", *PLAIN
PRODUCT = pytest.mark.parametrize("product", [False, True], ids=["gate", "product"])


@PRODUCT
@pytest.mark.parametrize("name", NETWORKS)
def test_values(name: str, product: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for backend in compared(NETWORKS[name], lambda: lowered(monkeypatch, product)):
        assert backend.plans == ["convfold"]
        assert len(backend.calls(torch.mm)) == product


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *((name, torch.float32) for name in BLOCKS),
        *((name, torch.bfloat16) for name in ("bottleneck", "norm-free")),
    ],
)
def test_values_of_one_op_for_convolution_and_block(
    name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    for backend in compared(NETWORKS[name], lambda: lowered(monkeypatch, False, "convblock"), dtype):
        assert backend.plans == ["convblock"]
        assert [name for name in backend.own_calls() if "pool" not in name][-1] == "rescaled_projection"
        # That of the shortcut stays.
        assert sum("conv2d" in str(node.target) for node in backend.nodes()) == (name not in PLAIN)


@pytest.mark.parametrize("name", ["sequence", "in place"])
def test_other_maps_than_images_and_those_rescaled_in_place_are_no_blocks(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for backend in compared(NETWORKS[name], lambda: lowered(monkeypatch, False, "convblock")):
        assert backend.reasons == [ASKED]


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
        assert got.dtype == native.dtype
        assert_as_good_as(got, native, exact(u.double()))
    assert set(backend.plans) == {"convfold"}
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
    network, u = projection().eval(), torch.randn(3, INPUT, 5, 4)
    u[1, 2, 3, 1] = value
    with torch.no_grad():
        got, native = lowered(monkeypatch, product).compile(network)(u), network(u)
    torch.testing.assert_close(got, native, equal_nan=True)
    assert not got[1].mean((1, 2)).isfinite().any()
    assert got[::2].isfinite().all()


@torch.no_grad()
def test_a_sum_that_overflows_does_so_ahead_of_the_activation(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sum has the dtype of the program's, as where Inductor stores it: SiLU of -inf is no number."""

    def summed(net: Around, u: Tensor) -> Tensor:
        return F.silu(100 * net.attend(u) + torch.full_like(net.shortcut(u), torch.finfo(u.dtype).min))

    network, u = Around(summed).eval().half(), torch.randn(3, INPUT, 5, 4).half()
    network.bn.bias.fill_(-20)  # far from what overflows by rounding alone
    network.se.conv.weight.fill_(0)
    backend = lowered(monkeypatch, True)
    got, native = backend.compile(network)(u), network(u)
    assert native.isnan().all()
    assert got.isnan().all()
    assert len(backend.calls(torch.mm)) == 1


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


NEAR_MISSES: dict[str, Callable[[], nn.Module]] = {
    "read by others": lambda: Around(shared),
    "input changed before the gate": lambda: Around(changed_input),
    "statistics changed before the gate": lambda: Around(changed_statistics),
    "autocast ends behind the convolution": lambda: Around(in_another_autocast),
    "autocast begins behind the convolution": lambda: Around(before_an_autocast),
    "an activation between": lambda: Around(lambda net, u: net.se(torch.relu(net.bn(net.conv(u))))),
    "statistics of the batch": lambda: Around(
        lambda net, u: net.se(F.batch_norm(net.conv(u), None, None, training=True))
    ),
    "strided": lambda: projection(stride=2),
    "grouped": lambda: projection(groups=2),
    "padded": lambda: projection(padding=1),
    "3x3": lambda: projection(kernel_size=3),
}


@pytest.mark.parametrize("name", NEAR_MISSES)
def test_near_misses_keep_their_convolution(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    network, u = NEAR_MISSES[name]().eval(), torch.randn(2, INPUT, 6, 6)
    backend = lowered(monkeypatch, True)
    with torch.no_grad():
        got = backend.compile(copy.deepcopy(network))(u)
        torch.testing.assert_close(got, network(u), rtol=1e-4, atol=1e-5)
    assert backend.reasons == [ASKED]
    assert not backend.calls(torch.mm)


def test_training_keeps_its_convolution(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = lowered(monkeypatch, True)
    backend.compile(Bottleneck().eval())(torch.randn(2, INPUT, 6, 6))
    assert backend.reasons == [ASKED]


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
