"""Inductor's code for a GPU of a training step with batch norm before ECA, run here: against float64."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from eager_block import assert_as_good_as
from inductor_code import Training
from timm.layers import EcaModule
from torch import Tensor, nn

from eca_triton.compile import compat

FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
CHANNELS = 16
OPTIONS: dict[str, Any] = {"autocast": torch.float16, "options": {"eca.force": True}}


class Tail(nn.Module):
    """The end of a bottleneck."""

    def __init__(self, affine: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(CHANNELS, CHANNELS, 1, bias=False)
        self.bn = nn.BatchNorm2d(CHANNELS, affine=affine)
        self.eca = EcaModule(CHANNELS)
        if affine:
            nn.init.uniform_(self.bn.weight, 0.5, 1)
            nn.init.normal_(self.bn.bias, std=0.2)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return torch.relu(self.eca(self.bn(self.conv(x))) + residual)


class Chain(nn.Module):
    """Two tails: the first result is read by a convolution and by a sum, whose gradients meet in it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Tail(), Tail()

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        x = self.first(x, residual)
        return self.second(x, x + 2 * residual)


class PooledTail(Tail):
    """The last block of a network: its result is only pooled."""

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return super().forward(x, residual).mean((2, 3))


CASES: dict[str, tuple[Callable[[], nn.Module], str, tuple[int, ...]]] = {
    "odd image": (Tail, "channels_last", (2, CHANNELS, 7, 5)),
    "image in a loop": (Tail, "channels_last", (2, CHANNELS, 10, 12)),
    "no affine": (lambda: Tail(affine=False), "channels_last", (2, CHANNELS, 6, 5)),
    "only pooled": (PooledTail, "channels_last", (2, CHANNELS, 6, 5)),
    "two blocks": (Chain, "channels_last", (2, CHANNELS, 6, 5)),
    "contiguous, odd image": (Tail, "contiguous", (2, CHANNELS, 7, 5)),
    "contiguous, even image": (Tail, "contiguous", (3, CHANNELS, 6, 6)),
}


def example(shape: tuple[int, ...], memory_format: torch.memory_format) -> dict[str, Tensor]:
    """x, and a residual so far from 0 that no rounding opens or closes a ReLU."""
    maps = {"x": torch.randn(shape), "residual": (torch.rand(shape) + 4) * torch.randn(shape).sign()}
    return {name: v.to(memory_format=memory_format).requires_grad_() for name, v in maps.items()}


def eager_step(
    model: nn.Module, inputs: dict[str, Tensor], dtype: torch.dtype, autocast: bool
) -> dict[str, Tensor]:
    """Output, gradients and buffers after a step with copies in a dtype."""
    model = copy.deepcopy(model).to(dtype)
    leaves = {name: leaf.detach().to(dtype, copy=True).requires_grad_() for name, leaf in inputs.items()}
    with torch.autocast("cpu", torch.float16, enabled=autocast):
        out = model(**leaves)
    out.backward(upstream(out))
    leaves |= dict(model.named_parameters())
    return {
        "out": out.detach(),
        **{name: leaf.grad for name, leaf in leaves.items()},
        **dict(model.named_buffers()),
    }


def upstream(out: Tensor) -> Tensor:
    """A gradient of the output with no structure, the same in every dtype."""
    return torch.empty_like(out).copy_(torch.randn(out.shape, generator=torch.Generator().manual_seed(1)))


def assert_as_exact_as_eager(model: nn.Module, draws: list[dict[str, Tensor]], training: Training) -> None:
    """Judged by the largest errors over some draws: of three taps one may be exact by chance."""
    found: dict[str, list[tuple[Tensor, ...]]] = {}
    for inputs in draws:
        native = eager_step(model, inputs, torch.float32, autocast=True)
        exact = eager_step(model, inputs, torch.float64, autocast=False)
        state = copy.deepcopy(model)
        outputs, grads = training.step(state, inputs, [upstream(native["out"])])
        got = {"out": outputs[0], **grads, **dict(state.named_buffers())}
        assert got.keys() == native.keys()
        for name, tensor in got.items():
            assert tensor.dtype == native[name].dtype, name
            assert tensor.isfinite().all(), name
            found.setdefault(name, []).append((tensor, native[name], exact[name]))
        for name in ("out", *inputs):
            assert got[name].stride() == native[name].stride(), name
    for name, runs in found.items():
        one, plain, double = (torch.cat([t.flatten() for t in run]) for run in zip(*runs, strict=True))
        if name.endswith("num_batches_tracked"):
            assert torch.equal(one, plain)
        else:
            assert_as_good_as(one, plain, double)


@pytest.mark.filterwarnings(
    "ignore:invalid value encountered in divide"
)  # by a masked lane, in the interpreter
@pytest.mark.parametrize("name", CASES)
def test_a_step_is_as_exact_as_eager_mode(name: str) -> None:
    build, layout, shape = CASES[name]
    model, draws = build(), [example(shape, FORMATS[layout]) for _ in range(3)]
    training = Training.of(
        model, tuple(draws[0].values()), channels_last=layout == "channels_last", **OPTIONS
    )
    assert_as_exact_as_eager(model, draws, training)
    sites = 2 if "two blocks" in name else 1
    packed = compat.packs_bits() and layout == "channels_last" and "pooled" not in name
    for code, op in ((training.forward, "gate_from_pool"), (training.backward, "gate_from_pool_backward")):
        assert re.findall(r"torch\.ops\.eca_triton\.(\w+)\.default\(", code) == [op] * sites
        assert ("'*u8'" in code) == packed


@pytest.mark.filterwarnings("ignore:invalid value encountered in divide")
def test_code_for_any_batch_serves_several() -> None:
    """And any height; the width becomes a number in Inductor's backward, stock or not."""
    model, inputs = Tail(), example((4, CHANNELS, 6, 5), torch.channels_last)
    training = Training.of(model, tuple(inputs.values()), channels_last=True, dynamic=True, **OPTIONS)
    draws = [example((batch, CHANNELS, 7, 5), torch.channels_last) for batch in (2, 5)]
    assert_as_exact_as_eager(model, draws, training)
