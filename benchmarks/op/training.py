"""A training step of a tail: its gradients, how exact they are, and its backward by itself."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from eca_triton.util.timing import Call

from ..shared.checks import Check
from .contenders import Inputs, Tail

Gradients = tuple[Tensor, ...]
"""Of the maps, then of the tail's parameters."""


def step(call: Callable[..., Tensor], tail: Tail, inputs: Inputs) -> Gradients:
    """Forward and backward."""
    *maps, dy = inputs
    return torch.autograd.grad(call(*maps), [*maps, *tail.parameters()], dy)


def backward_alone(call: Callable[..., Tensor], tail: Tail, inputs: Sequence[Inputs]) -> Call:
    """The backward on one of several inputs; the first call on each also runs the forward, which is kept."""
    outs: dict[int, Tensor] = {}

    def backward(index: int) -> Gradients:
        *maps, dy = inputs[index]
        if index not in outs:
            outs[index] = call(*maps)
        return torch.autograd.grad(outs[index], [*maps, *tail.parameters()], dy, retain_graph=True)

    return backward


def check_step(calls: Mapping[str, Callable[..., Tensor]], tail: Tail, inputs: Inputs) -> dict[str, Check]:
    """Compare each call's result and gradients, in memory that held NaN, with float64: its worst tensor.

    Where rounding may open or close a ReLU, no gradient comes in: either side's would be right.
    """
    *maps, dy = inputs
    exact_tail = copy.deepcopy(tail).double()
    exact_maps = [tensor.detach().double().requires_grad_() for tensor in maps]
    before = exact_tail.before_activation(*exact_maps)
    exact = tail.kind.activate(before)
    with torch.no_grad():
        error = _allowed(copy.deepcopy(tail)(*maps), exact)
        dy = dy.masked_fill(tail.kind.undecided(before, error), 0)
    names = ["out", "x", "residual"][: 1 + len(maps)] + [name for name, _ in tail.named_parameters()]
    truth = (exact, *torch.autograd.grad(exact, [*exact_maps, *exact_tail.parameters()], dy.double()))
    allowed = [
        _allowed(native, each) for native, each in zip(_outcome(tail, tail, maps, dy), truth, strict=True)
    ]
    checks = {}
    for name, call in calls.items():
        poison = [torch.full_like(tensor, torch.nan) for tensor in inputs]
        del poison  # the allocator hands this memory out again
        found = [
            Check(_error(got, each), most, tensor)
            for got, each, most, tensor in zip(
                _outcome(call, tail, maps, dy), truth, allowed, names, strict=True
            )
        ]
        checks[name] = max(found, key=lambda one: (not one.passed, one.error / max(one.allowed, 1e-300)))
    return checks


def _outcome(call: Callable[..., Tensor], tail: Tail, maps: list[Tensor], dy: Tensor) -> Gradients:
    out = call(*maps)
    return (out, *torch.autograd.grad(out, [*maps, *tail.parameters()], dy))


def _allowed(native: Tensor, exact: Tensor) -> float:
    ulp = torch.finfo(native.dtype).eps * exact.abs().max().item()
    return 2 * _error(native, exact) + ulp


def _error(got: Tensor, exact: Tensor) -> float:
    return (got.double() - exact).abs().max().item()
