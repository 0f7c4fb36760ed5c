"""A 1x1 convolution and its rescaling in one kernel, against float64, in Triton's interpreter."""

from __future__ import annotations

import pytest
import torch
from kernel_cases import assert_earned, covering, label
from torch import Tensor

from eca_triton.launch import projection as launch_projection
from eca_triton.launch.call import ProductCall
from eca_triton.ops.schema_projection import RESCALED_PROJECTION
from eca_triton.tuning.families.product import product_config

CASES = covering(
    {
        "dtype": [torch.float32, torch.float16],  # of bf16 the interpreter would multiply the bits
        "out_dtype": [None, torch.float32],
        "n": [1, 3],
        "side": [(1, 1), (5, 4), (9, 15)],
        "reduced": [1, 33, 130],
        "c": [1, 31, 136],
        "summand": [False, True],
    }
)


def by_torch(x: Tensor, matrix: Tensor, factor: Tensor, summand: Tensor | None) -> Tensor:
    y = torch.conv2d(x, matrix) * factor[:, :, None, None].to(x.dtype)
    return y if summand is None else y + summand[:, :, None, None].to(x.dtype)


@pytest.mark.parametrize("row", CASES, ids=label)
def test_values(row: dict[str, object]) -> None:
    torch.manual_seed(0)
    dtype, n, c = row["dtype"], row["n"], row["c"]
    x = torch.randn(n, row["reduced"], *row["side"]).to(dtype, memory_format=torch.channels_last)
    matrix = torch.randn(c, row["reduced"], 1, 1).to(dtype)
    factor, summand = torch.rand(n, c), torch.randn(n, c) if row["summand"] else None
    out = torch.full((n, *row["side"], c), float("nan"), dtype=row["out_dtype"] or dtype).movedim(-1, 1)
    launch_projection.rescaled(ProductCall(x, matrix, factor, summand, out))
    native, exact = (
        by_torch(x.to(to), matrix.to(to), factor, summand).to(torch.float64) for to in (dtype, torch.float64)
    )
    assert_earned(out, native, exact)


@pytest.mark.parametrize("c", [0, 20])
@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_the_operator_takes_any_order_and_no_channels(c: int, order: torch.memory_format) -> None:
    x, matrix = torch.rand(2, 5, 9, 9).to(memory_format=order), torch.rand(c, 5, 1, 1)
    factor = torch.rand(2, c)
    out = RESCALED_PROJECTION(x, matrix, factor)
    assert c == 0 or out.is_contiguous(memory_format=order)
    torch.testing.assert_close(out, torch.einsum("oi,nihw,no->nohw", matrix[:, :, 0, 0], x, factor))


def test_what_is_not_finite_stays_at_its_position() -> None:
    x, matrix = torch.rand(2, 5, 9, 9).to(memory_format=torch.channels_last), torch.rand(20, 5, 1, 1)
    x[1, 3, 8, 2] = float("inf")
    out = torch.zeros(2, 9, 9, 20).movedim(-1, 1)
    launch_projection.rescaled(ProductCall(x, matrix, torch.ones(2, 20), None, out))
    poisoned = torch.zeros(2, 20, 9, 9, dtype=torch.bool)
    poisoned[1, :, 8, 2] = True
    assert torch.equal(out.isinf(), poisoned)


@pytest.mark.parametrize(
    ("c", "hw", "reduced"), [(1, 1, 1), (256, 3136, 64), (512, 784, 128), (1000, 49, 96)]
)
def test_the_matrix_units_are_fed_and_no_program_holds_more_than_its_registers(
    c: int, hw: int, reduced: int
) -> None:
    config = product_config(c, hw, reduced)
    assert min(config.block_hw, config.block_c, config.block_i) >= 16
    assert config.block_hw * config.block_c <= 64 * 32 * config.num_warps
