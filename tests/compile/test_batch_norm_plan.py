"""Which training graphs batch norm and ECA leave as one op, how much of the tail goes with them, and that a
step with it is eager's: values, gradients, running statistics.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from around_batch_norm import (
    BATCH_NORMS,
    CHANGED_BEHIND,
    NOT,
    SHAPE,
    WHOLE,
    WITHOUT_TAIL,
    in_place,
)
from harness import Lowering, leaf, results
from styles import Network, ResNetTail
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from eca_triton.ops.schema import BATCH_NORM_ECA


def step(run: Callable[..., Any], state: nn.Module, x: Tensor, grad: bool = True) -> dict[str, Tensor]:
    """Outputs, gradients and buffers after a step."""
    with torch.set_grad_enabled(grad):
        x = leaf(x) if grad else x
        outputs = results(run(x))
    found = {f"output {i}": output.detach() for i, output in enumerate(outputs)}
    if grad:
        state.zero_grad()
        sum((output * output.detach().cos()).sum() for output in outputs).backward()
        found |= {name: p.grad.clone() for name, p in state.named_parameters() if p.grad is not None}
        found["x"] = x.grad
    return found | {name: buffer.clone() for name, buffer in state.named_buffers()}


def trained(
    network: nn.Module,
    plans: list[str],
    then: str = "eager",
    shapes: tuple[tuple[int, ...], ...] = (SHAPE, SHAPE),
    dynamic: bool | None = False,
    grad: bool = True,
) -> Lowering:
    """The lowering with these plans of two steps, which are eager's.

    Two, so that running statistics and their count go on from what the first left.
    """
    lowering, twin = Lowering(then), copy.deepcopy(network)
    compiled = lowering.compile(network, dynamic=dynamic)
    for shape in shapes:
        x = torch.randn(shape)
        got, expected = step(compiled, network, x, grad), step(twin, twin, x, grad)
        torch.testing.assert_close(got, expected, rtol=2e-4, atol=2e-5)
    assert lowering.plans == plans
    return lowering


def outside(lowering: Lowering) -> int:
    """How many calls of the graph add maps or are activations."""
    return len([node for node in lowering.nodes() if _name(node).strip("_") in TAIL])


TAIL = {"add", "iadd", "relu", "relu6", "silu"}


def _name(node: torch.fx.Node) -> str:
    value = node.meta.get("example_value")
    over_a_map = isinstance(value, Tensor) and value.dim() == 4
    return getattr(node.target, "__name__", str(node.target)) if over_a_map else ""


def the_op(lowering: Lowering) -> dict[str, Any]:
    """The arguments of the one op, which has left no batch norm, pooling, convolution or gate outside."""
    (op,) = lowering.calls(BATCH_NORM_ECA)
    assert lowering.own_calls() == ["batch_norm_eca"]
    assert lowering.calls(torch.conv1d, torch.sigmoid) == []
    assert not [node for node in lowering.nodes() if _name(node) in ("sigmoid", "mean")]
    names = [argument.name for argument in BATCH_NORM_ECA._schema.arguments]
    return dict(zip(names, op.args, strict=False)) | op.kwargs


@pytest.mark.parametrize("name", WHOLE)
def test_the_op_takes_batch_norm_and_the_tail(name: str) -> None:
    around, (gain, residual, relu) = WHOLE[name]
    lowering = trained(Network(around), ["batch_norm"])
    op = the_op(lowering)
    assert (op.get("gain", 1.0), op["residual"] is not None) == (gain, residual)
    assert (op.get("activation") == "relu") == relu
    assert len(lowering.calls(F.batch_norm)) == (name == "shortcut with its own batch norm")
    assert outside(lowering) == (name == "result read by many")


@pytest.mark.parametrize("name", WITHOUT_TAIL)
def test_the_tail_stays_where_the_op_cannot_compute_it(name: str) -> None:
    around, left = WITHOUT_TAIL[name]
    lowering = trained(Network(around), ["batch_norm"])
    op = the_op(lowering)
    assert op["residual"] is None
    assert not {"gain", "activation"} & op.keys()
    assert lowering.calls(F.batch_norm) == []
    assert outside(lowering) == left


@pytest.mark.parametrize("name", NOT)
def test_batch_norm_stays_where_somebody_else_depends_on_it(name: str) -> None:
    lowering = trained(Network(NOT[name]), ["pool"])
    assert lowering.own_calls() == ["gate_from_pool"]
    assert len(lowering.calls(F.batch_norm)) == 1 + (name == "one batch norm called twice")


@pytest.mark.parametrize("name", CHANGED_BEHIND)
def test_the_op_ends_before_what_it_reads_is_changed(name: str) -> None:
    """It is made where the product was, and leaves shortcut and ReLU to Inductor."""
    lowering = trained(Network(CHANGED_BEHIND[name]), ["batch_norm"], grad=False)
    assert the_op(lowering)["residual"] is None
    assert lowering.calls(F.relu)


def test_a_momentum_that_dynamo_does_not_know_stays_with_batch_norm() -> None:
    """With dynamic=True numbers of modules are inputs of the graph."""
    lowering = trained(Network(in_place), ["pool"], dynamic=True)
    assert len(lowering.calls(F.batch_norm)) == 1


@pytest.mark.parametrize("name", BATCH_NORMS)
def test_every_kind_of_batch_norm(name: str) -> None:
    lowering = trained(Network(in_place, bn=BATCH_NORMS[name]), ["batch_norm"])
    assert lowering.calls(F.batch_norm) == []
    the_op(lowering)


def test_training_statistics_without_gradients() -> None:
    """Statistics are estimated anew so: in training mode, with no backward."""
    the_op(trained(Network(in_place), ["batch_norm"], grad=False))


def test_in_evaluation_mode_the_plan_is_another() -> None:
    trained(Network(in_place).eval(), ["pool"])


@pytest.mark.parametrize("dynamic", [None, True], ids=["at the second size", "from the first"])
def test_a_graph_for_any_batch_has_the_plan(dynamic: bool | None) -> None:
    """AOTAutograd has Dynamo trace anew, with batch norm's numbers, what dynamic=True made inputs."""
    shapes = tuple((batch, *SHAPE[1:]) for batch in (4, 3, 7))
    plans = ["pool" if dynamic else "batch_norm", "batch_norm"]
    lowering = trained(Network(in_place), plans, "aot_eager", shapes, dynamic)
    assert isinstance(lowering.calls(BATCH_NORM_ECA)[-1].meta["example_value"][0].shape[0], torch.SymInt)


def test_a_checkpointed_block_counts_its_batch_once() -> None:
    """As stock Dynamo does; eager mode counts the recomputation as a second batch."""
    network = Network(lambda net, x: checkpoint(in_place, net, 2 * x, use_reentrant=False))
    lowering, stock = Lowering("aot_eager"), copy.deepcopy(network)
    maps = [torch.randn(SHAPE) for _ in range(2)]
    compiled = lowering.compile(network)
    got = [step(compiled, network, x) for x in maps]
    torch._dynamo.reset()
    compiled = torch.compile(stock, backend="aot_eager", fullgraph=True, dynamic=False)
    expected = [step(compiled, stock, x) for x in maps]
    torch.testing.assert_close(got, expected, rtol=2e-4, atol=2e-5)
    assert got[1]["bn.num_batches_tracked"] == 2
    the_op(lowering)


def test_a_copy_trains_by_itself() -> None:
    network, lowering = Network(in_place), Lowering("aot_eager")
    compiled = lowering.compile(network)
    x = torch.randn(SHAPE)
    step(compiled, network, x)
    twin, before = copy.deepcopy(network), copy.deepcopy(network.state_dict())
    trained(twin, ["batch_norm"], "aot_eager")
    torch.testing.assert_close(network.state_dict(), before, rtol=0, atol=0)
    assert not torch.equal(twin.bn.running_var, network.bn.running_var)


def test_two_blocks_in_a_row_are_two_ops() -> None:
    lowering = trained(nn.Sequential(ResNetTail(), ResNetTail()), ["batch_norm"] * 2, "aot_eager")
    assert lowering.own_calls() == ["batch_norm_eca"] * 2
    assert lowering.calls(F.batch_norm, torch.conv1d) == []
    assert outside(lowering) == 0
