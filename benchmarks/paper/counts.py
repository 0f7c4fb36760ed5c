"""Parameters and multiply-adds of a network, by torch's flop counter: as torch counts, and as thop did.

The paper's authors counted with thop, one image of 224 x 224 (`paras_flops.py` in
https://github.com/BangguWu/ECANet). Their figures are those of thop 0.0.23 of July and August 2019: it counts
batch norm, ReLU and average pooling besides convolutions; versions from 6 August 2019 no longer count ReLU.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from timm.models.resnet import BasicBlock, Bottleneck
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from eca_triton.models.attention import CBAM, SE

IMAGE = (1, 3, 224, 224)


@dataclass(frozen=True)
class Counts:
    """Counts of one network and one image.

    Attributes:
        parameters: numbers that are learned.
        multiply_adds: of convolutions and matrix products; torch counts each as two FLOPs.
        thop: what thop 0.0.23 calls FLOPs.
    """

    parameters: int
    multiply_adds: int
    thop: int


def parameters(model: nn.Module) -> int:
    """Numbers that are learned."""
    return sum(each.numel() for each in model.parameters())


def count(build: Callable[[], nn.Module]) -> Counts:
    """Counts of the network that `build` makes; nothing is computed, for it is made on the meta device."""
    with torch.device("meta"):
        model, image = build().eval(), torch.empty(IMAGE)
    by_torch, by_thop = FlopCounterMode(display=False), FlopCounterMode(display=False, custom_mapping=THOP)
    with torch.no_grad(), by_torch, by_thop:
        model(image)
    return Counts(parameters(model), by_torch.get_total_flops() // 2, _thop(model, by_thop))


def _thop(model: nn.Module, counter: FlopCounterMode) -> int:
    """Return what thop makes of a network: counts of modules, some of which the paper's networks have not.

    What the network itself calls is no module: so MobileNetV2's last pooling is not counted.
    """
    root = type(model).__name__
    found = {name: sum(each.values()) for name, each in counter.get_flop_counts().items()}
    total = sum(found.get(f"{root}.{name}", 0) for name, _ in model.named_children())
    return total + sum(
        change(found.get(f"{root}.{name}", 0))
        for prefix, module in model.named_modules()
        for name, change in _changes(prefix, module)
    )


def _changes(prefix: str, module: nn.Module) -> Iterator[tuple[str, Callable[[int], int]]]:
    """Names of modules that count otherwise in the paper, and what to add to their counts.

    thop 0.0.23 keeps one count for each module, that of its last call. The paper's residual units have one
    ReLU, called last behind the sum; ours have one for each place. CBAM calls its layers twice, once each for
    the mean and the maximum. SE's two layers are `nn.Linear` there, with 2 * inputs - 1 for each output.
    """
    if isinstance(module, (BasicBlock, Bottleneck)):
        yield f"{prefix}.act1", lambda counted: -counted
        if isinstance(module, Bottleneck):
            yield f"{prefix}.act2", lambda counted: -counted
    elif isinstance(module, CBAM):
        for name in ("fc1", "act", "fc2"):
            yield f"{prefix}.channel.{name}", lambda counted: -counted // 2
    elif isinstance(module, SE):
        yield f"{prefix}.fc1", lambda counted: counted - module.fc1.out_channels
        yield f"{prefix}.fc2", lambda counted: counted - module.fc2.out_channels


Shape = Sequence[int]


def _convolution(x: Shape, weight: Shape, *_: Any, out_shape: Shape, **__: Any) -> int:
    return math.prod(out_shape) * math.prod(weight[1:])


def _linear(bias: Shape, x: Shape, weight: Shape, *_: Any, out_shape: Shape, **__: Any) -> int:
    return math.prod(out_shape) * (2 * x[1] - 1)


def _batch_norm(x: Shape, *_: Any, **__: Any) -> int:
    return 4 * math.prod(x)


def _activation(x: Shape, *_: Any, **__: Any) -> int:
    return math.prod(x)


def _pool(x: Shape, dim: Sequence[int], *_: Any, out_shape: Shape, **__: Any) -> int:
    """Additions, and one division for each result; CBAM's mean over channels is no module of pooling."""
    return math.prod(x) + math.prod(out_shape) if len(dim) == 2 else 0


def _eca(x: Shape, weight: Shape, *_: Any, **__: Any) -> int:
    """Pooling, and the convolution of k taps; gate and product are no modules that thop knows."""
    return math.prod(x) + x[0] * x[1] * (1 + weight[-1])


THOP = {
    torch.ops.aten.convolution: _convolution,
    torch.ops.aten.addmm: _linear,
    torch.ops.aten.native_batch_norm: _batch_norm,
    torch.ops.aten._native_batch_norm_legit_no_training: _batch_norm,
    torch.ops.aten.relu_: _activation,
    torch.ops.aten.hardtanh_: _activation,
    torch.ops.aten.mean: _pool,
    torch.ops.aten.bmm: lambda *_, **__: 0,
    torch.ops.eca_triton.eca: _eca,
}
"""thop 0.0.23's formulas, for the operators that these networks call."""
