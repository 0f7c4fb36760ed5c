"""A lowered program leaves in memory what eager mode does, and lays out its results as eager mode does."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from harness import Lowering, results
from near_misses import spread
from spellings import conv1d
from torch import Tensor
from torch.utils._python_dispatch import return_and_correct_aliasing

from eca_triton.compile.reasons import GATE_PATH, NOT_MEAN, POOL_PATH, SHARED, WRAPPED
from eca_triton.ops.schema import BATCH_NORM_ECA

Program = Callable[..., Any]
SHAPE = 3, 8, 6, 5


def from_pool(pooled: Tensor, w: Tensor) -> Tensor:
    """[N, C] -> gates [N, C, 1, 1]."""
    return spread(F.conv1d(pooled.unsqueeze(1), w, padding=1).sigmoid())


def gate(x: Tensor, w: Tensor) -> Tensor:
    return from_pool(x.mean((2, 3)), w)


def both(program: Program, lowering: Lowering, *inputs: Tensor) -> tuple[list[Any], list[Any]]:
    """All results and what became of the inputs, lowered and in eager mode."""
    found = []
    for run in (lowering.compile(program), program):
        given = [x.clone() for x in inputs]  # keeps a map's memory order
        found.append([*results(run(*given)), *given])
    return found[0], found[1]


def the_same(program: Program, lowering: Lowering, *inputs: Tensor) -> Lowering:
    """All as close as float32 gives, of the same dtypes, and in the same memory order."""
    got, expected = both(program, lowering, *inputs)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    assert [x.stride() for x in got] == [x.stride() for x in expected]
    return lowering


def writes_gate(x: Tensor, w: Tensor, pool: Tensor, _: Tensor) -> Tensor:
    gates = torch.sigmoid(F.conv1d(x.mean((2, 3)).unsqueeze(1), w, padding=1), out=pool.unsqueeze(1))
    return x * spread(gates)


def writes_map(x: Tensor, w: Tensor, _: Tensor, __: Tensor) -> Tensor:
    torch.mul(x, gate(x, w), out=x)
    return x + 1


def writes_own_map(x: Tensor, w: Tensor, _: Tensor, __: Tensor) -> tuple[Tensor, Tensor]:
    y = x + 1
    return torch.mul(y, gate(y, w), out=y), y


def writes_product(x: Tensor, w: Tensor, _: Tensor, out: Tensor) -> Tensor:
    torch.mul(x, gate(x, w), out=out)
    return F.relu(out + x)


WRITES: dict[str, tuple[str, Program]] = {
    "mean": (POOL_PATH, lambda x, w, pool, _: x * from_pool(torch.mean(x, (2, 3), out=pool), w)),
    "sum": (POOL_PATH, lambda x, w, pool, _: x * from_pool(torch.sum(x, (2, 3), out=pool) / 30, w)),
    "aten-mean": (
        POOL_PATH,
        lambda x, w, pool, _: x * from_pool(torch.ops.aten.mean.out(x, [2, 3], out=pool), w),
    ),
    "sigmoid": (GATE_PATH, writes_gate),
    "product-to-map": (GATE_PATH, writes_map),
    "product-to-own-map": (GATE_PATH, writes_own_map),
    "product": (GATE_PATH, writes_product),
}


@pytest.mark.parametrize(
    ("plan", "dtype"), [("pool", torch.float32), ("gate", torch.bfloat16), ("block", torch.float32)]
)
@pytest.mark.parametrize("name", WRITES)
@torch.no_grad()
def test_a_call_that_writes_its_result_somewhere_is_no_part_of_a_site(
    name: str, plan: str, dtype: torch.dtype
) -> None:
    reason, program = WRITES[name]
    inputs = torch.randn(SHAPE), torch.randn(1, 1, 3), torch.zeros(SHAPE[:2]), torch.zeros(SHAPE)
    lowering = Lowering(device="cuda", plan=plan)
    assert the_same(program, lowering, *(x.to(dtype) for x in inputs)).reasons == [reason]


@torch.no_grad()
def test_a_step_of_the_tail_that_writes_its_result_somewhere_stays() -> None:
    def program(x: Tensor, w: Tensor, out: Tensor) -> Tensor:
        return F.relu(torch.add(x * gate(x, w), 1, out=out))

    inputs = torch.randn(SHAPE), torch.randn(1, 1, 3), torch.zeros(SHAPE)
    assert the_same(program, Lowering(device="cuda", plan="block"), *inputs).plans == ["block"]


def normalized(x: Tensor) -> Tensor:
    return F.batch_norm(x, None, None, training=True)


def decayed(x: Tensor, stats: Tensor) -> Tensor:
    stats.view(-1).mul_(0.5)
    return x


# What makes the residual of x and the statistics, what is made of the statistics at last, and the plan.
STATISTICS: dict[str, tuple[Program, Program, str]] = {
    "read before the end": (lambda x, stats: x * stats.sum(), Tensor.clone, "pool"),
    "changed before the end": (decayed, Tensor.clone, "pool"),
    "read behind": (lambda x, stats: x, Tensor.sum, "batch_norm"),
    "used by nobody": (lambda x, stats: x, lambda stats: stats.new_ones(1), "batch_norm"),
}


@pytest.mark.parametrize("name", STATISTICS)
def test_running_statistics_in_one_memory_stay_with_batch_norm_where_others_use_it(name: str) -> None:
    between, behind, plan = STATISTICS[name]

    def program(x: Tensor, w: Tensor, stats: Tensor) -> tuple[Tensor, Tensor]:
        y = F.batch_norm(x * 2, stats[0], stats[1], training=True)
        residual = between(x, stats)
        return F.relu(y * gate(y, w) + residual), behind(stats)

    stats = torch.stack([torch.zeros(8), torch.ones(8)])
    assert the_same(program, Lowering(), torch.randn(SHAPE), torch.randn(1, 1, 3), stats).plans == [plan]


# In eager mode a result has the memory order of its first operand, whatever the other one has.


def residual_first(x: Tensor, w: Tensor, r: Tensor) -> Tensor:
    return F.relu(r + product(normalized(x), w))


def residual_last(x: Tensor, w: Tensor, r: Tensor) -> Tensor:
    return F.relu(product(normalized(x), w) + r)


def gate_as_large_as_the_map(x: Tensor, w: Tensor, _: Tensor) -> Tensor:
    return gate(x, w).expand_as(x).contiguous() * x


def product(x: Tensor, w: Tensor, *_: Tensor) -> Tensor:
    return x * gate(x, w)


def fixed_batch_norm(x: Tensor, w: Tensor, _: Tensor) -> Tensor:
    return product(F.batch_norm(x, torch.zeros(8), torch.ones(8)), w)


def channels_along_the_last_dim(x: Tensor, w: Tensor, _: Tensor) -> Tensor:
    return x * F.conv1d(x.mean((1, 2)).unsqueeze(1), w, padding=1).sigmoid().unsqueeze(1)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": torch.clone,
    "channels-last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "images-inside": lambda x: x.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2),
}
# Program, orders of the map and of the residual, plan.
LAID_OUT = [
    *itertools.product([residual_first, residual_last], LAYOUTS, LAYOUTS, ["auto"]),
    *itertools.product(
        [gate_as_large_as_the_map, product, fixed_batch_norm, channels_along_the_last_dim],
        LAYOUTS,
        ["contiguous"],
        ["gate", "block"],
    ),
]


@pytest.mark.parametrize(("program", "layout", "residual", "plan"), LAID_OUT)
@torch.no_grad()
def test_a_result_lies_in_memory_as_in_eager_mode(
    program: Program, layout: str, residual: str, plan: str
) -> None:
    x, w, r = LAYOUTS[layout](torch.randn(SHAPE)), torch.randn(1, 1, 3), LAYOUTS[residual](torch.randn(SHAPE))
    lowering = the_same(program, Lowering("aot_eager", device="cuda", plan=plan), x, w, r)
    plain = layout == residual and layout in ("contiguous", "channels-last")
    if plain and (program is not gate_as_large_as_the_map or layout == "contiguous"):
        assert lowering.sites


@pytest.mark.parametrize("layout", LAYOUTS)
@torch.no_grad()
def test_a_product_of_matrices_gives_the_result_its_memory_order(
    layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eca_triton.compile.plan.reach.epilogues_of_products", lambda: True)

    def program(u: Tensor, p: Tensor, w: Tensor, r: Tensor) -> Tensor:
        return F.relu(r + product(F.conv2d(u, p), w))

    lowering = Lowering("aot_eager", plan="convfold")
    r = LAYOUTS[layout](torch.randn(SHAPE))
    inputs = torch.randn(SHAPE), torch.randn(8, 8, 1, 1), torch.randn(1, 1, 3), r
    assert the_same(program, lowering, *inputs).plans == ["convfold"]
    assert bool(lowering.calls(torch.mm)) is (layout in ("contiguous", "channels-last"))


# A dtype that is wider than our arithmetic, or that somebody asks for.


@pytest.mark.parametrize("large", [1e300, 12345.678901234])
@torch.no_grad()
def test_a_residual_in_float64_is_added_in_float64(large: float) -> None:
    lowering = Lowering()
    inputs = torch.randn(SHAPE), torch.randn(1, 1, 3), torch.full(SHAPE, large, dtype=torch.float64)
    (got, *_), (expected, *_) = both(residual_last, lowering, *inputs)
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-6)
    assert len(lowering.sites) == 1


@torch.no_grad()
def test_who_asks_for_the_dtype_of_the_product_is_told_its_own() -> None:
    def program(x: Tensor, w: Tensor, r: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        y = normalized(x)
        product = y * from_pool(y.float().mean((2, 3)), w)
        return F.relu(product + r), v.type_as(product)

    lowering = Lowering()
    inputs = torch.randn(SHAPE).bfloat16(), torch.randn(1, 1, 3), torch.randn(SHAPE), torch.rand(3)
    got, expected = both(program, lowering, *inputs)
    assert [x.dtype for x in got] == [x.dtype for x in expected]
    torch.testing.assert_close(got[1:], expected[1:], rtol=0, atol=0)
    assert lowering.plans == ["batch_norm"]


class Wrapped(Tensor):
    """A tensor around another one that knows ATen's operators alone, as DTensor does."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> Wrapped:
        made = Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), dtype=inner.dtype, device=inner.device
        )
        made.inner = inner
        return made

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Wrapped({self.inner})"

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["inner"], None

    @staticmethod
    def __tensor_unflatten__(inner: dict[str, Tensor], _: None, size: Any, stride: Any) -> Wrapped:
        return Wrapped(inner["inner"])

    @classmethod
    def __torch_dispatch__(cls, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if op.namespace not in ("aten", "prims"):
            raise NotImplementedError(f"no rule for {op}")
        plain = torch.utils._pytree.tree_map_only(Wrapped, lambda x: x.inner, (args, kwargs or {}))
        results = torch.utils._pytree.tree_map_only(Tensor, Wrapped, op(*plain[0], **plain[1]))
        return return_and_correct_aliasing(op, args, kwargs or {}, results)


@pytest.mark.parametrize(
    ("program", "plan"),
    [(product, "auto"), (residual_last, "pool"), (product, "gate"), (residual_last, "block")],
)
@torch.no_grad()
def test_a_tensor_that_knows_only_some_operators_meets_none_of_ours(program: Program, plan: str) -> None:
    lowering = Lowering("aot_eager", device="cuda", plan=plan)
    x, w = torch.randn(SHAPE), torch.randn(1, 1, 3)
    got = lowering.compile(program)(Wrapped(x), Wrapped(w), Wrapped(x))
    torch.testing.assert_close(got.inner, program(x, w, x), rtol=1e-5, atol=1e-5)
    assert lowering.reasons == [WRAPPED]


@torch.no_grad()
def test_a_residual_that_knows_only_some_operators_is_added_outside() -> None:
    lowering = Lowering("aot_eager")
    x, w, r = torch.randn(SHAPE), torch.randn(1, 1, 3), torch.randn(SHAPE)
    got = lowering.compile(residual_last)(x, w, Wrapped(r))
    torch.testing.assert_close(got.inner, residual_last(x, w, r), rtol=1e-5, atol=1e-5)
    (op,) = lowering.calls(BATCH_NORM_ECA)
    assert op.args[5] is None


@pytest.mark.skipif(
    not hasattr(torch._dynamo.config, "trace_autograd_ops"), reason="this torch breaks the graph there"
)
def test_a_gradient_by_the_gate_is_by_the_gate_of_the_program() -> None:
    def program(x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        y = x * 2
        g = gate(y, w)
        out = y * g
        (d_gate,) = torch.autograd.grad(out.square().sum(), [g])
        return out.detach(), d_gate

    lowering = Lowering()
    with torch._dynamo.config.patch(trace_autograd_ops=True):
        x, w = torch.randn(SHAPE).requires_grad_(), torch.randn(1, 1, 3)
        torch.testing.assert_close(lowering.compile(program)(x, w), program(x, w), rtol=1e-5, atol=1e-5)
    assert lowering.reasons == [SHARED]


@torch.no_grad()
def test_a_factor_that_may_be_zero_is_not_cancelled() -> None:
    conv = conv1d()

    def program(x: Tensor, k: int) -> Tensor:
        return x * from_pool(x.sum((2, 3)) * k / (x.shape[2] * x.shape[3] * k), conv.weight)

    x, lowering = torch.randn(SHAPE), Lowering()
    compiled = lowering.compile(program, dynamic=True)
    torch.testing.assert_close(compiled(x, 5), program(x, 5), rtol=1e-5, atol=1e-5)
    assert compiled(x, 0).isnan().all()
    assert lowering.reasons == [NOT_MEAN]
