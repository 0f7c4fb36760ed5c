"""The operators under torch's tools: torch.func, second order, checkpoints, compilers.

vmap folds into the batch; grad and jvp see the plain formula.
"""

import copy

import pytest
import torch
from eager_block import ACTIVATIONS, eager_eca, to_double
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, hessian, jacrev, jvp, vmap
from torch.utils.checkpoint import checkpoint
from training_site import OperatorsRun, by_eager, by_op, gradients, site

import eca_triton
from eca_triton.functional import BatchNormParameters
from eca_triton.ops.schema import ECA, GATE, GATE_FROM_POOL, GATE_FROM_POOL_BACKWARD

# torch.func.


def loop(f, *mapped):
    outs = [f(*sample) for sample in zip(*mapped, strict=True)]
    if isinstance(outs[0], tuple):
        return tuple(torch.stack(parts) for parts in zip(*outs, strict=True))
    return torch.stack(outs)


@pytest.mark.parametrize("dim", [0, 1, 2, -1])
def test_vmap_over_maps_is_one_call(dim):
    x, weight = torch.randn(3, 2, 6, 4, 5), torch.randn(1, 1, 3)
    with OperatorsRun() as run:
        out = vmap(lambda x: ECA(x, weight, activation="relu"), in_dims=dim, out_dims=dim)(x.movedim(0, dim))
    assert run.names() == ["eca"]
    torch.testing.assert_close(out.movedim(dim, 0), loop(lambda x: ECA(x, weight, activation="relu"), x))


def test_vmap_with_a_residual_for_every_sample_or_one_for_all():
    x, weight = torch.randn(3, 2, 6, 4), torch.randn(3)
    each, shared = torch.randn(3, 2, 6, 4), torch.randn(2, 6, 4)

    def eca(x, residual):
        return ECA(x, weight, residual=residual)

    torch.testing.assert_close(vmap(eca)(x, each), loop(eca, x, each))
    torch.testing.assert_close(vmap(eca, (0, None))(x, shared), loop(lambda x: eca(x, shared), x))
    torch.testing.assert_close(vmap(eca, (None, 0))(shared, each), loop(lambda r: eca(shared, r), each))


POOLED, WEIGHTS = (3, 2, 6), (3, 1, 1, 3)
OVER = {  # what is mapped, and a call of one sample
    "weight": ((WEIGHTS,), lambda x, w: lambda weight: GATE(x, weight)),
    "x and weight": (((3, 2, 6, 4, 5), WEIGHTS), lambda x, w: GATE),
    "pooled": ((POOLED,), lambda x, w: lambda pooled: GATE_FROM_POOL(pooled, w)),
    "pooled and its gradient": (
        (POOLED, POOLED),
        lambda x, w: lambda grad, pooled: GATE_FROM_POOL_BACKWARD(grad, pooled, w),
    ),
}


@pytest.mark.parametrize("mapped", OVER)
def test_vmap_over_weights_and_pooled_values(mapped):
    shapes, sample = OVER[mapped]
    call, samples = sample(torch.randn(2, 6, 4, 5), torch.randn(1, 1, 3)), [torch.randn(s) for s in shapes]
    torch.testing.assert_close(vmap(call)(*samples), loop(call, *samples))


def test_vmap_of_a_function_whose_weight_needs_a_gradient():
    x, weight = torch.randn(3, 2, 6, 4).double(), torch.randn(3).double().requires_grad_()
    (got,) = torch.autograd.grad(vmap(lambda x: ECA(x, weight))(x).cos().sum(), weight)
    (wanted,) = torch.autograd.grad(loop(lambda x: eager_eca(x, weight), x).cos().sum(), weight)
    torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("argument", [0, 1], ids=["x", "weight"])
@pytest.mark.parametrize(
    "transform",
    [
        lambda f, i: grad(lambda *a: f(*a).cos().sum(), i),
        lambda f, i: jacrev(f, i),
        lambda f, i: hessian(lambda *a: f(*a).cos().sum(), i),
        lambda f, i: lambda *a: jvp(lambda v: f(*a[:i], v, *a[i + 1 :]), (a[i],), (a[i].cos(),)),
    ],
    ids=["grad", "jacrev", "hessian", "jvp"],
)
def test_transforms_agree_with_those_of_eager(transform, argument):
    x, weight = torch.randn(2, 4, 3).double(), torch.randn(3).double()
    torch.testing.assert_close(transform(ECA, argument)(x, weight), transform(eager_eca, argument)(x, weight))


@pytest.mark.parametrize("batch_norm", [False, True], ids=["plain", "batch norm"])
def test_gradients_per_sample_see_the_plain_formula(batch_norm):
    """The node of a training step would be none of vmap's."""
    statistics, tensors = to_double(site((3, 4, 2, 2), k=3, batch_norm=batch_norm))
    mapped = tensors.pop("x"), tensors.pop("residual")

    def gradients(block):
        def loss(tensors, x, residual):
            out = block(statistics, **tensors, x=x[None], residual=residual[None], activation="silu")
            return out.square().sum()

        return vmap(grad(loss, (0, 1, 2)), (None, 0, 0))(tensors, *mapped)

    with OperatorsRun() as run:
        got = gradients(by_op)
    assert run.calls == []
    torch.testing.assert_close(got, gradients(by_eager))


# A training step.


@pytest.mark.parametrize("check", [gradcheck, gradgradcheck])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_first_and_second_order(activation, check):
    statistics, tensors = to_double(site((1, 4, 2, 1), k=3, batch_norm=activation not in ("silu", "relu6")))
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
