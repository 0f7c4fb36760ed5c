"""Numbers that stand for symbolic sizes are all different, and other ones than the graph has."""

from collections.abc import Callable

import pytest
import torch
from harness import Lowering
from near_misses import spread
from spellings import conv1d
from torch import Tensor, fx, nn

from eca_triton.compile.graph import value
from eca_triton.compile.reasons import ASKED, NOT_MEAN
from eca_triton.compile.sizes import Sizes, is_dynamic


def traced(function: Callable, *inputs: Tensor, dynamic: bool = True) -> fx.Graph:
    """The graph that Dynamo makes of a function."""
    graphs: list[fx.Graph] = []

    def backend(gm: fx.GraphModule, _: list[object]) -> Callable:
        graphs.append(gm.graph)
        return gm.forward

    torch._dynamo.reset()
    torch.compile(function, backend=backend, fullgraph=True, dynamic=dynamic)(*inputs)
    return graphs[0]


class LastByFirst(nn.Module):
    """Nine maps, of which the last one's sum is divided by the area of the first."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = conv1d()

    def forward(self, *maps: Tensor) -> Tensor:
        *others, first = reversed(maps)
        last = others[0]
        area = first.size(2) * first.size(3)
        rest = sum(each.mean() for each in maps)
        return last * spread(self.conv((last.sum((2, 3)) / area).unsqueeze(1)).sigmoid()) + rest


def test_an_area_of_another_map_is_not_its_own() -> None:
    torch.manual_seed(0)
    maps = [torch.randn(2, 4, 5 + i, 16 + i) for i in range(9)]
    network, lowering = LastByFirst().eval(), Lowering()
    with torch.no_grad():
        torch.testing.assert_close(lowering.compile(network, dynamic=True)(*maps), network(*maps))
    assert [record.decision.reason for record in lowering.records] == [NOT_MEAN]


@pytest.mark.parametrize("even", [False, True])
def test_forty_symbols_and_what_is_made_of_them_stay_apart(even: bool) -> None:
    maps = [torch.randn(3 + i, 40 + i, requires_grad=False) for i in range(20)]

    def function(*maps: Tensor) -> list[Tensor]:
        return [torch.cat([x, x[1:]]).sum(1)[::2] for x in maps] + [maps[0].new_zeros(211, 223, 227)]

    graph = traced(function, *maps)
    sizes = Sizes(graph, even)
    symbolic = {
        size.node.expr: sizes(size)
        for node in graph.nodes
        if isinstance(value(node), Tensor)
        for size in value(node).shape
        if not isinstance(size, int)
    }
    assert len(symbolic) >= 60
    assert len(set(symbolic.values())) == len(symbolic)
    symbols = [number for expression, number in symbolic.items() if expression.is_Symbol]
    assert all(number % 2 == (not even) for number in symbols)
    assert all(size % (number // (1 + even)) for number in symbols for size in (211, 223, 227))


def test_a_graph_of_plain_sizes_is_not_dynamic() -> None:
    def function(x: Tensor) -> Tensor:
        return x.mean((2, 3)).reshape(x.shape[0], -1)

    x = torch.ones(2, 3, 4, 5)
    assert not is_dynamic(traced(function, x, dynamic=False))
    assert is_dynamic(traced(function, x))


class BeforeReLU(nn.Module):
    """A block with a shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = conv1d()

    def forward(self, x: Tensor) -> Tensor:
        y = 2 * x
        return torch.relu(y * spread(self.conv(y.mean((2, 3)).unsqueeze(1)).sigmoid()) + x)


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("plan", ["auto", "block"])
def test_unbacked_sizes_are_asked_for_nothing(plan: str, training: bool) -> None:
    """A size that is known only when the program runs has no value that a question could be answered with."""
    torch.manual_seed(0)
    network, x = BeforeReLU().train(training), torch.randn(2, 8, 6, 5)
    for dim in (2, 3):
        torch._dynamo.decorators.mark_unbacked(x, dim)
    lowering = Lowering(device="cuda", plan=plan)
    with torch.set_grad_enabled(training):
        result = lowering.compile(network, dynamic=None)(x)
        torch.testing.assert_close(result, network(x))
    (record,) = lowering.records
    assert record.lowered or (plan, record.decision.reason) == ("block", ASKED)
