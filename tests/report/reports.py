"""A small network with one site of every fate, and a report that nobody had to lower for."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from eca_triton.compile.plan.cost import Cost
from eca_triton.compile.plan.decide import Decision
from eca_triton.compile.record import SiteRecord
from eca_triton.compile.settings import Plan
from eca_triton.deviceless import Buffer, Comparison, Kernel, Lowering
from eca_triton.report import Report
from eca_triton.report.lookalikes import UNREACHED, Unmatched
from eca_triton.report.result import Subject


class Attention(nn.Module):
    """ECA; with a GELU before its gate, something else."""

    def __init__(self, before_gate: nn.Module | None = None) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 1, 3, padding=1, bias=False)
        self.before_gate = before_gate or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        gate = self.before_gate(self.conv(x.mean((2, 3))[:, None])).sigmoid()
        return x * gate.view(*x.shape[:2], 1, 1)


class HiddenAttention(Attention):
    """ECA that Dynamo is told not to look at."""

    @torch.compiler.disable
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


class Network(nn.Module):
    """Convolution, batch norm, ECA, ReLU, convolution; a layer that only looks like ECA; one never called."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(64)
        self.attention = Attention()
        self.next = nn.Conv2d(64, 64, 1, bias=False)
        self.other = Attention(nn.GELU())
        self.unused_eca = Attention()

    def forward(self, x: Tensor) -> Tensor:
        return self.other(self.next(self.attention(self.bn(self.conv(x))).relu()))


def fixed(*, name: str = "layer1.0.se", module: str = "head.eca", plain: bool = True) -> Report:
    """Two lowered sites, one near miss, one module never reached; every figure in it is made up.

    Args:
        name: Of the first site.
        module: Of the module that is not reached.
        plain: Whether there is a network without ECA.
    """
    stock = _lowering(("aten.convolution.default", 4e9, 10**9), ("triton_mean", 0, 10**9))
    ours = _lowering(("aten.convolution.default", 4e9, 10**9), ("triton_eca", 0, 4 * 10**8))
    return Report(
        subject=Subject(
            model="timm:network",
            inputs=("128 x 3 x 224 x 224 bfloat16",),
            dtype="bfloat16",
            batch=128,
            training=False,
            mode="default",
            target="h200",
            versions={"eca_triton": "0.1.0", "torch": "2.14.1"},
        ),
        sites=(
            _site(name, (128, 256, 56, 56), "block", 3.0, ("batch_norm", "relu")),
            _site("layer2.0.se", (128, 512, 28, 28), "gate", 4.0, ("batch_norm",)),
            SiteRecord(
                "layer3.0.se",
                (128, 1, 64),
                3,
                Decision("skip", "ECA106", "tanh", math.nan, math.nan, ()),
                source="model.py:18",
            ),
        ),
        comparison=Comparison(stock, ours, []),
        plain=_lowering(("aten.convolution.default", 4e9, 10**9)) if plain else None,
        no_plain="" if plain else "layer1.0 holds a site among other code",
        unmatched=(Unmatched(module, "EcaModule", UNREACHED, ""),),
    )


def _site(name: str, shape: tuple[int, ...], plan: Plan, after: float, fused: tuple[str, ...]) -> SiteRecord:
    """Of 5 S with stock; moving is all that it costs."""
    s = 2 * math.prod(shape)
    costs = [Cost(traffic * s, 0.0, 1, 0.0) for traffic in (5.0, after)]
    decision = Decision(plan, None, "", 5.0, after, fused, "h200", *costs)
    return SiteRecord(name, shape, 5, decision, s, name, "model.py:12")


def _lowering(*kernels: tuple[str, float, int]) -> Lowering:
    return Lowering(tuple(kernel(*each) for each in kernels), 0.0)


def kernel(
    name: str = "triton_add", flops: float = 0, moved: int = 0, dtype: torch.dtype = torch.bfloat16
) -> Kernel:
    """One kernel of which only this counts."""
    buffer = Buffer("buf0", (moved // dtype.itemsize,), (1,), dtype, moved)
    kind = "extern" if name.startswith("aten.") else "triton"
    return Kernel(name, kind, "forward", (name,), (buffer,), (), moved, flops=int(flops))
