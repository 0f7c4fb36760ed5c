"""Numbers that stand for symbolic sizes are all different, and other ones than the graph has."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from harness import Lowering
from near_misses import spread
from spellings import Block, conv1d
from torch import Tensor, fx, nn

from eca_triton.compile.match.graph import value
from eca_triton.compile.match.sizes import LEAST, Sizes, is_dynamic
from eca_triton.compile.reasons import ASKED, GATE_FUNCTION, NOT_MEAN, POOL_PATH


def traced(function: Callable, *inputs: Tensor, dynamic: bool = True) -> fx.Graph:
    """The graph that Dynamo makes of a function."""
    graphs: list[fx.Graph] = []

    def backend(gm: fx.GraphModule, _: list[object]) -> Callable:
        graphs.append(gm.graph)
        return gm.forward

    torch._dynamo.reset()
    torch.compile(function, backend=backend, fullgraph=True, dynamic=dynamic)(*inputs)
    return graphs[0]


def reasons_of(network: Callable, *inputs: Any, dynamic: bool | None = True) -> list[str | None]:
    """What became of the sites of a network, whose results are those of eager mode."""
    lowering = Lowering()
    with torch.no_grad():
        torch.testing.assert_close(lowering.compile(network, dynamic)(*inputs), network(*inputs))
    return lowering.reasons


def last_by_first(conv: nn.Module, *maps: Tensor) -> Tensor:
    """Of nine maps the last one's sum is divided by the area of the first."""
    first, last = maps[0], maps[-1]
    area = first.size(2) * first.size(3)
    rest = sum(each.mean() for each in maps)
    return last * spread(conv((last.sum((2, 3)) / area).unsqueeze(1)).sigmoid()) + rest


def test_an_area_of_another_map_is_not_its_own() -> None:
    maps = [torch.randn(2, 4, 5 + i, 16 + i) for i in range(9)]
    assert reasons_of(Block(last_by_first, conv1d()), *maps) == [NOT_MEAN]


def pooled(name: str, size: tuple[int, int], pool: Callable[[Tensor], Tensor], reason: str = NOT_MEAN) -> Any:
    return pytest.param(size, 0, lambda x, _: pool(x), lambda z, _: z.sigmoid(), reason, id=name)


def divided(name: str, size: tuple[int, int], area: Callable[[int, int], int]) -> Any:
    return pooled(name, size, lambda x: x.sum((2, 3)) / area(x.size(2), x.size(3)))


def cropped(name: str, crop: Callable[[Tensor], Tensor], reason: str = POOL_PATH) -> Any:
    return pooled(name, (600, 3), lambda x: crop(x).mean((2, 3)), reason)


def limited(name: str, gate: Callable[[Tensor, int], Tensor]) -> Any:
    return pytest.param((6, 5), 3, lambda x, _: x.mean((2, 3)), gate, GATE_FUNCTION, id=name)


PIECEWISE = [
    cropped("first-rows", lambda x: x[:, :, :512]),
    cropped("last-rows", lambda x: x[:, :, -512:]),
    cropped("first-columns", lambda x: x.transpose(2, 3)[..., :512]),
    cropped("smaller-of-two", lambda x: x[:, :, : torch.sym_min(x.size(2), 512)], NOT_MEAN),
    divided("larger-of-two", (8, 3), lambda h, w: torch.sym_max(h, 64) * w),
    divided("floor", (5000, 2), lambda h, w: h * w * (1 + h // 4096)),
    divided("remainder", (600, 2), lambda h, w: (h % 512) * w),
    divided("even-part", (7, 3), lambda h, w: h // 2 * 2 * w),
    divided("odd-part", (8, 3), lambda h, w: (h // 2 * 2 + 1) * w),
    limited("limit-above", lambda z, limit: z.clamp(max=limit).sigmoid()),
    limited("limit-below", lambda z, limit: z.clamp(min=-limit).sigmoid()),
    limited("limit-both", lambda z, limit: F.hardsigmoid(z.clamp(-limit, limit))),
    limited("shifted", lambda z, limit: (z + (limit - 3)).sigmoid()),
    limited("scaled", lambda z, limit: z.sigmoid() * limit / 3),
]


def piecewise(pool: Callable, gate: Callable) -> nn.Module:
    """A block whose pool and gate function are given, both with a number that the program is given."""

    def rescale(conv: nn.Module, x: Tensor, number: int) -> Tensor:
        x = 2 * x
        return x * spread(gate(conv(pool(x, number).unsqueeze(1)), number))

    block = Block(rescale, conv1d())
    nn.init.constant_(block.conv.weight, 2.0)
    return block


@pytest.mark.parametrize(("size", "number", "pool", "gate", "reason"), PIECEWISE)
def test_what_depends_on_a_size_by_pieces_is_left_alone(
    size: tuple[int, int], number: int, pool: Callable, gate: Callable, reason: str
) -> None:
    """Another size may be on the other side of a corner, and no guard asks on which side it is."""
    x = torch.linspace(0, 4, size[0]).view(1, 1, -1, 1).expand(2, 4, *size).contiguous()
    assert reasons_of(piecewise(pool, gate), x, number) == [reason]


def test_what_is_right_for_one_set_of_numbers_is_tried_with_another() -> None:
    """Where the height is 211, as the first set has it, this is a mean."""
    network = piecewise(lambda x, _: x.mean((2, 3)) * (x.size(2) + 1) / 4 / 53, lambda z, _: z.sigmoid())
    x = torch.randn(2, 4, 8, 3)
    torch._dynamo.mark_dynamic(x, 2)
    assert reasons_of(network, x, 0, dynamic=None) == [NOT_MEAN]


@torch._dynamo.config.patch(capture_scalar_outputs=True)
def test_a_number_that_the_program_computes_is_no_part_of_a_gate() -> None:
    cap = torch.tensor(1.0)
    network = piecewise(lambda x, _: x.mean((2, 3)), lambda z, _: z.clamp(max=cap.item()).sigmoid())
    assert reasons_of(network, torch.full((2, 4, 6, 5), 20.0), 0, dynamic=False) == [GATE_FUNCTION]


@pytest.mark.parametrize("dynamic", [True, None], ids=["dynamic", "second-size"])
def test_sizes_behind_strided_layers_are_understood(dynamic: bool | None) -> None:
    """They are floor divisions, and the mean divides by just these."""
    kernel = torch.randn(8, 3, 3, 3)

    def rescale(conv: nn.Module, x: Tensor) -> Tensor:
        y = F.max_pool2d(F.conv2d(x, kernel, stride=2, padding=1), 3, 2, 1)
        n, c, h, w = y.shape
        return y * spread(conv((y.view(n, c, -1).sum(-1) / (h * w)).view(n, 1, c)).sigmoid())

    network, lowering = Block(rescale, conv1d()), Lowering()
    compiled = lowering.compile(network, dynamic=dynamic)
    with torch.no_grad():
        for size in (21, 34):
            x = torch.randn(2, 3, size, size + 7)
            torch.testing.assert_close(compiled(x), network(x))
    assert [record.lowered for record in lowering.records] == [True] * len(lowering.graphs)


@pytest.mark.parametrize(
    ("least", "function"),
    [
        (LEAST[0], lambda x, y: torch.cat([x, y]) / 434),  # 211 + 223
        (LEAST[1], lambda x, y: torch.cat([x, y]) / 810),  # 401 + 409
    ],
)
def test_a_sum_of_symbols_is_no_constant_of_the_graph(least: int, function: Callable) -> None:
    """That primes divide no constant is not enough."""
    graph = traced(function, torch.ones(3), torch.ones(4))
    (cat,) = (node for node in graph.nodes if node.name == "cat")
    assert Sizes(graph, least)(value(cat).shape[0]) not in (434, 810)


@pytest.mark.parametrize("least", LEAST)
def test_forty_symbols_and_what_is_made_of_them_stay_apart(least: int) -> None:
    maps = [torch.randn(3 + i, 40 + i, requires_grad=False) for i in range(20)]

    def function(*maps: Tensor) -> list[Tensor]:
        return [torch.cat([x, x[1:]]).sum(1)[::2] for x in maps] + [
            maps[0].new_zeros(2 * 211, 3 * 223, 2 * 401)
        ]

    graph = traced(function, *maps)
    sizes = Sizes(graph, least)
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
    assert min(symbols) >= least
    assert all(size % number for number in symbols for size in (2 * 211, 3 * 223, 2 * 401))


def test_a_graph_of_plain_sizes_is_not_dynamic() -> None:
    def function(x: Tensor) -> Tensor:
        return x.mean((2, 3)).reshape(x.shape[0], -1)

    x = torch.ones(2, 3, 4, 5)
    assert not is_dynamic(traced(function, x, dynamic=False))
    assert is_dynamic(traced(function, x))


def before_relu(conv: nn.Module, x: Tensor) -> Tensor:
    y = 2 * x
    return torch.relu(y * spread(conv(y.mean((2, 3)).unsqueeze(1)).sigmoid()) + x)


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("plan", ["auto", "block"])
def test_unbacked_sizes_are_asked_for_nothing(plan: str, training: bool) -> None:
    """A size that is known only when the program runs has no value that a question could be answered with."""
    network, x = Block(before_relu, conv1d()).train(training), torch.randn(2, 8, 6, 5)
    for dim in (2, 3):
        torch._dynamo.decorators.mark_unbacked(x, dim)
    lowering = Lowering(device="cuda", plan=plan)
    with torch.set_grad_enabled(training):
        result = lowering.compile(network, dynamic=None)(x)
        torch.testing.assert_close(result, network(x))
    (record,) = lowering.records
    assert record.lowered or (plan, record.decision.reason) == ("block", ASKED)
