"""A training step of `eca` under torch's tools: second order, torch.func, checkpoints, compilers, opcheck."""

import copy

import pytest
import torch
from eager_block import eager_eca, to_double
from torch.autograd import gradcheck, gradgradcheck
from torch.utils.checkpoint import checkpoint
from training_site import ACTIVATIONS, OperatorsRun, by_op, gradients, site

import eca_triton
from eca_triton.functional import BatchNormParameters


@pytest.mark.parametrize("check", [gradcheck, gradgradcheck])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_first_and_second_order(activation, check):
    statistics, tensors = to_double(site((1, 4, 2, 1), k=3, batch_norm=activation not in ("silu", "relu")))
    inputs = tuple(t.requires_grad_() for t in tensors.values())

    def eca(*inputs):
        named = dict(zip(tensors, inputs, strict=True))
        return by_op(statistics, **named, activation=activation, gain=2.0)

    assert check(eca, inputs, fast_mode=True)


def test_batched_gradients():
    statistics, tensors = site()
    upstream = torch.randn(3, 2, 8, 6, 6)
    x = tensors["x"].requires_grad_()
    out = by_op(statistics, **tensors, activation="relu")
    (got,) = torch.autograd.grad(out, x, upstream, is_grads_batched=True, retain_graph=True)
    wanted = torch.stack([torch.autograd.grad(out, x, one, retain_graph=True)[0] for one in upstream])
    torch.testing.assert_close(got, wanted)


def test_statistics_that_need_gradients_and_activations_before_pooling_take_the_composition():
    statistics, tensors = site()
    mean, x = statistics[0], tensors["x"].requires_grad_()
    for needs_mean, options in ((False, {"pre_activation": "relu"}), (True, {})):
        mean.requires_grad_(needs_mean)
        with OperatorsRun() as run:
            by_op(statistics, **tensors, **options).sum().backward()
        assert run.names() == ["gate_from_pool", "gate_from_pool_backward"]
    assert mean.grad is not None
    assert x.grad is not None


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing(reentrant):
    statistics, tensors = site()

    def block(statistics, **leaves):
        names = list(leaves)

        def run(*values):
            return by_op(statistics, **dict(zip(names, values, strict=True)), activation="relu")

        return checkpoint(run, *leaves.values(), use_reentrant=reentrant)

    torch.testing.assert_close(
        gradients(block, statistics, tensors), gradients(by_op, statistics, tensors, activation="relu")
    )


def test_a_compiled_step_holds_the_two_operators():
    torch._dynamo.reset()
    compiled = torch.compile(by_op, backend="inductor", fullgraph=True, dynamic=True)
    for activation in ("relu", "silu"):
        for shape in ((2, 8, 6, 6), (3, 8, 5, 7)):
            statistics, tensors = site(shape, memory_format=torch.channels_last)
            got = gradients(compiled, statistics, tensors, activation=activation)
            wanted = gradients(by_op, statistics, tensors, activation=activation)
            torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


def test_the_function_and_the_module_train_by_the_node():
    module = eca_triton.ECA(channels=8)
    x, residual = torch.randn(2, 2, 8, 4, 4)
    twin = copy.deepcopy(module)
    with OperatorsRun() as run:
        module(x).sum().backward()
        bn = BatchNormParameters(torch.zeros(8), torch.ones(8))
        out = eca_triton.eca(x, module.conv.weight, batch_norm=bn, residual=residual, activation="relu")
        out.sum().backward()
    assert run.names() == ["eca_forward", "eca_backward"] * 2
    native = (
        eager_eca(x, twin.conv.weight).sum()
        + eager_eca(x, twin.conv.weight, bn=bn[:4], residual=residual, activation="relu").sum()
    )
    native.backward()
    torch.testing.assert_close(module.conv.weight.grad, twin.conv.weight.grad)
