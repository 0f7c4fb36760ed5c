"""Multiply-adds and activations of a network, by the rules of the counts that timm publishes.

timm counts with fvcore (`infer_gmacs` and `infer_macts` of its `results/benchmark-infer-*.csv`). Besides
convolutions and matrix products fvcore counts batch norm, with 2 for an element in inference and 5 where its
statistics are taken, as networks without batch norm do of their weights. Activations are the results of
convolutions and matrix products. Average pooling is left out: it is less than the last digit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, flop_registry

import eca_triton  # noqa: F401  whose operators have FLOPs of their own

Shape = Sequence[int]


class Counts(NamedTuple):
    """Counts of one image.

    Attributes:
        gmacs: 10^9 multiply-adds.
        macts: 10^6 activations.
    """

    gmacs: float
    macts: float


def count(model: nn.Module, size: int) -> Counts:
    """Count a network on the meta device, for images of a side; in inference, whatever its mode."""
    macs = FlopCounterMode(display=False, custom_mapping=FLOPS)
    results = FlopCounterMode(display=False, custom_mapping=RESULTS)
    training = model.training
    with torch.no_grad(), macs, results:
        model.eval()(torch.empty(1, 3, size, size, device="meta"))
    model.train(training)
    return Counts(round(macs.get_total_flops() / 2e9, 2), round(results.get_total_flops() / 1e6, 2))


def _batch_norm(x: Shape, *others: Any, **__: Any) -> int:
    """Count in FLOPs, as torch does: two to a multiply-add."""
    takes_statistics = next((each for each in others if isinstance(each, bool)), False)
    return 2 * (5 if takes_statistics else 2) * math.prod(x)


def _elements(*_: Any, out_shape: Shape, **__: Any) -> int:
    return math.prod(out_shape)


def _channels(x: Shape, *_: Any, **__: Any) -> int:
    """The convolution over channels inside of the op."""
    return x[0] * x[1]


aten = torch.ops.aten
BATCH_NORMS = ("native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training")
FLOPS = {getattr(aten, name): _batch_norm for name in BATCH_NORMS}
RESULTS = {
    **{operator: lambda *_, **__: 0 for operator in flop_registry},
    **dict.fromkeys((aten.convolution, aten.mm, aten.addmm, aten.bmm, aten.baddbmm), _elements),
    torch.ops.eca_triton.eca: _channels,
}
