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
from harness import Lowering, leaf
from styles import CHANNELS, ResNetTail, conv1x1, trained_batch_norm
from timm.layers import EcaModule
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from eca_triton.ops import BATCH_NORM_ECA

SHAPE = (4, CHANNELS, 6, 5)


class Network(nn.Module):
    """conv, batch norm and ECA, and code around them that gets the input as shortcut."""

    def __init__(self, around: Callable[[Network, Tensor], Any], bn: nn.Module | None = None) -> None:
        super().__init__()
        self.around, self.conv = around, conv1x1()
        self.bn, self.eca = bn or trained_batch_norm(), EcaModule(CHANNELS)
        self.offset = nn.Parameter(torch.randn(1, CHANNELS, 1, 1))

    def attend(self, x: Tensor) -> Tensor:
        return self.eca(self.bn(self.conv(x)))

    def forward(self, x: Tensor) -> Any:
        return self.around(self, x)


def in_place(net: Network, x: Tensor) -> Tensor:
    y = net.attend(x)
    y += x
    return F.relu(y, inplace=True)


def gain_before(net: Network, x: Tensor) -> Tensor:
    return F.relu(0.5 * net.attend(x) + x)


def shortcut_first(net: Network, x: Tensor) -> Tensor:
    return torch.relu(x + net.attend(x))


def shortcut_with_its_own_batch_norm(net: Network, x: Tensor) -> Tensor:
    return F.relu(net.attend(x) + F.batch_norm(x, None, None, training=True))


def many_readers(net: Network, x: Tensor) -> tuple[Tensor, ...]:
    y = F.relu(net.attend(x) + x)
    return y, F.max_pool2d(y, 2), y.mean((2, 3)), y + x


# code: gain, whether a residual and ReLU are in the op
WHOLE: dict[str, tuple[Callable[[Network, Tensor], Any], tuple[float, bool, bool]]] = {
    "add and relu in place": (in_place, (1.0, True, True)),
    "gain, residual, relu": (gain_before, (0.5, True, True)),
    "shortcut first": (shortcut_first, (1.0, True, True)),
    "shortcut with its own batch norm": (shortcut_with_its_own_batch_norm, (1.0, True, True)),
    "result read by many": (many_readers, (1.0, True, True)),
    "relu alone": (lambda net, x: F.relu(net.attend(x)), (1.0, False, True)),
    "no tail": (lambda net, x: net.attend(x), (1.0, False, False)),
}


def changed_shortcut(net: Network, x: Tensor) -> Tensor:
    shortcut = x.sin()
    y = net.attend(x) + shortcut
    shortcut.mul_(2)
    return F.relu(y) + shortcut


def sum_into_the_shortcut(net: Network, x: Tensor) -> Tensor:
    shortcut = x.sin()
    shortcut += net.attend(x)
    return F.relu(shortcut)


def sum_read_twice(net: Network, x: Tensor) -> Tensor:
    y = net.attend(x) + x
    return F.relu(y) + y.tanh()


def rescaled_map_read_twice(net: Network, x: Tensor) -> tuple[Tensor, Tensor]:
    y = net.attend(x)
    return F.relu(y + x), y


# code: how many additions and activations stay outside the op
WITHOUT_TAIL: dict[str, tuple[Callable[[Network, Tensor], Any], int]] = {
    "relu6": (lambda net, x: F.relu6(net.attend(x) + x), 2),
    "silu": (lambda net, x: F.silu(net.attend(x) + x), 2),
    "residual alone": (lambda net, x: net.attend(x) + x, 1),
    "alpha": (lambda net, x: F.relu(torch.add(net.attend(x), x, alpha=2)), 2),
    "broadcast shortcut": (lambda net, x: F.relu(net.attend(x) + net.offset), 2),
    "a number as shortcut": (lambda net, x: F.relu(net.attend(x) + 1.0), 2),
    "shortcut changed before relu": (changed_shortcut, 3),
    "sum into the shortcut": (sum_into_the_shortcut, 2),
    "sum read twice": (sum_read_twice, 3),
    "rescaled map read twice": (rescaled_map_read_twice, 2),
    "gain of a tensor": (lambda net, x: F.relu(net.attend(x) * net.offset + x), 2),
}


# Each is run without gradients where autograd forbids what it does.
def called_twice(net: Network, x: Tensor) -> Tensor:
    return F.relu(net.attend(x) + net.bn(x))


def input_changed(net: Network, x: Tensor) -> Tensor:
    y = net.conv(x)
    z = net.eca(net.bn(y))
    y.zero_()
    return F.relu(z + x)


def result_of_batch_norm_read(net: Network, x: Tensor) -> Tensor:
    y = net.bn(net.conv(x))
    return F.relu(net.eca(y) + y)


def statistics_read(net: Network, x: Tensor) -> Tensor:
    return F.relu(net.attend(x) + x) * net.bn.running_mean.view(1, -1, 1, 1)


def batch_norm_weight_changed(net: Network, x: Tensor) -> Tensor:
    weight = net.bn.weight * 2
    y = net.eca(F.batch_norm(net.conv(x), None, None, weight, net.bn.bias, training=True))
    weight.zero_()
    return F.relu(y + x)


def taps_changed(net: Network, x: Tensor) -> Tensor:
    y = net.bn(net.conv(x))
    taps = net.eca.conv.weight * 2
    y = y * F.conv1d(y.mean((2, 3)).unsqueeze(1), taps, padding=1).sigmoid().view(*y.shape[:2], 1, 1)
    taps.zero_()
    return F.relu(y + x)


NOT: dict[str, tuple[Callable[[Network, Tensor], Any], bool]] = {
    "one batch norm called twice": (called_twice, True),
    "input of batch norm changed": (input_changed, False),
    "weight of batch norm changed": (batch_norm_weight_changed, False),
    "taps changed": (taps_changed, False),
    "result of batch norm read": (result_of_batch_norm_read, True),
    "running mean read": (statistics_read, True),
    "activation between": (lambda net, x: net.eca(F.relu(net.bn(net.conv(x)))) + x, True),
}

BATCH_NORMS: dict[str, Callable[[], nn.Module]] = {
    "no affine": lambda: trained_batch_norm(affine=False),
    "no running statistics": lambda: nn.BatchNorm2d(CHANNELS, track_running_stats=False),
    "momentum and eps of its own": lambda: nn.BatchNorm2d(CHANNELS, momentum=0.3, eps=1e-2),
}


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def step(run: Callable[..., Any], state: nn.Module, x: Tensor, grad: bool = True) -> dict[str, Tensor]:
    """Outputs, gradients and buffers after a step."""
    with torch.set_grad_enabled(grad):
        x = leaf(x) if grad else x
        outputs = run(x)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    found = {f"output {i}": output.detach() for i, output in enumerate(outputs)}
    if grad:
        state.zero_grad()
        sum((output * output.detach().cos()).sum() for output in outputs).backward()
        found |= {name: p.grad.clone() for name, p in state.named_parameters() if p.grad is not None}
        found["x"] = x.grad
    return found | {name: buffer.clone() for name, buffer in state.named_buffers()}


def assert_steps_are_eagers(
    network: nn.Module, lowering: Lowering, shapes: tuple[tuple[int, ...], ...] = (SHAPE, SHAPE), **how: Any
) -> None:
    """Two steps, so that running statistics and their count go on from what the first left."""
    twin, compiled = copy.deepcopy(network), lowering.compile(network, dynamic=how.pop("dynamic", False))
    for shape in shapes:
        x = torch.randn(shape)
        got, expected = step(compiled, network, x, **how), step(twin, twin, x, **how)
        torch.testing.assert_close(got, expected, rtol=2e-4, atol=2e-5)


def plans(lowering: Lowering) -> list[str]:
    return [record.decision.plan for record in lowering.records]


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
    lowering = Lowering()
    assert_steps_are_eagers(Network(around), lowering)
    op = the_op(lowering)
    assert plans(lowering) == ["batch_norm"]
    assert (op.get("gain", 1.0), op["residual"] is not None) == (gain, residual)
    assert (op.get("activation") == "relu") == relu
    others = {"shortcut with its own batch norm": 1}.get(name, 0)
    assert len(lowering.calls(F.batch_norm)) == others
    assert outside(lowering) == (name == "result read by many")


@pytest.mark.parametrize("name", WITHOUT_TAIL)
def test_the_tail_stays_where_the_op_cannot_compute_it(name: str) -> None:
    around, left = WITHOUT_TAIL[name]
    lowering = Lowering()
    assert_steps_are_eagers(Network(around), lowering)
    op = the_op(lowering)
    assert plans(lowering) == ["batch_norm"]
    assert op["residual"] is None
    assert not {"gain", "activation"} & op.keys()
    assert lowering.calls(F.batch_norm) == []
    assert outside(lowering) == left


@pytest.mark.parametrize("name", NOT)
def test_batch_norm_stays_where_somebody_else_depends_on_it(name: str) -> None:
    around, grad = NOT[name]
    lowering = Lowering()
    assert_steps_are_eagers(Network(around), lowering, grad=grad)
    assert plans(lowering) == ["pool"]
    assert lowering.own_calls() == ["gate_from_pool"]
    assert len(lowering.calls(F.batch_norm)) == 1 + (name == "one batch norm called twice")


def test_a_momentum_that_dynamo_does_not_know_stays_with_batch_norm() -> None:
    """With dynamic=True numbers of modules are inputs of the graph."""
    lowering = Lowering()
    assert_steps_are_eagers(Network(in_place), lowering, dynamic=True)
    assert plans(lowering) == ["pool"]
    assert len(lowering.calls(F.batch_norm)) == 1


@pytest.mark.parametrize("name", BATCH_NORMS)
def test_every_kind_of_batch_norm(name: str) -> None:
    lowering = Lowering()
    assert_steps_are_eagers(Network(in_place, BATCH_NORMS[name]()), lowering)
    assert plans(lowering) == ["batch_norm"]
    assert lowering.calls(F.batch_norm) == []
    the_op(lowering)


@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
def test_training_statistics_without_gradients(grad: bool) -> None:
    """Statistics are estimated anew so: in training mode, with no backward."""
    lowering = Lowering()
    assert_steps_are_eagers(Network(in_place), lowering, grad=grad)
    assert plans(lowering) == ["batch_norm"]
    the_op(lowering)


def test_in_evaluation_mode_the_plan_is_another() -> None:
    lowering = Lowering()
    assert_steps_are_eagers(Network(in_place).eval(), lowering)
    assert plans(lowering) == ["pool"]


@pytest.mark.parametrize("dynamic", [None, True], ids=["at the second size", "from the first"])
def test_a_graph_for_any_batch_has_the_plan(dynamic: bool | None) -> None:
    """AOTAutograd has Dynamo trace anew, with batch norm's numbers, what dynamic=True made inputs."""
    lowering = Lowering("aot_eager")
    shapes = tuple((batch, *SHAPE[1:]) for batch in (4, 3, 7))
    assert_steps_are_eagers(Network(in_place), lowering, shapes, dynamic=dynamic)
    assert plans(lowering) == ["pool" if dynamic else "batch_norm", "batch_norm"]
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
    assert_steps_are_eagers(twin, Lowering("aot_eager"))
    torch.testing.assert_close(network.state_dict(), before, rtol=0, atol=0)
    assert not torch.equal(twin.bn.running_var, network.bn.running_var)


def test_two_blocks_in_a_row_are_two_ops() -> None:
    lowering = Lowering("aot_eager")
    assert_steps_are_eagers(nn.Sequential(ResNetTail(), ResNetTail()), lowering)
    assert plans(lowering) == ["batch_norm"] * 2
    assert lowering.own_calls() == ["batch_norm_eca"] * 2
    assert lowering.calls(F.batch_norm, torch.conv1d) == []
    assert outside(lowering) == 0
