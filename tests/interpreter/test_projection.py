"""A 1x1 convolution: the gates of its result from its pooled input, and it rescaled in one kernel."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from eager_block import eager_gate_from_pool
from kernel_cases import MANY_SMS, Row, assert_earned, batch_norm, covering, label
from torch import Tensor
from tuned import product

from eca_triton.launch import projection as launch_projection
from eca_triton.launch.call import ProductCall
from eca_triton.ops.schema import RESCALED_PROJECTION
from eca_triton.reference.arguments import ProjectionArguments, RescaledArguments
from eca_triton.tuning.families.product import product_config
from eca_triton.tuning.families.projection import projection_config

CASES = covering(
    {
        "dtype": [torch.float32, torch.float16, torch.bfloat16],
        "n": [1, 17, 40],
        "reduced": [1, 33, 130],
        "c": [1, 3, 31, 142],
        "k": [1, 3, 7, 21],
        "bn": ["none", "affine", "plain"],
        "projection_bias": [False, True],
        "gate": ["sigmoid", "hard_sigmoid"],
        "circular": [False, True],
        "terms": [False, True],
    }
)


def by_torch(
    pooled: Tensor, projection: Tensor, weight: Tensor, bias: Tensor, circular: bool, gate: str,
    projection_bias: Tensor | None, bn: launch_projection.BatchNorm | None, terms: bool,
) -> Tensor:  # fmt: skip
    """The gates, or with `terms` what they make of the products 0 and 1."""

    def normalized(y: Tensor) -> Tensor:
        y = y if projection_bias is None else y + projection_bias
        return y if bn is None else F.batch_norm(y, *bn, training=False, eps=1e-3)

    options = {"circular": circular, "gate": gate}
    gates = eager_gate_from_pool(normalized(F.linear(pooled, projection)), weight, bias, **options)
    if not terms:
        return gates
    zero, one = (gates * normalized(torch.full_like(gates, number)) for number in (0, 1))
    return torch.stack([one - zero, zero])


@pytest.mark.parametrize("row", CASES, ids=label)
def test_gates_are_as_exact_as_eager(row: Row) -> None:
    dtype, n, c, k, terms = row["dtype"], row["n"], row["c"], row["k"], row["terms"]
    circular = row["circular"] and k // 2 <= c
    pooled = torch.randn(row["reduced"], n).T.to(dtype).float()
    projection = torch.randn(c, row["reduced"], 1, 1).to(dtype, memory_format=torch.channels_last)
    weight, bias = torch.randn(1, 1, k).to(dtype), torch.randn(1).to(dtype)
    projection_bias = torch.randn(c).to(dtype) if row["projection_bias"] else None
    bn = None if row["bn"] == "none" else batch_norm(c, dtype, affine=row["bn"] == "affine")

    out, shift = (torch.full((n, c), float("nan"), dtype=dtype) for _ in range(2))
    a = ProjectionArguments(
        pooled, projection, weight, bias, projection_bias, *(bn or [None] * 4), 1e-3, circular, row["gate"]
    )
    launch_projection.gates(a, out, shift if terms else None)

    def cast(tensor: Tensor | None, to: torch.dtype) -> Tensor | None:
        return None if tensor is None else tensor.to(to)

    native, exact = (
        by_torch(
            pooled.to(to), projection.flatten(1).to(to), weight.to(to), bias.to(to), circular, row["gate"],
            cast(projection_bias, to), bn and tuple(cast(vector, to) for vector in bn), terms,
        )
        for to in (dtype, torch.float64)
    )  # fmt: skip
    assert_earned(torch.stack([out, shift]) if terms else out, native.double(), exact)


def test_what_is_not_finite_stays_in_its_image_and_within_reach_of_its_channel() -> None:
    pooled, projection, weight = torch.rand(20, 5), torch.rand(70, 5), torch.rand(3)
    pooled[7, 2], projection[40, 1] = float("nan"), float("nan")
    out = torch.zeros(20, 70)
    launch_projection.gates(ProjectionArguments(pooled, projection, weight), out, shift=None)
    poisoned = torch.zeros(20, 70, dtype=torch.bool)
    poisoned[7], poisoned[:, 39:42] = True, True
    assert torch.equal(out.isnan(), poisoned)


@pytest.mark.parametrize("taps", [1, 5, 9, 63])
@pytest.mark.parametrize(("n", "c"), [(1, 256), (128, 256), (128, 2048), (4096, 64)])
def test_the_halo_stays_small_and_the_matrix_units_are_fed(n: int, c: int, taps: int) -> None:
    config = projection_config(n, c, taps, 2, MANY_SMS)
    assert taps - 1 <= config.block_c // 3
    assert config.block_n >= 16
    assert config.block_c >= 32


PRODUCTS = covering(
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


def product_by_torch(x: Tensor, matrix: Tensor, factor: Tensor, summand: Tensor | None) -> Tensor:
    y = torch.conv2d(x, matrix) * factor[:, :, None, None].to(x.dtype)
    return y if summand is None else y + summand[:, :, None, None].to(x.dtype)


@pytest.mark.parametrize("row", PRODUCTS, ids=label)
def test_products_are_as_exact_as_eager(row: Row) -> None:
    dtype, n, c = row["dtype"], row["n"], row["c"]
    x = torch.randn(n, row["reduced"], *row["side"]).to(dtype, memory_format=torch.channels_last)
    matrix = torch.randn(c, row["reduced"], 1, 1).to(dtype)
    factor, summand = torch.rand(n, c), torch.randn(n, c) if row["summand"] else None
    out = torch.full((n, *row["side"], c), float("nan"), dtype=row["out_dtype"] or dtype).movedim(-1, 1)
    launch_projection.rescaled(ProductCall(RescaledArguments(x, matrix, factor, summand), out))
    native, exact = (
        product_by_torch(x.to(to), matrix.to(to), factor, summand).double() for to in (dtype, torch.float64)
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


def test_of_a_product_what_is_not_finite_stays_at_its_position() -> None:
    x, matrix = torch.rand(2, 5, 9, 9).to(memory_format=torch.channels_last), torch.rand(20, 5, 1, 1)
    x[1, 3, 8, 2] = float("inf")
    out = torch.zeros(2, 9, 9, 20).movedim(-1, 1)
    launch_projection.rescaled(ProductCall(RescaledArguments(x, matrix, torch.ones(2, 20)), out))
    poisoned = torch.zeros(2, 20, 9, 9, dtype=torch.bool)
    poisoned[1, :, 8, 2] = True
    assert torch.equal(out.isinf(), poisoned)


@pytest.mark.parametrize(
    ("c", "hw", "reduced"), [(1, 1, 1), (256, 3136, 64), (512, 784, 128), (1000, 49, 96)]
)
def test_the_matrix_units_are_fed_and_no_program_holds_more_than_its_registers(
    c: int, hw: int, reduced: int
) -> None:
    config = product_config(product(128, c, hw, reduced))
    assert min(config.block_hw, config.block_c, config.block_i) >= 16
    assert config.block_hw * config.block_c <= 64 * 32 * config.num_warps
