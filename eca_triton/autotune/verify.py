"""Check that a launch computes what the reference does, before anything is written to a table."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .. import reference
from ..activations import ACTIVATIONS, SELECTING
from ..launch.call import BackwardCall, Call, EcaCall, GateCall, ProductCall
from ..reference import training as reference_training
from ..reference.arguments import BackwardArguments, RescaledArguments, SiteArguments

RUNS = 3  # programs that wait for each other meet in another order each time
CHUNK = 1 << 24  # elements that the reference computes at a time: in float64 it takes many copies
ULPS = 4  # of a map's largest value, in the dtype of x: sums in another order
ULPS_OF_SUMS = 32  # of the largest of values [N, C], in their own
OF_IMAGES = ("grad", "x", "residual", "pooled", "mask", "factor", "summand")  # arguments, with images first

Values = dict[str, Tensor]


def disagreement(call: Call, launch: Callable[[], object]) -> str:
    """Return what is wrong with what `launch` fills the call's outputs with, or "".

    An output may be twice as far from the exact one, in float64, as the reference in its own dtype, and some
    units of the last place more. Outputs hold NaN before each run.
    """
    if isinstance(call, BackwardCall) and call.a.mask is None and ACTIVATIONS[call.a.activation].corners:
        _avoid_corners(call)
    for _ in range(RUNS):
        for out in call.outputs.values():
            if out.is_floating_point():
                out.fill_(math.nan)
        launch()
        problem = _first_problem(call)
        if problem:
            return problem
    return ""


def _first_problem(call: Call) -> str:
    for first, part in _parts(call):
        exact, native = (_reference(part, a) for a in (_as_double(part), part.a))
        for name, got in part.outputs.items():
            if name == "mask":
                problem = _wrong_bits(got, exact["before"], native["before"], part)
            else:
                problem = _too_far(name, got, native[name], exact[name], part.a.x.dtype)
            if problem:
                return f"images {first} to {first + len(part.a.x) - 1}: {problem}"
    return ""


def _too_far(name: str, got: Tensor, native: Tensor, exact: Tensor, dtype: torch.dtype) -> str:
    native = native.to(got.dtype)  # rounded as the launch has to round
    error, earned = (float((each.double() - exact).abs().max()) for each in (got, native))
    # Sums and gates are few and fp32: what a position too few changes would be lost in a map's own rounding.
    scale = ULPS * torch.finfo(dtype).eps if got.ndim > 2 else ULPS_OF_SUMS * torch.finfo(got.dtype).eps
    allowed = 2 * earned + scale * float(exact.abs().max())
    return "" if error <= allowed else f"{name} is off by {error:.3g}, and may be by {allowed:.3g}"


def _wrong_bits(got: Tensor, exact: Tensor, native: Tensor, call: Call) -> str:
    """Bits must be right where no rounding can move what is activated across a corner."""
    a = call.a
    scale = torch.finfo(torch.float32).eps * float(exact.abs().max())  # bits are told before any rounding
    margin = 2 * float((native - exact).abs().max()) + ULPS * scale
    sure = ~_near_corner(exact, a.activation, margin)
    passes = SELECTING[a.activation](exact)
    wrong = int(((reference_training.unpack(got, a.x.shape, a.mask_order) != passes) & sure).sum())
    return f"{wrong} bits of the mask are wrong" if wrong else ""


def _near_corner(value: Tensor, activation: str, margin: float) -> Tensor:
    near = [(value - corner).abs() <= margin for corner in ACTIVATIONS[activation].corners]
    return torch.stack(near).any(0)


def _avoid_corners(call: BackwardCall) -> None:
    """No gradient comes in where the recomputed argument of the activation is next to a corner."""
    for _, part in _parts(call):
        a = _as_double(part)
        y = reference.normalize(a.pooled, a.bn, a.bn_eps, "identity")
        u = reference_training.before_activation(a, reference_training.gates(a, y))
        margin = ULPS * torch.finfo(torch.float32).eps * float(u.abs().max())
        part.a.grad.masked_fill_(_near_corner(u, a.activation, margin), 0.0)


def _reference(call: Call, a: Any) -> Values:
    """Return what a call's outputs should be for these arguments, in the dtype of the arithmetic on x."""
    return _REFERENCES[type(call)](a, reference.compute_dtype(a.x))


def _gate(a: SiteArguments, dtype: torch.dtype) -> Values:
    return {"out": reference.gate(a._replace(out_dtype=dtype))}


def _forward(a: SiteArguments, dtype: torch.dtype) -> Values:
    before = reference.eca(a._replace(activation="identity", out_dtype=dtype))
    out = ACTIVATIONS[a.activation].function(before)
    return {"out": out, "before": before, "pooled": reference.pool(a.x)}


def _product(a: RescaledArguments, dtype: torch.dtype) -> Values:
    a = a._replace(projection=a.projection.to(a.x.dtype), out_dtype=dtype)
    return {"out": reference.rescaled_projection(a)}


def _backward(a: BackwardArguments, dtype: torch.dtype) -> Values:
    wanted = a._replace(wants_x=True, wants_residual=True, wants_band=False, wants_bn=False)
    gradients = reference_training.gradients(wanted)
    p = gradients.residual
    assert gradients.x is not None
    assert p is not None
    space = tuple(range(2, a.x.ndim))
    xhat = reference.normalize(a.x, a.bn, a.bn_eps, "identity")
    x = a.x.to(dtype)
    if a.bn_mean is not None:
        x = x - a.bn_mean.to(dtype).reshape(-1, *[1] * len(space))
    return {
        "d_x": gradients.x,
        "d_residual": p,
        "d_gate": a.gain * (p * xhat).sum(space),
        "p_sum": p.sum(space),
        "p_dot_x": (p * x).sum(space),
    }


def _parts(call: Call) -> Iterator[tuple[int, Call]]:
    """The call for some images at a time, with the number of the first: images are independent."""
    images = len(call.a.x)
    step = max(1, CHUNK * images // max(tensor.numel() for tensor in call.maps))
    given = {name: value for name, value in call.a._asdict().items() if name in OF_IMAGES}
    for first in range(0, images, step):
        arguments, outputs = (
            {name: tensor[first : first + step] for name, tensor in tensors.items() if tensor is not None}
            for tensors in (given, call.outputs)
        )
        yield first, replace(call, a=call.a._replace(**arguments), **outputs)


def _as_double(call: Call) -> Any:
    """The arguments of a call with all tensors of floats in float64."""
    return type(call.a)(*(
        value.double() if isinstance(value, Tensor) and value.is_floating_point() else value
        for value in call.a
    ))  # fmt: skip


_REFERENCES: dict[type, Callable[[Any, torch.dtype], Values]] = {
    GateCall: _gate,
    EcaCall: _forward,
    BackwardCall: _backward,
    ProductCall: _product,
}
"""What the outputs of a call should be, in a dtype, by kind of call."""
