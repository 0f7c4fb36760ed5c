"""gate_from_pool_backward against autograd in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from eager_block import eager_gate_from_pool
from kernel_cases import Row, assert_earned, covering, label
from torch import Tensor

from eca_triton.launch import gates as launch_gates
from eca_triton.reference.arguments import PoolBackwardArguments

CASES = covering(
    {
        "dtype": [torch.float32, torch.float16, torch.bfloat16],
        "k": [1, 3, 5, 7, 9],
        "c": [1, 2, 3, 19, 142, 2047],
        "n": [1, 5],
        "gate": ["sigmoid", "hard_sigmoid"],
        "padding": ["zero", "circular"],
        "bias": [False, True],
        "strides": ["contiguous", "transposed", "expanded_grad"],
    }
)


Inputs = tuple[Tensor, Tensor, Tensor | None]  # pooled, weight, bias


def by_autograd(grad: Tensor, inputs: Inputs, dtype: torch.dtype, **options: Any) -> tuple[Tensor, ...]:
    """Gradients of pooled, weight and, also where there is none, bias."""
    pooled, weight, bias = inputs
    given = (pooled, weight, torch.zeros(1) if bias is None else bias)
    leaves = [tensor.detach().to(dtype).requires_grad_() for tensor in given]
    return torch.autograd.grad(eager_gate_from_pool(*leaves, **options), leaves, grad.to(dtype))


def by_kernel(
    grad: Tensor, inputs: Inputs, circular: bool = False, gate: str = "sigmoid"
) -> tuple[Tensor, ...]:
    """The same from the kernels, into buffers full of NaN."""
    pooled, weight, _ = inputs
    outs = tuple(torch.full_like(like, float("nan")) for like in (pooled, weight, weight.flatten()[:1]))
    launch_gates.gate_from_pool_backward(PoolBackwardArguments(grad, *inputs, circular, gate), *outs)
    return outs


@pytest.mark.parametrize("row", CASES, ids=label)
def test_gradients_are_as_exact_as_eager(row: Row) -> None:
    n, c, k, dtype = row["n"], row["c"], row["k"], row["dtype"]
    pooled, grad = torch.randn(n, c).to(dtype), torch.randn(n, c).to(dtype)
    if row["strides"] == "transposed":
        pooled = pooled.t().contiguous().t()
    if row["strides"] == "expanded_grad":
        grad = torch.ones(1, 1, dtype=dtype).expand(n, c)
    inputs = pooled, torch.randn(1, 1, k).to(dtype), torch.randn(1).to(dtype) if row["bias"] else None
    options = {"circular": row["padding"] == "circular" and k // 2 <= c, "gate": row["gate"]}
    native, exact = (by_autograd(grad, inputs, to, **options) for to in (dtype, torch.float64))
    for each in zip(by_kernel(grad, inputs, **options), native, exact, strict=True):
        assert_earned(*each)


def test_gradients_have_the_same_bits_every_run() -> None:
    grad, inputs = torch.randn(9, 300), (torch.randn(9, 300), torch.randn(1, 1, 5), None)
    first, second = (by_kernel(grad, inputs) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_bad_gradient_stays_within_reach_of_the_band() -> None:
    grad = torch.randn(2, 40)
    grad[1, 20] = float("nan")
    d_pooled, d_weight, d_bias = by_kernel(grad, (torch.randn(2, 40), torch.randn(1, 1, 5), None))
    assert d_pooled.isnan().nonzero().tolist() == [[1, c] for c in (18, 19, 20, 21, 22)]
    assert d_weight.isnan().all()
    assert d_bias.isnan().all()
