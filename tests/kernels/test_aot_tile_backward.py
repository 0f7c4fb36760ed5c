"""The contiguous backward, compiled ahead of time where the budgets do not look: no spills, whole vectors."""

from __future__ import annotations

import os

import pytest
import torch
from aot import DEVICES, Code, captured, compiled

from eca_triton.launch.backward import tile_backward
from eca_triton.launch.call import BackwardCall
from eca_triton.tuning.families.tile import tile_backward_config

pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1",
    reason="the interpreter has no compiler: unset TRITON_INTERPRET",
)


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def code(
    shape: tuple[int, ...], k: int, activation: str, dtype: torch.dtype = torch.bfloat16, bn: bool = False
) -> Code:
    """Of a tail on sm_90: bits for relu, else a residual; all sums after batch norm."""
    n, c = shape[:2]
    x, pooled = meta(*shape, dtype=dtype), meta(n, c)
    bits = activation == "relu"
    mask = meta(n, x[0].numel() // 8, dtype=torch.uint8) if bits else None
    sums = pooled if bn else None
    call = BackwardCall(
        x, x, meta(1, 1, k), meta(1), tuple(meta(c) for _ in range(4)) if bn else None, 1e-5,
        True, "hard_sigmoid", 2.0, None if bits else x, activation,
        pooled, mask, x, x, pooled, sums, sums,
    )  # fmt: skip
    size = call.itemsize
    config = tile_backward_config(call.layout, size, size, k, bits, not bits, DEVICES["sm_90"])
    (item,) = captured("sm_90", tile_backward, call, config)
    return compiled(item)


@pytest.mark.parametrize(
    ("shape", "k", "activation", "options"),
    [
        pytest.param((128, 256, 56, 56), 5, "silu", {}, id="56x56-silu"),
        pytest.param((128, 2048, 7, 7), 7, "gelu", {"bn": True}, id="7x7-gelu-bn"),
        pytest.param((128, 512, 28, 28), 5, "relu", {"bn": True}, id="28x28-relu-bn"),
        pytest.param((128, 1024, 14, 14), 9, "relu", {"dtype": torch.float32}, id="14x14-relu-fp32"),
        pytest.param((128, 24, 40, 6), 3, "relu", {}, id="24x40x6-relu"),
    ],
)
def test_nothing_spills_and_maps_move_in_vectors(
    shape: tuple[int, ...], k: int, activation: str, options: dict[str, object]
) -> None:
    got = code(shape, k, activation, **options)
    assert got.spilled_bytes == 0
    assert got.stores[128] >= 2, "d_x and d_residual"
    assert got.loads[128] >= got.stores[128], "dy and x"
