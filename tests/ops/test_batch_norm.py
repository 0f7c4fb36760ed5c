"""`batch_norm_eca` against batch norm, ECA, residual and ReLU written one by one, in float64."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from batch_norm_call import NAMES, C, N, arguments, plain
from torch import Tensor

import eca_triton  # noqa: F401  registers torch.ops.eca_triton

OP = torch.ops.eca_triton.batch_norm_eca.default
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "relu": {"activation": "relu"},
    "relu, mask in bits": {"activation": "relu", "pack_mask": True},
    "gain, circular, hard sigmoid": {"gain": 0.2, "circular": True, "gate": "hard_sigmoid"},
}


def gradients(out: Tensor, tensors: dict[str, Tensor | None]) -> dict[str, Tensor]:
    present = {
        name: tensor for name, tensor in tensors.items() if tensor is not None and tensor.requires_grad
    }
    dy = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(out.dtype)
    return dict(zip(present, torch.autograd.grad(out, list(present.values()), dy), strict=True))


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("absent", [(), ("residual", "bias"), ("bn_weight",), ("bn_weight", "bn_bias")])
@pytest.mark.parametrize("spatial", [(7,), (5, 3), (2, 3, 2)], ids=["1d", "2d", "3d"])
def test_values_and_gradients_are_those_of_the_plain_operators(
    spatial: tuple[int, ...], absent: tuple[str, ...], options: dict[str, Any]
) -> None:
    tensors = arguments(spatial=spatial, absent=absent)
    out, mean, var = OP(*tensors.values(), **options)
    expected = plain(tensors, **options)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(gradients(out, tensors), gradients(expected, tensors))
    flat = tensors["x"].detach().movedim(1, 0).flatten(1)
    torch.testing.assert_close((mean, var), (flat.mean(1), flat.var(1)))
    assert not mean.requires_grad
    assert not var.requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_it_is_as_exact_as_eager_mode(dtype: torch.dtype, layout: torch.memory_format) -> None:
    """A large mean beside a small deviation is where sums of squares would fail."""
    options = {"gain": 1.5}
    tensors = {name: t.detach().float().to(dtype) for name, t in arguments(spatial=(14, 14)).items()}
    tensors["x"] = (tensors["x"].float() + 20).to(dtype).contiguous(memory_format=layout)
    runs = {
        "exact": ({name: t.double().requires_grad_() for name, t in tensors.items()}, plain),
        "eager": ({name: t.clone().requires_grad_() for name, t in tensors.items()}, plain),
        "ours": (
            {name: t.clone().requires_grad_() for name, t in tensors.items()},
            lambda t, **o: OP(*t.values(), **o)[0],
        ),
    }
    found = {}
    for name, (inputs, run) in runs.items():
        out = run(inputs, **options)
        found[name] = {"out": out.detach(), **gradients(out, inputs)}
    assert found["ours"]["out"].dtype == dtype
    assert found["ours"]["out"].stride() == found["eager"]["out"].stride()
    for name, exact in found["exact"].items():
        error, native = ((found[run][name] - exact).abs().max() for run in ("ours", "eager"))
        # Batch norm on a CPU sums float32 in float64, as no GPU does: sums over 588 elements get some ulp.
        ulps = 8 if dtype == torch.float32 else 1
        assert error <= 2 * native + ulps * torch.finfo(dtype).eps * exact.abs().max(), name


def test_bits_and_result_tell_backward_the_same() -> None:
    """NaN passes ReLU and its gradient; a closed element passes nothing, not even a bad gradient."""
    tensors = arguments(torch.float32)
    with torch.no_grad():
        tensors["residual"][0, 3, 0, 0] = float("nan")
        tensors["residual"][1, 5, 2, 1] = -1e6
    found = []
    for pack in (False, True):
        out = OP(*tensors.values(), activation="relu", pack_mask=pack)[0]
        dy = torch.ones_like(out)
        dy[1, 5, 2, 1] = float("inf")
        found.append((out.detach(), *torch.autograd.grad(out, list(tensors.values()), dy)))
    torch.testing.assert_close(*found, rtol=0, atol=0, equal_nan=True)
    residual = found[0][-1]
    assert residual[0, 3, 0, 0] == 1
    assert residual[1, 5, 2, 1] == 0


@pytest.mark.parametrize("pack", [False, True], ids=["result", "bits"])
@pytest.mark.parametrize("wanted", [w for n in (1, 2, 6) for w in itertools.combinations(NAMES, n)])
def test_any_subset_of_gradients(wanted: tuple[str, ...], pack: bool) -> None:
    options = {"activation": "relu", "pack_mask": pack}
    everything = arguments()
    expected = gradients(plain(everything, **options), everything)
    tensors = {name: tensor.detach().requires_grad_(name in wanted) for name, tensor in everything.items()}
    got = gradients(OP(*tensors.values(), **options)[0], tensors)
    torch.testing.assert_close(got, {name: expected[name] for name in wanted})


@pytest.mark.parametrize("make", ["expanded", "transposed", "sliced"])
def test_gradients_come_in_any_strides(make: str) -> None:
    tensors = arguments()
    out = OP(*tensors.values(), activation="relu", pack_mask=True)[0]
    dy = {
        "expanded": torch.ones((), dtype=out.dtype).expand(out.shape),
        "transposed": torch.randn(*reversed(out.shape), dtype=out.dtype).permute(3, 2, 1, 0),
        "sliced": torch.randn(N, 2 * C, 5, 3, dtype=out.dtype)[:, ::2],
    }[make]
    inputs = list(tensors.values())
    got = torch.autograd.grad(out, inputs, dy)
    torch.testing.assert_close(got, torch.autograd.grad(plain(tensors, activation="relu"), inputs, dy))


def test_first_and_second_derivatives_are_numerical_ones() -> None:
    tensors = arguments(spatial=(2, 2))
    x, *others = (t.detach()[:2, :8] if t.ndim == 4 else t.detach() for t in tensors.values())
    others = [t[:8] if t.shape == (C,) else t for t in others]
    inputs = [t.clone().requires_grad_() for t in (x, *others)]

    def run(*inputs: Tensor) -> Tensor:
        return OP(*inputs, activation="relu", pack_mask=True)[0]

    assert torch.autograd.gradcheck(run, inputs)
    assert torch.autograd.gradgradcheck(run, inputs)


def test_transforms_take_the_plain_formula() -> None:
    x, *others = (tensor.detach() for tensor in arguments().values())

    def run(x: Tensor) -> Tensor:
        return OP(x, *others, activation="relu")[0]

    tangent = torch.randn_like(x)
    _, forward = torch.func.jvp(run, (x,), (tangent,))
    _, pullback = torch.func.vjp(run, x)
    dy = torch.randn_like(forward)
    torch.testing.assert_close((forward * dy).sum(), (pullback(dy)[0] * tangent).sum())
    batched = torch.stack([x, x + 1])
    torch.testing.assert_close(torch.func.vmap(run)(batched), torch.stack([run(x), run(x + 1)]))


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_opcheck(options: dict[str, Any]) -> None:
    torch.library.opcheck(OP, tuple(arguments(torch.float32).values()), options)


TWELVE = {"x": torch.randn(N, 12, 2, 2), "residual": None} | dict.fromkeys(
    ("bn_weight", "bn_bias"), torch.ones(12)
)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": torch.randn(N, C)}, "at least 3 dims"),
        ({"weight": torch.randn(1, 1, 4)}, "odd number k of taps"),
        ({"bn_weight": torch.randn(C + 1)}, r"bn_weight must be \(16,\)"),
        ({"residual": torch.randn(N, C, 1, 1)}, "residual must have the shape of x"),
        ({"activation": "silu"}, "activation must be one of identity, relu"),
        ({"pack_mask": True}, "pack_mask needs relu and channels in eights"),
        (TWELVE | {"activation": "relu", "pack_mask": True}, "got relu and 12 channels"),
    ],
)
def test_a_wrong_call_is_refused_by_name(changes: dict[str, Any], message: str) -> None:
    tensors = arguments(torch.float32) | changes
    with pytest.raises(ValueError, match=message):
        OP(**tensors)
