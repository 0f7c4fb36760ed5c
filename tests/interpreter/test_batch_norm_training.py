"""`batch_norm_eca` by kernels, as eager mode on a GPU takes them, against float64 autograd."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest
import torch
from batch_norm_call import NAMES
from batch_norm_call import plain as by_torch
from kernel_cases import LAYOUTS, assert_earned, covering, label
from precision import error
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from eca_triton.kernels.batch_statistics import image_statistics_kernel
from eca_triton.launch import batch_norm as launch_batch_norm
from eca_triton.ops.schema import BATCH_NORM_ECA

Tensors = dict[str, Tensor | None]

CASES = covering(
    {
        "dtype": [torch.float32, torch.float16, torch.bfloat16],
        "parameters": [torch.float32, torch.float16],
        "layout": ["contiguous", "channels_last"],
        "n": [1, 3],
        "k": [1, 5, 9],
        "c": [1, 8, 19],
        "spatial": [(7,), (7, 7), (3, 2, 4), (13, 40)],
        "mean": [0.0, 30.0],
        "affine": [False, True],
        "bias": [False, True],
        "residual": [False, True],
        "gate": ["sigmoid", "hard_sigmoid"],
        "circular": [False, True],
        "gain": [1.0, 0.7],
        "activation": ["identity", "relu"],
    }
)


@pytest.fixture(autouse=True)
def launched() -> Iterator[list[str]]:
    """The directions that were launched, in order."""
    names: list[str] = []

    def noted(name: str) -> Any:
        function = getattr(launch_batch_norm, name)
        return mock.patch.object(launch_batch_norm, name, lambda *a: (names.append(name), function(*a))[1])

    with noted("forward"), noted("backward"):
        yield names


def tensors_of(row: dict[str, Any]) -> Tensors:
    c, make = row["c"], LAYOUTS[row["layout"]]
    shape, parameters = (row["n"], c, *row["spatial"]), row["parameters"]
    return {
        "x": make(shape, row["dtype"]) + row["mean"],
        "weight": torch.randn(1, 1, row["k"]).to(parameters),
        "bias": torch.randn(1).to(parameters) if row["bias"] else None,
        "bn_weight": (torch.rand(c) + 0.5).to(parameters) if row["affine"] else None,
        "bn_bias": torch.randn(c).to(parameters) if row["affine"] else None,
        "residual": make(shape, row["dtype"]) if row["residual"] else None,
    }


def options_of(row: dict[str, Any]) -> dict[str, Any]:
    circular = row["circular"] and row["k"] // 2 <= row["c"]
    return {"circular": circular, **{name: row[name] for name in ("gate", "gain", "activation")}}


def plain(tensors: Tensors, **options: Any) -> Tensor:
    """The same in torch's own operators, each in the dtype of x."""
    dtype = tensors["x"].dtype
    return by_torch({name: t if t is None else t.to(dtype) for name, t in tensors.items()}, **options)


def by_op(tensors: Tensors, **options: Any) -> Tensor:
    return BATCH_NORM_ECA(*map(tensors.get, NAMES), **options)[0]


def run(function: Any, tensors: Tensors, dy: Tensor, **options: Any) -> dict[str, Tensor]:
    """Output and gradients of whatever there is."""
    leaves = {name: t.detach().requires_grad_() for name, t in tensors.items() if t is not None}
    out = function(tensors | leaves, **options)
    gradients = torch.autograd.grad(out, list(leaves.values()), dy)
    return {"out": out.detach(), **dict(zip(leaves, gradients, strict=True))}


def double(tensors: Tensors) -> Tensors:
    return {name: None if tensor is None else tensor.double() for name, tensor in tensors.items()}


def some(**changes: Any) -> tuple[Tensors, dict[str, Any], Tensor]:
    """Tensors with everything, options, and a gradient."""
    row = {
        "dtype": torch.float32, "parameters": torch.float32, "layout": "contiguous", "n": 3, "k": 5, "c": 16,
        "spatial": (6, 5), "mean": 0.5, "affine": True, "bias": True, "residual": True, "gate": "sigmoid",
        "circular": False, "gain": 0.7, "activation": "relu", **changes,
    }  # fmt: skip
    tensors = tensors_of(row)
    return tensors, options_of(row), torch.randn_like(tensors["x"])


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize(("hw", "splits", "block"), [(16, 1, 16), (52, 1, 16), (52, 2, 16), (33, 4, 8)])
def test_statistics_of_an_image_end_inside_a_block(hw: int, splits: int, block: int, last: bool) -> None:
    n, c, block_c = 2, 5, 4
    x = torch.randn(n, c, hw) + 30.0
    memory, strides = (x.movedim(1, -1).contiguous(), (1, c)) if last else (x, (hw, 1))
    chunk = -(-hw // (splits * block)) * block
    mean, spread = (torch.full((n, splits, c), float("nan")) for _ in range(2))
    image_statistics_kernel[(n * 2 * splits,)](
        memory, mean, spread, c, hw, chunk, *strides,
        SPLITS=splits, BLOCK_C=block_c, BLOCK_HW=block, VEC_C=1, VEC_HW=1,
    )  # fmt: skip
    away = x.double() - x[0, :, :1].double()
    for split, part in enumerate(away.split(chunk, -1)):
        torch.testing.assert_close(mean[:, split].double(), part.mean(-1), rtol=0, atol=1e-6)
        found = part.var(-1, correction=0) * part.shape[-1]
        torch.testing.assert_close(spread[:, split].double(), found, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("row", CASES, ids=label)
def test_results_and_gradients_are_as_exact_as_eager(row: dict[str, Any], launched: list[str]) -> None:
    """A large mean beside a small deviation too, where sums of squares would fail."""
    tensors, options = tensors_of(row), options_of(row)
    # Mostly positive: sums over the map that cancel would be known to many ulps of theirs only.
    dy = torch.empty_like(tensors["x"]).copy_(torch.randn(tensors["x"].shape) + 1)
    got = run(by_op, tensors, dy, **options)
    assert launched == ["forward", "backward"]
    native = run(plain, tensors, dy, **options)
    exact = run(plain, double(tensors), dy.double(), **options)
    assert got["out"].stride() == tensors["x"].stride()
    for name, value in exact.items():
        # Eager mode on a CPU sums float32 in float64, which no GPU does: such sums get some ulp.
        assert_earned(got[name], native[name], value, ulps=32 if got[name].dtype == torch.float32 else 2)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("mean", [0.0, 1e4])
@pytest.mark.parametrize("shape", [(3, 5, 9, 7), (2, 3, 40, 31), (1, 2, 1, 2)], ids=str)
def test_statistics_lose_nothing_beside_a_large_mean(
    shape: tuple[int, ...], mean: float, layout: str
) -> None:
    x = LAYOUTS[layout](shape, torch.float32) + mean
    _, got_mean, got_var = BATCH_NORM_ECA(x, torch.randn(1, 1, 3))
    flat = x.double().movedim(1, 0).flatten(1)
    torch.testing.assert_close(got_mean.double(), flat.mean(1), rtol=1e-7, atol=3e-7)
    torch.testing.assert_close(got_var.double(), flat.var(1, correction=1), rtol=1e-6, atol=0)


def test_every_run_gives_the_same_bits() -> None:
    tensors, options, dy = some(spatial=(12, 12))
    first, second = (run(by_op, tensors, dy, **options) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


STRIDES = {
    "x": ["contiguous", "channels_last", "cropped"],
    "residual": ["contiguous", "channels_last"],
    "grad": ["channels_last", "cropped", "expanded"],
}


@pytest.mark.parametrize("row", covering(STRIDES), ids=label)
def test_any_strides(row: dict[str, str]) -> None:
    tensors, options, _ = some()
    shape = tensors["x"].shape
    tensors["x"], tensors["residual"], dy = (LAYOUTS[row[name]](shape, torch.float32) for name in row)
    got, exact = run(by_op, tensors, dy, **options), run(plain, double(tensors), dy.double(), **options)
    for name, value in exact.items():
        torch.testing.assert_close(got[name].double(), value, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("wanted", [("residual",), ("x",), ("bn_bias", "residual")], ids=str)
@pytest.mark.parametrize("c", [16, 19], ids=["bits", "recomputed"])
def test_what_nobody_needs_changes_nothing_else(c: int, wanted: tuple[str, ...]) -> None:
    tensors, options, dy = some(c=c, spatial=(7, 7))
    everything = run(by_op, tensors, dy, **options)
    leaves = {name: tensor.detach().requires_grad_(name in wanted) for name, tensor in tensors.items()}
    got = torch.autograd.grad(by_op(leaves, **options), [leaves[name] for name in wanted], dy)
    for name, gradient in zip(wanted, got, strict=True):
        torch.testing.assert_close(gradient, everything[name])


def test_a_residual_may_have_a_dtype_of_its_own() -> None:
    tensors, options, dy = some(dtype=torch.float16)
    tensors["residual"] = tensors["residual"].float()
    got = run(by_op, tensors, dy.float(), out_dtype=torch.float32, **options)
    exact = run(plain, double(tensors), dy.double(), **options)
    assert (got["out"].dtype, got["residual"].dtype, got["x"].dtype) == (
        torch.float32, torch.float32, torch.float16,
    )  # fmt: skip
    torch.testing.assert_close(got["out"].double(), exact["out"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(got["x"].double(), exact["x"], rtol=2e-3, atol=2e-3)


class Looking(TorchDispatchMode):
    """Sees every operator, and changes none."""

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("c", [16, 19], ids=["bits", "recomputed"])
def test_a_backward_without_kernels_reads_what_their_forward_kept(
    c: int, layout: str, launched: list[str]
) -> None:
    """As under compiled autograd, which traces the backward alone."""
    tensors, options, dy = some(c=c, layout=layout, spatial=(7, 7))
    everything = run(by_op, tensors, dy, **options)
    leaves = {name: tensors[name].detach().requires_grad_() for name in NAMES}
    out = by_op(leaves, **options)
    launched.clear()
    with Looking():
        got = torch.autograd.grad(out, list(leaves.values()), dy)
    assert launched == []
    for name, gradient in zip(NAMES, got, strict=True):
        torch.testing.assert_close(gradient, everything[name], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("wanted", [NAMES, ("residual",)], ids=["all", "residual"])
def test_second_derivatives_are_those_of_the_plain_formula(
    wanted: tuple[str, ...], launched: list[str]
) -> None:
    tensors, options, dy = some(n=2, c=8, spatial=(2, 2))

    def second(function: Any, tensors: Tensors, dy: Tensor) -> tuple[Tensor, ...]:
        leaves = {n: t.detach().requires_grad_(n in wanted) for n, t in tensors.items() if t is not None}
        dy = dy.clone().requires_grad_()
        inputs = [leaves[name] for name in wanted]
        first = torch.autograd.grad(function(leaves, **options), inputs, dy, create_graph=True)
        weighted = sum((gradient * (gradient + 1)).sum() for gradient in first)
        return torch.autograd.grad(weighted, [*inputs, dy], allow_unused=True, materialize_grads=True)

    got = second(by_op, tensors, dy)
    assert launched == ["forward"]
    for one, exact in zip(got, second(plain, double(tensors), dy.double()), strict=True):
        torch.testing.assert_close(one.double(), exact, rtol=1e-3, atol=1e-3)


def test_what_somebody_traces_or_the_kernels_do_not_know_stays_native(launched: list[str]) -> None:
    tensors, options, _ = some()
    exact = plain(tensors, **options)
    with Looking():
        looked_at = by_op(tensors, **options)
    compiled = torch.compile(by_op, backend="aot_eager", fullgraph=True)(tensors, **options)
    in_double = by_op(double(tensors), **options)
    assert launched == []
    for out in (looked_at, compiled, in_double):
        torch.testing.assert_close(out.float(), exact)


def test_without_gradients_no_bits_are_kept() -> None:
    tensors, options, _ = some()
    tensors["x"].requires_grad_()
    forward = launch_batch_norm.forward
    with mock.patch.object(launch_batch_norm, "forward", wraps=forward) as forward:
        by_op(tensors, **options)
        with torch.no_grad():
            by_op(tensors, **options)
    assert [call.args[0].mask is None for call in forward.call_args_list] == [False, True]


def test_gradients_of_gain_and_shift_err_by_less_than_a_rounding_of_every_element() -> None:
    found = error((16, 16, 7, 7), seeds=4)
    assert max(found.values()) <= 0.8, found
