"""Who is measured: a block's tail as networks write it, compiled in several ways, and our op; the check."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import eca_triton
from eca_triton.activations import GATES, PRE_ACTIVATIONS
from eca_triton.launch.call import EcaCall
from eca_triton.reference.arguments import SiteArguments

from ..shared.checks import Check
from ..shared.tensors import DTYPES, LAYOUTS
from .sites import Row

CHUNK = 1 << 24  # elements of a map that are compared in float64 at a time

Inputs = tuple[Tensor, ...]
"""x and, where there is one, the residual; last, in training, the gradient of the output."""


class Tail(nn.Module):
    """A tail, written as networks write it."""

    def __init__(self, row: Row) -> None:
        super().__init__()
        kind = self.kind = row.tail
        self.norm = nn.BatchNorm2d(row.shape[0]) if kind.normalises else None
        self.conv = nn.Conv1d(1, 1, row.taps, padding=0 if kind.circular else row.taps // 2, bias=kind.bias)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        return self.kind.activate(self.before_activation(x, residual))

    def before_activation(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """The addition's result."""
        if self.norm is not None:
            x = self.norm(x)
        kind, side = self.kind, self.conv.kernel_size[0] // 2
        x = PRE_ACTIVATIONS[kind.pre_activation].function(x)
        y = x.mean((2, 3)).unsqueeze(1)
        if kind.circular:
            y = F.pad(y, (side, side), mode="circular")
        y = GATES[kind.gate].function(self.conv(y))
        out = x * y.view(x.shape[0], -1, 1, 1).expand_as(x)
        if kind.gain != 1.0:
            out = kind.gain * out
        return out if residual is None else out + residual


def tail_of(row: Row, device: torch.device) -> Tail:
    """Make the tail in the row's mode and dtype, with random parameters; batch norm trains in fp32."""
    tail = Tail(row)
    if tail.norm is not None:
        mean, var, weight, bias = _vectors(tail.norm)
        for vector in (mean, weight, bias):
            nn.init.normal_(vector)
        nn.init.uniform_(var, 0.5, 2.0)
    tail = tail.to(device, DTYPES[row.dtype]).train(row.trains).requires_grad_(row.trains)
    if row.trains and tail.norm is not None:
        tail.norm.float()
    return tail


def inputs_of(row: Row, device: torch.device) -> Inputs:
    """Fresh random maps, leaves of autograd where it is needed."""
    shape = (row.batch, *row.shape)
    maps = tuple(
        torch.empty(
            shape, dtype=DTYPES[row.dtype], device=device, memory_format=LAYOUTS[row.layout]
        ).normal_()
        for _ in range(1 + row.tail.adds + row.trains)
    )
    for tensor in maps[: 1 + row.tail.adds]:
        tensor.requires_grad_(row.trains)
    return maps


def contender(name: str, tail: Tail) -> Callable[..., Tensor]:
    """A function of x and the residual.

    Args:
        name: "eager", "inductor" (stock torch.compile), "max-autotune" (the same in that mode, without CUDA
            graphs), "compiled" (torch.compile with our backend), "op" (the eager `eca`), or "two_pass" (the
            two launches that the op falls back to).
        tail: Equal to the function.
    """
    torch_compile = partial(torch.compile, tail, dynamic=False, fullgraph=True)
    if name == "eager":
        return tail
    if name == "inductor":
        return torch_compile()
    if name == "max-autotune":
        return torch_compile(mode="max-autotune-no-cudagraphs")
    if name == "compiled":
        return torch_compile(backend="eca_triton")
    return partial(_op if name == "op" else _two_pass, tail)


def check(calls: Mapping[str, Callable[..., Tensor]], tail: Tail, inputs: Inputs) -> dict[str, Check]:
    """Compare what each call writes, to memory that held NaN, with float64; all images, some at a time."""
    exact_tail = copy.deepcopy(tail).double()
    outs = {"eager": tail(*inputs)}
    for name, call in calls.items():
        poison = torch.full_like(inputs[0], torch.nan)
        del poison  # the allocator hands this memory out again
        outs[name] = call(*inputs)

    errors = {name: inputs[0].new_zeros((), dtype=torch.float64) for name in outs}
    largest = inputs[0].new_zeros((), dtype=torch.float64)
    images = max(1, CHUNK // inputs[0][0].numel())
    for start in range(0, len(inputs[0]), images):
        part = slice(start, start + images)
        exact = exact_tail(*(tensor[part].double() for tensor in inputs))
        largest = torch.maximum(largest, exact.abs().max())
        for name, out in outs.items():
            errors[name] = torch.maximum(errors[name], (out[part].double() - exact).abs().max())
    ulp = torch.finfo(inputs[0].dtype).eps * largest.item()
    allowed = 2 * errors["eager"].item() + ulp
    return {name: Check(errors[name].item(), allowed) for name in calls}


def _op(tail: Tail, x: Tensor, residual: Tensor | None = None) -> Tensor:
    batch_norm = None
    if tail.norm is not None:
        batch_norm = eca_triton.BatchNormParameters(*_vectors(tail.norm), tail.norm.eps)
    kind = tail.kind
    return eca_triton.eca(
        x,
        tail.conv.weight,
        tail.conv.bias,
        gate=kind.gate,
        circular=kind.circular,
        batch_norm=batch_norm,
        pre_activation=kind.pre_activation,
        gain=kind.gain,
        residual=residual,
        activation=kind.activation,
    )


def _two_pass(tail: Tail, x: Tensor, residual: Tensor | None = None) -> Tensor:
    from eca_triton.launch import forward as launch_forward

    kind, conv, bn = tail.kind, tail.conv, [None] * 4 if tail.norm is None else _vectors(tail.norm)
    out = torch.empty_like(x)
    options = (1e-5, kind.pre_activation, kind.circular, kind.gate, kind.gain, kind.activation)
    a = SiteArguments(x, conv.weight, conv.bias, *bn, residual, *options)
    launch_forward.pool_and_rescale(EcaCall(a, out))
    return out


def _vectors(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    return norm.running_mean, norm.running_var, norm.weight, norm.bias
