"""Check that a launch computes what the reference does, before anything is written to a table."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from .. import reference
from ..activations import ACTIVATIONS, SELECTING
from ..launch.call import BackwardCall, Call, GateCall, ProductCall
from ..reference import training as reference_training
from .examples import AnyCall

RUNS = 3  # programs that wait for each other meet in another order each time
CHUNK = 1 << 24  # elements that the reference computes at a time: in float64 it takes many copies
ULPS = 4  # of a map's largest value, in the dtype of x: sums in another order
ULPS_OF_SUMS = 32  # of the largest of values [N, C], in their own
SHARED = ("weight", "bias", "projection")  # by all images

Values = dict[str, Tensor]


def disagreement(call: AnyCall, launch: Callable[[], object]) -> str:
    """Return what is wrong with what `launch` fills the call's outputs with, or "".

    An output may be twice as far from the exact one, in float64, as the reference in its own dtype, and some
    units of the last place more. Outputs hold NaN before each run.
    """
    if isinstance(call, BackwardCall) and call.mask is None and ACTIVATIONS[call.activation].corners:
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


def _first_problem(call: AnyCall) -> str:
    for first, part in _parts(call):
        exact, native = _reference(_as_double(part)), _reference(part)
        for name, got in part.outputs.items():
            if name == "mask":
                problem = _wrong_bits(got, exact["before"], native["before"], part)
            else:
                problem = _too_far(name, got, native[name], exact[name], part.x.dtype)
            if problem:
                return f"images {first} to {first + part.x.shape[0] - 1}: {problem}"
    return ""


def _too_far(name: str, got: Tensor, native: Tensor, exact: Tensor, dtype: torch.dtype) -> str:
    native = native.to(got.dtype)  # rounded as the launch has to round
    error, earned = (float((each.double() - exact).abs().max()) for each in (got, native))
    # Sums and gates are few and fp32: what a position too few changes would be lost in a map's own rounding.
    scale = ULPS * torch.finfo(dtype).eps if got.ndim > 2 else ULPS_OF_SUMS * torch.finfo(got.dtype).eps
    allowed = 2 * earned + scale * float(exact.abs().max())
    return "" if error <= allowed else f"{name} is off by {error:.3g}, and may be by {allowed:.3g}"


def _wrong_bits(got: Tensor, exact: Tensor, native: Tensor, call: AnyCall) -> str:
    """Bits must be right where no rounding can move what is activated across a corner."""
    assert isinstance(call, Call)
    order = "contiguous" if call.layout.contiguous else "channels_last"
    scale = torch.finfo(torch.float32).eps * float(exact.abs().max())  # bits are told before any rounding
    margin = 2 * float((native - exact).abs().max()) + ULPS * scale
    sure = ~_near_corner(exact, call.activation, margin)
    passes = SELECTING[call.activation](exact)
    wrong = int(((reference_training.unpack(got, call.x.shape, order) != passes) & sure).sum())
    return f"{wrong} bits of the mask are wrong" if wrong else ""


def _near_corner(value: Tensor, activation: str, margin: float) -> Tensor:
    near = [(value - corner).abs() <= margin for corner in ACTIVATIONS[activation].corners]
    return torch.stack(near).any(0)


def _avoid_corners(call: BackwardCall) -> None:
    """No gradient comes in where the recomputed argument of the activation is next to a corner."""
    for _, part in _parts(call):
        exact = _as_double(part)
        assert isinstance(exact, BackwardCall)
        y = reference.normalize(exact.pooled, exact.bn, exact.bn_eps, "identity")
        g = reference.gate_from_pool(y, exact.weight, exact.bias, circular=exact.circular, gate=exact.gate)
        xhat = reference.normalize(exact.x, exact.bn, exact.bn_eps, "identity")
        u = exact.gain * xhat * g.reshape(*g.shape, *[1] * (xhat.ndim - 2))
        u = u if exact.residual is None else u + exact.residual
        margin = ULPS * torch.finfo(torch.float32).eps * float(u.abs().max())
        part.dy.masked_fill_(_near_corner(u, call.activation, margin), 0.0)


def _reference(call: AnyCall) -> Values:
    """Return what the outputs should be, in the dtype of the arithmetic on the call's x."""
    return _REFERENCES[type(call)](call, reference.compute_dtype(call.x))


def _gate(call: GateCall, dtype: torch.dtype) -> Values:
    options = {name: getattr(call, name) for name in ("bn", "bn_eps", "pre_activation", "circular", "gate")}
    return {"out": reference.gate(call.x, call.weight, call.bias, **options, out_dtype=dtype)}


def _forward(call: Call, dtype: torch.dtype) -> Values:
    options = {name: getattr(call, name) for name in ("bn", "bn_eps", "pre_activation", "circular")}
    options |= {name: getattr(call, name) for name in ("gate", "gain", "residual")}
    before = reference.eca(call.x, call.weight, call.bias, **options, out_dtype=dtype)
    out = ACTIVATIONS[call.activation].function(before)
    return {"out": out, "before": before, "pooled": reference.pool(call.x)}


def _product(call: ProductCall, dtype: torch.dtype) -> Values:
    x, projection = call.x, call.projection.to(call.x.dtype)
    return {"out": reference.rescaled_projection(x, projection, call.factor, call.summand, out_dtype=dtype)}


def _backward(call: BackwardCall, dtype: torch.dtype) -> Values:
    order = "none" if call.mask is None else "contiguous" if call.layout.contiguous else "channels_last"
    gradients = reference_training.eca_backward(
        call.dy, call.x, call.weight, call.bias, bn=call.bn, bn_eps=call.bn_eps, circular=call.circular,
        gate=call.gate, gain=call.gain, residual=call.residual, activation=call.activation,
        pooled=call.pooled, mask=call.mask, mask_order=order,
        wants_x=True, wants_residual=True, wants_band=False, wants_bn=False,
    )  # fmt: skip
    p = gradients.residual
    assert gradients.x is not None
    assert p is not None
    space = tuple(range(2, call.x.ndim))
    xhat = reference.normalize(call.x, call.bn, call.bn_eps, "identity")
    x = call.x.to(dtype)
    if call.bn is not None:
        x = x - call.bn[0].to(dtype).reshape(-1, *[1] * len(space))
    return {
        "d_x": gradients.x,
        "d_residual": p,
        "d_gate": call.gain * (p * xhat).sum(space),
        "p_sum": p.sum(space),
        "p_dot_x": (p * x).sum(space),
    }


def _parts(call: Any) -> Iterator[tuple[int, Any]]:
    """The call for some images at a time, with the number of the first: images are independent."""
    images = call.x.shape[0]
    step = max(1, CHUNK * images // max(tensor.numel() for tensor in call.maps))
    per_image = {
        name: value
        for name, value in call._asdict().items()
        if isinstance(value, Tensor) and name not in SHARED
    }
    for first in range(0, images, step):
        part = {name: value[first : first + step] for name, value in per_image.items()}
        yield first, call._replace(**part)


def _as_double(call: Any) -> Any:
    """The call with all its inputs in float64."""
    given = {name: value for name, value in call._asdict().items() if name not in call.outputs}
    return call._replace(**{name: _double(value) for name, value in given.items()})


def _double(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(_double(each) for each in value)
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


_REFERENCES: dict[type, Callable[[Any, torch.dtype], Values]] = {
    GateCall: _gate,
    Call: _forward,
    BackwardCall: _backward,
    ProductCall: _product,
}
"""What the outputs of a call should be, in a dtype, by kind of call."""
