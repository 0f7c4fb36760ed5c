"""torch.func over the operators: vmap folds into the batch, grad and jvp see the plain formula."""

import pytest
import torch
from eager_block import eager_eca, to_double
from torch.func import grad, hessian, jacrev, jvp, vmap
from training_site import OperatorsRun, by_eager, by_op, site

from eca_triton.ops.schema import ECA, GATE, GATE_FROM_POOL, GATE_FROM_POOL_BACKWARD


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
