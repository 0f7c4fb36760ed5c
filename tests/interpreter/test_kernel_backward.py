"""gate_from_pool_backward against autograd in float64."""

from __future__ import annotations

import pytest
import torch
from eager_block import eager_gate_from_pool
from kernel_cases import Row, assert_earned, covering, label
from torch import Tensor

from eca_triton.launch import gates as launch_gates

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


def by_autograd(
    grad: Tensor, pooled: Tensor, weight: Tensor, bias: Tensor | None, circular: bool, gate: str
) -> tuple[Tensor, ...]:
    """Gradients of pooled, weight and bias, in pooled's dtype."""
    bias = torch.zeros(1, dtype=weight.dtype) if bias is None else bias
    inputs = [tensor.detach().requires_grad_() for tensor in (pooled, weight, bias)]
    return torch.autograd.grad(eager_gate_from_pool(*inputs, circular=circular, gate=gate), inputs, grad)


def by_kernel(
    grad: Tensor, pooled: Tensor, weight: Tensor, bias: Tensor | None, circular: bool, gate: str
) -> tuple[Tensor, ...]:
    """The same from the kernels, into buffers full of NaN."""
    outs = tuple(
        torch.empty_like(like).fill_(float("nan")) for like in (pooled, weight, weight.flatten()[:1])
    )
    launch_gates.gate_from_pool_backward(grad, pooled, weight, bias, circular, gate, *outs)
    return outs


@pytest.mark.parametrize("row", CASES, ids=label)
def test_gradients_are_as_exact_as_eager(row: Row) -> None:
    n, c, k, dtype = row["n"], row["c"], row["k"], row["dtype"]
    pooled, grad = torch.randn(n, c).to(dtype), torch.randn(n, c).to(dtype)
    if row["strides"] == "transposed":
        pooled = pooled.t().contiguous().t()
    if row["strides"] == "expanded_grad":
        grad = torch.ones(1, 1, dtype=dtype).expand(n, c)
    weight = torch.randn(1, 1, k).to(dtype)
    bias = torch.randn(1).to(dtype) if row["bias"] else None
    options = (row["padding"] == "circular" and k // 2 <= c, row["gate"])

    double = [None if tensor is None else tensor.double() for tensor in (grad, pooled, weight, bias)]
    exact = by_autograd(*double, *options)
    native = by_autograd(grad, pooled, weight, bias, *options)
    got = by_kernel(grad, pooled, weight, bias, *options)
    for of_kernel, of_eager, of_float64 in zip(got, native, exact, strict=True):
        assert_earned(of_kernel, of_eager, of_float64)


def test_gradients_have_the_same_bits_every_run() -> None:
    arguments = (torch.randn(9, 300), torch.randn(9, 300), torch.randn(1, 1, 5), None, False, "sigmoid")
    first, second = by_kernel(*arguments), by_kernel(*arguments)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_bad_gradient_stays_within_reach_of_the_band() -> None:
    grad = torch.randn(2, 40)
    grad[1, 20] = float("nan")
    d_pooled, d_weight, d_bias = by_kernel(
        grad, torch.randn(2, 40), torch.randn(1, 1, 5), None, False, "sigmoid"
    )
    assert d_pooled.isnan().nonzero().tolist() == [[1, c] for c in (18, 19, 20, 21, 22)]
    assert d_weight.isnan().all()
    assert d_bias.isnan().all()
