"""Derivatives of the operators: first and second order, where they cost nothing, and what runs for them."""

import itertools

import pytest
import torch
from eager_block import eager_eca, eager_gate
from torch._higher_order_ops.scan import scan
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.fx.experimental.proxy_tensor import make_fx
from training_site import OperatorsRun

from eca_triton import reference
from eca_triton.ops.schema import (
    AFFINE_FROM_PROJECTION,
    ECA,
    ECA_BACKWARD,
    GATE,
    GATE_FROM_POOL,
    GATE_FROM_POOL_BACKWARD,
    GATE_FROM_PROJECTION,
)


def doubles(*shapes):
    return tuple(torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes)


@pytest.mark.parametrize("check", [gradcheck, gradgradcheck])
@pytest.mark.parametrize("gate", ["sigmoid", "hard_sigmoid"])
@pytest.mark.parametrize("circular", [False, True], ids=["zeros", "circular"])
def test_gate_from_pool(circular, gate, check):
    inputs = doubles((2, 5), (1, 1, 3), (1,))
    assert check(lambda *a: GATE_FROM_POOL(*a, circular=circular, gate=gate), inputs)


@pytest.mark.parametrize("check", [gradcheck, gradgradcheck])
def test_gate(check):
    inputs = doubles((2, 4, 2, 2), (5,), (1,), (4,))
    var = torch.rand(4, dtype=torch.float64) + 0.5

    def gate(x, weight, bias, mean):
        return GATE(x, weight, bias, mean, var, mean * 2, mean + 1, pre_activation="silu")

    assert check(gate, inputs)


def eca_behind_batch_norm(x, weight, bias, mean, var, scale, shift, residual):
    """Plain torch: F.batch_norm has no derivative by its statistics, and the operator has."""
    mean, var, scale, shift = (vector[:, None, None] for vector in (mean, var, scale, shift))
    x = (x - mean) * (var + 1e-5).rsqrt() * scale + shift
    return eager_eca(x, weight, bias, residual=residual, activation="silu")


def test_every_subset_of_the_inputs_gets_its_gradients_and_nothing_else_does():
    inputs = doubles((2, 4, 3, 3), (1, 1, 3), (1,), (4,), (4,), (4,), (4,), (2, 4, 3, 3))
    inputs[4].data.abs_()
    exact = torch.autograd.grad(eca_behind_batch_norm(*inputs).cos().sum(), inputs)
    for wanted in itertools.product([False, True], repeat=len(inputs)):
        leaves = [t.detach().requires_grad_(want) for t, want in zip(inputs, wanted, strict=True)]
        out = ECA(*leaves, activation="silu")
        assert out.requires_grad == any(wanted)
        if any(wanted):
            out.cos().sum().backward()
        for leaf, want, truth in zip(leaves, wanted, exact, strict=True):
            assert (leaf.grad is not None) == want
            assert not want or torch.allclose(leaf.grad, truth)


@pytest.mark.parametrize("grad", [torch.ones(1, 1).expand(2, 6), torch.arange(12.0).view(6, 2).t()])
def test_incoming_gradients_may_have_any_strides(grad):
    x, weight = torch.randn(2, 6, 3, 3), torch.randn(1, 1, 3, requires_grad=True)
    got, wanted = (torch.autograd.grad(block(x, weight), weight, grad) for block in (GATE, eager_gate))
    torch.testing.assert_close(got, wanted)


def test_what_runs_without_gradients_is_one_operator():
    x, weight = torch.randn(2, 6, 3, 3), torch.randn(1, 1, 3, requires_grad=True)
    with OperatorsRun() as run, torch.no_grad():
        ECA(x, weight)
        GATE(x, weight)
    assert run.names() == ["eca", "gate"]
    with OperatorsRun() as run:
        assert not ECA(x, weight.detach()).requires_grad
    assert run.names() == ["eca"]


@pytest.mark.parametrize(
    "op",
    [
        pytest.param(GATE, id="gate"),
        pytest.param(lambda x, w: GATE_FROM_POOL(x.mean((2, 3)), w), id="gate_from_pool"),
        pytest.param(lambda x, w: ECA(x, w, pre_activation="relu"), id="eca behind an activation"),
        pytest.param(
            lambda x, w: GATE_FROM_PROJECTION(x.mean((2, 3)), torch.eye(6), w), id="gate_from_projection"
        ),
        pytest.param(
            lambda x, w: AFFINE_FROM_PROJECTION(x.mean((2, 3)), torch.eye(6), w)[0],
            id="affine_from_projection",
        ),
    ],
)
def test_what_runs_for_gradients_is_our_gate_and_its_backward(op):
    x, weight = torch.randn(2, 6, 3, 3), torch.randn(1, 1, 3, requires_grad=True)
    with OperatorsRun() as run:
        op(x, weight).sum().backward()
    assert run.names() == ["gate_from_pool", "gate_from_pool_backward"]


def test_forward_mode_agrees_with_reverse_mode():
    (x, weight), (tangent, _) = doubles((2, 4, 3), (3,)), doubles((2, 4, 3), (3,))
    with forward_ad.dual_level():
        out = ECA(forward_ad.make_dual(x, tangent), weight)
        jvp = forward_ad.unpack_dual(out).tangent
    cotangent = torch.randn_like(jvp)
    vjp = torch.autograd.grad(ECA(x, weight), x, cotangent)[0]
    torch.testing.assert_close((jvp * cotangent).sum(), (vjp * tangent).sum())


def test_second_and_third_order_are_those_of_the_formula():
    pooled, weight = doubles((2, 5), (3,))
    found = []
    for formula in (GATE_FROM_POOL, reference.gate_from_pool):
        value = formula(pooled, weight).square().sum()
        for _ in range(3):
            grads = torch.autograd.grad(value, (pooled, weight), create_graph=True)
            value = sum(grad.square().sum() for grad in grads)
            found.append(grads)
    torch.testing.assert_close(found[:3], found[3:])


def test_one_tensor_as_two_inputs_of_a_backward_operator():
    pooled, weight = doubles((2, 5), (3,))
    found = [
        torch.autograd.grad(backward(pooled, pooled, weight)[0].sum(), (pooled, weight))
        for backward in (GATE_FROM_POOL_BACKWARD, reference.gate_from_pool_backward)
    ]
    torch.testing.assert_close(*found)


BACKWARD = {
    "gate_from_pool_backward": lambda x, w: GATE_FROM_POOL_BACKWARD(x, x, w),
    "eca_backward": lambda x, w: ECA_BACKWARD(x[..., None], x[..., None], w, *[None] * 6, x),
}


@pytest.mark.parametrize("name", BACKWARD)
def test_a_backward_operator_traced_with_grad_mode_on_is_one_node(name):
    graph = make_fx(BACKWARD[name])(*doubles((2, 5), (3,))).graph
    assert [node.target._opname for node in graph.nodes if "eca_triton" in str(node.target)] == [name]
    assert not graph.find_nodes(op="call_function", target=torch.ops.aten.mul.Tensor)


@pytest.mark.skipif(
    torch.__version__.startswith(("2.11.", "2.12.")),
    reason="scan differentiates no body that reads a view there",
)
@pytest.mark.parametrize(
    "block",
    [lambda x, w: x * GATE_FROM_POOL(x, w), lambda x, w: ECA(x[..., None], w)[..., 0]],
    ids=["gate_from_pool", "eca"],
)
def test_in_the_body_of_scan_in_training(block):
    x, weight = doubles((3, 2, 8), (1, 1, 3))

    def scanned(x, weight):
        return scan(lambda count, step: (count + 1.0, block(step, weight)), torch.zeros(3), x)[1]

    def looped(x, weight):
        return torch.stack([block(step, weight) for step in x])

    found = []
    for steps in (torch.compile(scanned, backend="aot_eager"), looped):
        out = steps(x, weight)
        found.append((out, *torch.autograd.grad(out.square().sum(), (x, weight))))
    torch.testing.assert_close(*found)
