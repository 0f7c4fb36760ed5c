"""`batch_norm_eca` against batch norm, ECA, residual and ReLU written one by one, in float64."""

from __future__ import annotations

import itertools
from typing import Any

import precision
import pytest
import torch
from batch_norm_call import NAMES, OPTIONS, C, N, arguments, plain
from eager_block import assert_as_good_as
from torch import Tensor

import eca_triton  # noqa: F401  registers torch.ops.eca_triton

OP = torch.ops.eca_triton.batch_norm_eca.default
SPACES = [(7,), (5, 3), (2, 3, 2)]
ABSENT: list[tuple[str, ...]] = [(), ("residual", "bias"), ("bn_weight",), ("bn_weight", "bn_bias")]
CASES = [  # every option with everything absent, in maps of each number of dims in turn
    pytest.param(
        SPACES[number % 3], absent, options, id=f"{name}, without {' and '.join(absent) or 'nothing'}"
    )
    for number, ((name, options), absent) in enumerate(itertools.product(OPTIONS.items(), ABSENT))
]


def gradients(out: Tensor, tensors: dict[str, Tensor | None]) -> dict[str, Tensor]:
    present = {
        name: tensor for name, tensor in tensors.items() if tensor is not None and tensor.requires_grad
    }
    dy = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(out.dtype)
    return dict(zip(present, torch.autograd.grad(out, list(present.values()), dy), strict=True))


@pytest.mark.parametrize(("spatial", "absent", "options"), CASES)
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
    given = {name: t.detach().float().to(dtype) for name, t in arguments(spatial=(14, 14)).items()}
    given["x"] = (given["x"].float() + 20).to(dtype).contiguous(memory_format=layout)
    runs = {}
    for name, wanted in (("ours", dtype), ("eager", dtype), ("exact", torch.float64)):
        tensors = {name: t.to(wanted, copy=True).requires_grad_() for name, t in given.items()}
        out = OP(*tensors.values(), gain=1.5)[0] if name == "ours" else plain(tensors, gain=1.5)
        runs[name] = {"out": out.detach(), **gradients(out, tensors)}
    assert runs["ours"]["out"].dtype == dtype
    assert runs["ours"]["out"].stride() == runs["eager"]["out"].stride()
    # Batch norm on a CPU sums float32 in float64, as no GPU does: sums over 588 elements get some ulp.
    ulps = 8 if dtype == torch.float32 else 1
    for name in ("out", *NAMES):
        assert_as_good_as(*(runs[run][name] for run in ("ours", "eager", "exact")), ulps)


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
def test_any_subset_of_gradients(pack: bool) -> None:
    options = {"activation": "relu", "pack_mask": pack}
    everything = arguments()
    expected = gradients(plain(everything, **options), everything)
    for wanted in (w for n in (1, 2, 6) for w in itertools.combinations(NAMES, n)):
        tensors = {
            name: tensor.detach().requires_grad_(name in wanted) for name, tensor in everything.items()
        }
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


# fp32 training is as exact as its elements: adding images up costs no rounding that shows. `precision.py`
# says what is measured: the root mean square over seeds and channels, which rests on no single rounding.


@pytest.mark.parametrize("shape", [(32, 64, 7, 7), (256, 16, 3, 3)], ids=["some images", "many images"])
def test_gradients_of_gain_and_shift_err_by_less_than_a_rounding_of_every_element(
    shape: tuple[int, ...],
) -> None:
    found = precision.error(shape, seeds=24)
    assert max(found.values()) <= 0.8, found


def test_what_cancels_between_images_is_lost_in_no_partial_sum() -> None:
    """Images come twice, with opposite gradients, but for the first: what is left is its gradient alone."""
    tensors, dy = precision.example((1024, 4, 2, 2), seed=0)
    x, residual = (tensor[:512].repeat(2, 1, 1, 1) for tensor in (tensors[0], tensors[4]))
    tensors[0], tensors[4] = x, residual
    opposite = torch.cat((dy[:512], -dy[:512])) * 1e3
    opposite[0] = opposite[512] = 0.0
    alone = torch.zeros_like(dy)
    alone[0] = dy[0]
    got, expected = (
        precision.gradients(precision.by_op, tensors, each) for each in (opposite + alone, alone)
    )
    for name in ("bn_weight", "bn_bias"):
        torch.testing.assert_close(got[name], expected[name], rtol=1e-5, atol=1e-5)
