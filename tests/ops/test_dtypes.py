"""CPU implementation, decomposition, fake and autograd kernel of every operator agree.

They give one dtype and one value, but for rounding in the arithmetic, for every dtype of the result and of
each argument.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from eca_triton import reference
from eca_triton.ops import schema
from eca_triton.ops.decompositions import decomposition_table

N, C, INPUTS = 2, 8, 6
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
PLAIN = decomposition_table()
BATCH_NORM = {"bn_mean": (C,), "bn_var": (C,), "bn_weight": (C,), "bn_bias": (C,)}
SITE = {"x": (N, C, 3, 5), "weight": (1, 1, 3), "bias": (1,), **BATCH_NORM}
PROJECTION = {
    "pooled": (N, INPUTS), "projection": (C, INPUTS), "weight": (1, 1, 3), "bias": (1,),
    "projection_bias": (C,), **BATCH_NORM,
}  # fmt: skip
MAP = {"residual": (N, C, 3, 5)}
POOL = {"pooled": (N, C), "weight": (1, 1, 3), "bias": (1,)}
CONSTANT = {"bn_mean", "bn_var"}  # else `eca` is a composition and no operators


class Case(NamedTuple):
    """An operator, the shapes of its tensors by name, and its options."""

    op: Callable[..., Any]
    shapes: dict[str, tuple[int, ...]]
    options: dict[str, Any]


BACKWARD = {"grad": SITE["x"], **SITE, **MAP, "pooled": (N, C)}
WANTS = {"wants_residual": True, "wants_bn": True}
CASES = {
    "gate": Case(schema.GATE, SITE, {}),
    "gate, activation before": Case(schema.GATE, SITE, {"pre_activation": "silu"}),
    "eca, bits for backward": Case(schema.ECA, SITE | MAP, {"activation": "relu", "gain": 1.5}),
    "eca, residual for backward": Case(schema.ECA, SITE | MAP, {"activation": "silu", "gain": 1.5}),
    "eca, activation before": Case(schema.ECA, SITE | MAP, {"pre_activation": "relu"}),
    "gate_from_pool": Case(schema.GATE_FROM_POOL, POOL, {}),
    "gate_from_pool_backward": Case(schema.GATE_FROM_POOL_BACKWARD, {"grad": (N, C), **POOL}, {}),
    "gate_from_projection": Case(schema.GATE_FROM_PROJECTION, PROJECTION, {}),
    "affine_from_projection": Case(schema.AFFINE_FROM_PROJECTION, PROJECTION, {}),
    "rescaled_projection": Case(
        schema.RESCALED_PROJECTION,
        {"x": (N, INPUTS, 3, 5), "projection": (C, INPUTS), "factor": (N, C), "summand": (N, C)},
        {},
    ),
    "batch_norm_eca": Case(
        schema.BATCH_NORM_ECA,
        {name: shape for name, shape in (SITE | MAP).items() if name not in CONSTANT},
        {"activation": "relu"},
    ),
    "eca_forward": Case(schema.ECA_FORWARD, SITE | MAP, {"activation": "relu", "mask_order": "contiguous"}),
    "eca_backward, relu": Case(schema.ECA_BACKWARD, BACKWARD, {"activation": "relu", **WANTS}),
    "eca_backward, gelu": Case(schema.ECA_BACKWARD, BACKWARD, {"activation": "gelu", **WANTS}),
}
DIFFERENTIABLE = [name for name in CASES if not name.startswith(("eca_", "gate_from_pool_backward"))]


def mixes(shapes: dict[str, tuple[int, ...]]) -> Iterator[dict[str, torch.dtype]]:
    """All tensors of one dtype; all but one; and dtypes in turn."""
    for common in DTYPES:
        yield dict.fromkeys(shapes, common)
    for common, other in itertools.permutations((torch.float32, torch.bfloat16)):
        for name in shapes:
            yield {**dict.fromkeys(shapes, common), name: other}
    for first in range(len(DTYPES)):
        yield {name: DTYPES[(first + i) % len(DTYPES)] for i, name in enumerate(shapes)}


def tensors(case: Case, mix: dict[str, torch.dtype]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    drawn = {
        name: torch.rand(shape, generator=generator) + 0.5
        if name == "bn_var"
        else torch.randn(shape, generator=generator)
        for name, shape in case.shapes.items()
    }
    found = {name: tensor.to(mix[name]) for name, tensor in drawn.items()}
    if "pooled" in found and "x" in found:  # as `eca_forward` leaves it
        found["pooled"] = reference.pool(found["x"])
    return found


def leaves(inputs: dict[str, Tensor]) -> list[Tensor]:
    return [tensor.detach().clone().requires_grad_(name not in CONSTANT) for name, tensor in inputs.items()]


def results(op: Callable[..., Any], inputs: Any, options: dict[str, Any]) -> tuple[Tensor, ...]:
    found = op(*inputs, **options)
    return found if isinstance(found, tuple) else (found,)


def calls(case: Case) -> Iterator[tuple[dict[str, Tensor], dict[str, Any], Any]]:
    """Tensors, options, and what to say of them: every dtype of the result for tensors of one dtype.

    For other mixes, that of the operator and one more, in turn.
    """
    has_out_dtype = any(argument.name == "out_dtype" for argument in case.op._schema.arguments)
    for number, mix in enumerate(mixes(case.shapes)):
        others = DTYPES if len({*mix.values()}) == 1 else [DTYPES[number % len(DTYPES)]]
        for dtype in [None, *(others if has_out_dtype else [])]:
            options = case.options if dtype is None else case.options | {"out_dtype": dtype}
            yield tensors(case, mix), options, (mix, options)


def arithmetic(inputs: dict[str, Tensor]) -> torch.dtype:
    return reference.compute_dtype(inputs["x" if "x" in inputs else "pooled"])


def assert_same_but_for_rounding(got: Tensor, expected: Tensor, arithmetic: torch.dtype, about: Any) -> None:
    """Equal in dtype; in value to a few units of the arithmetic or one of the result, whichever is larger."""
    assert got.dtype == expected.dtype, about
    if not expected.is_floating_point():
        assert torch.equal(got, expected), about
        return
    eps = max(64 * torch.finfo(arithmetic).eps, torch.finfo(expected.dtype).eps)
    difference = (got.double() - expected.double()).abs().max()
    assert difference <= eps * expected.double().abs().max(), about


def test_every_operator_is_here() -> None:
    assert {case.op for case in CASES.values()} == PLAIN.keys()


@pytest.mark.parametrize("name", CASES)
def test_cpu_decomposition_fake_and_autograd_agree(name: str) -> None:
    case = CASES[name]
    for inputs, options, about in calls(case):
        with torch.no_grad():
            got = results(case.op, inputs.values(), options)
        plain = results(PLAIN[case.op], inputs.values(), options)
        with FakeTensorMode() as mode:
            fakes = results(case.op, map(mode.from_tensor, inputs.values()), options)
        derived = results(case.op, leaves(inputs), options)
        for one, by_plain, fake, by_autograd in zip(got, plain, fakes, derived, strict=True):
            assert one.dtype == by_plain.dtype, about
            assert torch.equal(one, by_plain), about
            assert (fake.dtype, fake.shape, fake.stride()) == (one.dtype, one.shape, one.stride()), about
            if one.numel():
                assert_same_but_for_rounding(by_autograd.detach(), one, arithmetic(inputs), about)


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_gradients_are_those_of_the_decomposition(name: str) -> None:
    """Each rounded once, to the dtype of its own argument: no other argument's dtype comes in between."""
    case = CASES[name]
    wanted = [i for i, argument in enumerate(case.shapes) if argument not in CONSTANT]

    def gradients(op: Callable[..., Any], inputs: dict[str, Tensor], options: dict[str, Any]) -> Any:
        arguments = leaves(inputs)
        outs = results(op, arguments, options)
        outs = outs[:1] if case.op is schema.BATCH_NORM_ECA else outs  # beside statistics
        upstream = [torch.linspace(-2, 3, out.numel()).reshape(out.shape).to(out.dtype) for out in outs]
        return torch.autograd.grad(outs, [arguments[i] for i in wanted], upstream)

    for inputs, options, about in calls(case):
        expected = gradients(PLAIN[case.op], inputs, options)
        for got, plain in zip(gradients(case.op, inputs, options), expected, strict=True):
            assert_same_but_for_rounding(got, plain, arithmetic(inputs), about)
