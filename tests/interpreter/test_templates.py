"""Inductor's code for a GPU with our kernels in it: every template, layout and neighbour, against float64."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from eager_block import assert_as_good_as, eager_eca, to_double
from inductor_code import generated, run
from kernel_cases import Row, covering, label
from torch import Tensor, nn

from eca_triton.compile import compat
from eca_triton.compile.inductor import lowering
from eca_triton.tuning.config import Choice, Device
from eca_triton.tuning.families.lagged import lagged_config
from eca_triton.tuning.problem import Problem

ECA = torch.ops.eca_triton.eca
CONTIGUOUS, LAST = torch.contiguous_format, torch.channels_last

MAPS = {  # kernel: shape, taps, memory format
    "tile": ((2, 24, 8, 8), 3, CONTIGUOUS),
    "tile with a tail": ((2, 8, 12, 24), 5, CONTIGUOUS),
    "tile by windows": ((2, 32, 7, 7), 5, CONTIGUOUS),
    "tile_channels_last": ((2, 40, 7, 6), 5, LAST),
    "lagged": ((2, 16, 16, 24), 3, CONTIGUOUS),
    "lagged channels_last": ((2, 48, 12, 9), 5, LAST),
}

NEIGHBOURS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "none": lambda y, r: y,
    "residual and relu": lambda y, r: F.relu(y + r),
    "gains, residual and silu": lambda y, r: F.silu(y * 2.0 * 0.2 + r),
    "a second result": lambda y, r: (F.relu(y + r), y - 1),
    "per image and per channel": lambda y, r: y * r[:, :1, :1, :1] + r[:1, :, :1, :1] * r,
}

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "activation before": {"pre_activation": "silu"},
    "circular, hard sigmoid": {"circular": True, "gate": "hard_sigmoid"},
    "batch norm and relu before": {"bn_eps": 1e-3, "pre_activation": "relu"},
    "batch norm before": {"bn_eps": 1e-3},
}

CASES = covering({"name": list(MAPS), "neighbours": list(NEIGHBOURS), "options": list(OPTIONS)})


class Block(nn.Module):
    """ECA, as our op or as users write it, and what follows it."""

    def __init__(self, ours: bool, follow: Callable[[Tensor, Tensor], Any], **options: Any) -> None:
        super().__init__()
        self.ours, self.follow, self.options = ours, follow, options

    def forward(self, x: Tensor, weight: Tensor, vectors: tuple[Tensor, ...], r: Tensor) -> Any:
        if self.ours:
            return self.follow(ECA(x, weight, *vectors, **self.options), r)
        bias, *bn = vectors or (None,)
        return self.follow(eager_eca(x, weight, bias, bn=tuple(bn) or None, **self.options), r)


@pytest.fixture(autouse=True)
def _few_multiprocessors(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests' maps are small: on a large GPU no program would have more than a sliver of them."""
    lowering.install()
    kernel = request.node.callspec.params["row"]["name"].split()[0]
    select = lowering.select

    def chosen(problem: Problem) -> Choice:
        choice = select(problem)
        if kernel == "lagged":
            config = lagged_config(replace(problem, device=Device(4, 32)))
            choice = Choice("lagged", config)
        assert choice.kernel == kernel
        return choice

    monkeypatch.setattr(lowering, "select", chosen)
    monkeypatch.setattr(Device, "of", lambda _: Device(num_sms=2, warp_size=32))


@pytest.mark.parametrize("row", CASES, ids=label)
def test_generated_code_is_as_good_as_eager_and_every_neighbour_is_in_our_kernel(row: Row) -> None:
    (shape, taps, memory_format), follow = MAPS[row["name"]], NEIGHBOURS[row["neighbours"]]
    c, options = shape[1], OPTIONS[row["options"]]
    x, r = (torch.randn(shape).to(memory_format=memory_format) for _ in range(2))
    vectors: tuple[Tensor, ...] = (torch.randn(1),) if options else ()
    if "bn_eps" in options:
        vectors += (torch.randn(c), torch.rand(c) + 0.5, torch.randn(c), torch.randn(c))
    inputs = (x, torch.randn(1, 1, taps), vectors, r)
    code = generated(Block(True, follow, **options), inputs, channels_last=memory_format is LAST)
    unpacked = re.search(r"^ *(.*) = args$", code, re.MULTILINE)
    assert unpacked is not None
    got = run(code, [x, inputs[1], *vectors, r][: unpacked[1].count("arg")])
    eager = Block(False, follow, **options)
    native, exact = eager(*inputs), eager(*to_double(inputs))
    pairs = (native, exact) if isinstance(native, tuple) else ((native,), (exact,))
    for one, plain, double in zip(got, *pairs, strict=True):
        assert one.stride() == plain.stride()
        assert_as_good_as(one, plain, double)

    kernels = re.findall(r"async_compile.triton\('(\w+)'", code)
    ours = [kernel for kernel in kernels if kernel.startswith("triton_tem")]
    if row["name"] == "tile by windows" and not compat.EPILOGUES_IN_ANY_LOOPS:
        # Indices by row and column would cut every vector into single elements: the gate, and native code.
        assert ours == []
        return
    assert len(ours) == 1
    # Beside it only the counters are zeroed.
    assert len(kernels) == 1 + row["name"].startswith("lagged")
