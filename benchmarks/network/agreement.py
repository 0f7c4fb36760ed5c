"""Check that a network's results and gradients are as good as eager's: judged against eager in float32."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..shared.checks import Check
from ..shared.networks import attention

Groups = dict[str, list[Tensor]]
"""Tensors that are judged together: "out" and, in training, "attention" and "weights" (their gradients)."""


class Step(NamedTuple):
    """A network, as it is called, and its batch."""

    module: nn.Module
    call: Callable[..., Any]
    images: Tensor
    labels: Tensor

    def infer(self) -> Tensor:
        """The network's result."""
        with torch.no_grad():
            out: Tensor = self.call(self.images)
        return out

    def loss(self) -> tuple[Tensor, Tensor]:
        """The network's result, and the loss of its labels, in float32."""
        out: Tensor = self.call(self.images)
        return out, F.cross_entropy(out.float(), self.labels)


def outcome(step: Step, training: bool) -> Groups:
    """Return the results of a step, in groups; the module keeps no gradient."""
    if not training:
        return {"out": [step.infer()]}
    weights = dict(step.module.named_parameters())
    out, loss = step.loss()
    grads = dict(zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True))
    ours = tuple(f"{path}." for path in attention(step.module))
    inside = {name: bool(ours) and name.startswith(ours) for name in grads}
    return {
        "out": [out.detach()],
        "attention": [grad for name, grad in grads.items() if inside[name]],
        "weights": [grad for name, grad in grads.items() if not inside[name]],
    }


def agrees(found: Groups, native: Groups, exact: Groups) -> Check:
    """The worst group's error: at most twice that of eager in the same dtype, plus one rounding to it.

    Errors are Euclidean norms over a group, as shares of the exact values' norm.
    """
    checks = []
    for name, truth in exact.items():
        size = _norm(truth) or 1.0
        # A rounding is off by half a step at most, evenly: by a step over the root of 12 in the mean square.
        unit = max((torch.finfo(tensor.dtype).eps for tensor in found[name]), default=0.0) / math.sqrt(12)
        allowed = 2 * _off(native[name], truth) / size + unit
        checks.append(Check(_off(found[name], truth) / size, allowed, name))
    return max(checks, key=lambda one: (not one.passed, one.error / one.allowed if one.allowed else 0.0))


def _norm(tensors: list[Tensor]) -> float:
    return math.sqrt(sum(float(tensor.double().square().sum()) for tensor in tensors))


def _off(got: list[Tensor], exact: list[Tensor]) -> float:
    squares = [float((a.double() - b.double()).square().sum()) for a, b in zip(got, exact, strict=True)]
    return math.sqrt(sum(squares))


def worst(checks: Mapping[str, Check]) -> list[str]:
    """A line for each check that failed."""
    return [
        f"{name}: {check.tensor} off by {check.error:.2g}, allowed {check.allowed:.2g}"
        for name, check in checks.items()
        if not check.passed
    ]
