"""The gates of a 1x1 convolution's result from its pooled input, against float64, in Triton's interpreter."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from kernel_cases import assert_earned, batch_norm, covering, gates_by_torch, label
from torch import Tensor

from eca_triton.launch import projection as launch_projection
from eca_triton.tuning.config import Device
from eca_triton.tuning.families.projection import projection_config

H200 = Device(num_sms=132, warp_size=32)
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

    gates = gates_by_torch(normalized(F.linear(pooled, projection)), weight, bias, circular, gate)
    if not terms:
        return gates
    zero, one = (gates * normalized(torch.full_like(gates, number)) for number in (0, 1))
    return torch.stack([one - zero, zero])


@pytest.mark.parametrize("row", CASES, ids=label)
def test_values(row: dict[str, object]) -> None:
    torch.manual_seed(0)
    dtype, n, c, k, terms = row["dtype"], row["n"], row["c"], row["k"], row["terms"]
    circular = row["circular"] and k // 2 <= c
    pooled = torch.randn(row["reduced"], n).T.to(dtype).float()
    projection = torch.randn(c, row["reduced"], 1, 1).to(dtype, memory_format=torch.channels_last)
    weight, bias = torch.randn(1, 1, k).to(dtype), torch.randn(1).to(dtype)
    projection_bias = torch.randn(c).to(dtype) if row["projection_bias"] else None
    bn = None if row["bn"] == "none" else batch_norm(c, dtype, affine=row["bn"] == "affine")

    out, shift = (torch.full((n, c), float("nan"), dtype=dtype) for _ in range(2))
    launch_projection.gates(
        pooled, projection, weight, bias, projection_bias, bn, 1e-3, circular, row["gate"], out,
        shift if terms else None,
    )  # fmt: skip

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
    launch_projection.gates(
        pooled, projection, weight, None, None, None, 0.0, False, "sigmoid", out, shift=None
    )
    poisoned = torch.zeros(20, 70, dtype=torch.bool)
    poisoned[7], poisoned[:, 39:42] = True, True
    assert torch.equal(out.isnan(), poisoned)


@pytest.mark.parametrize("taps", [1, 5, 9, 63])
@pytest.mark.parametrize(("n", "c"), [(1, 256), (128, 256), (128, 2048), (4096, 64)])
def test_the_halo_stays_small_and_the_matrix_units_are_fed(n: int, c: int, taps: int) -> None:
    config = projection_config(n, c, taps, 2, H200)
    assert taps - 1 <= config.block_c // 3
    assert config.block_n >= 16
    assert config.block_c >= 32
