"""What a site reads is what eager mode reads: nothing is taken from before, or behind, a write to it."""

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from harness import Lowering
from near_misses import gate, pooled, spread
from spellings import conv1d
from torch import Tensor, nn
from writes import READS, WRITES, Way

from eca_triton.compile.reasons import MUTATED


class Between(nn.Module):
    """A block that does something to its map between its gate and its product."""

    def __init__(self, way: Way) -> None:
        super().__init__()
        self.way, self.conv = way, conv1d()

    def forward(self, x: Tensor) -> Tensor:
        y = x * 2
        g = gate(self.conv, y)
        self.way(y)
        return y * g


def run(network: nn.Module, plan: str = "auto", device: str | None = None) -> Lowering:
    """Run a network compiled and in eager mode; the results are the same."""
    torch.manual_seed(0)
    x, twin = torch.randn(3, 8, 6, 5), copy.deepcopy(network)
    lowering = Lowering(device=device, plan=plan)
    with torch.no_grad():
        result, expected = lowering.compile(network.eval())(x.clone()), twin.eval()(x)
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-6)
    return lowering


def test_there_are_as_many_ways_as_a_program_may_find() -> None:
    assert len(WRITES) >= 90


@pytest.mark.parametrize("name", WRITES)
def test_a_map_that_is_written_to_before_its_product_is_no_site(name: str) -> None:
    before = torch.randn(3, 8, 6, 5)
    after = before.clone()
    with torch.no_grad():
        WRITES[name](after)
    assert not torch.equal(after, before)  # it is one
    assert run(Between(WRITES[name])).reasons == [MUTATED]


@pytest.mark.parametrize("name", READS)
def test_a_map_that_is_only_read_before_its_product_is_a_site(name: str) -> None:
    assert len(run(Between(READS[name])).sites) == 1


class Parameters(nn.Module):
    """A block behind batch norm, of which `changed` is written to between the gate and the product."""

    def __init__(self, changed: str) -> None:
        super().__init__()
        self.changed = changed
        # What it makes is in memory: an op may start from it.
        self.projection = nn.Conv2d(8, 8, 1, bias=False)
        self.bn, self.conv = nn.BatchNorm2d(8), conv1d(bias=True)
        nn.init.normal_(self.bn.running_mean)

    def forward(self, x: Tensor) -> Tensor:
        source = self.projection(x)
        y = self.bn(source)
        g = gate(self.conv, y)
        read = {"source": source, **dict(self.named_parameters()), **dict(self.named_buffers())}
        read[self.changed].mul_(2)
        return F.relu(y * g)


@pytest.mark.parametrize("plan", ["block", "gate", "pool"])
@pytest.mark.parametrize(
    ("changed", "is_site"),
    [
        ("conv.weight", False), ("conv.bias", False), ("source", True), ("bn.running_mean", True),
        ("bn.running_var", True), ("bn.weight", True), ("bn.bias", True),
    ],
)  # fmt: skip
def test_what_an_op_reads_where_the_product_is_made_is_as_it_was(
    changed: str, is_site: bool, plan: str
) -> None:
    """An op that would compute batch norm from what has changed starts behind batch norm instead."""
    lowering = run(Parameters(changed), plan, "cuda")
    # The op of another plan than "pool" would have nothing to start from but what batch norm has stored.
    assert bool(lowering.sites) is (is_site and plan == "pool")
    assert not any("bn_mean" in node.kwargs for node in lowering.nodes())


@pytest.mark.parametrize("plan", ["block", "gate", "pool"])
@torch.no_grad()
def test_an_op_computes_no_activation_of_what_has_changed_where_the_product_is_made(plan: str) -> None:
    """It is written to by another name of its memory."""
    conv, before = conv1d(), torch.randn(3, 8, 6, 5)

    def program(x: Tensor, memory: Tensor) -> Tensor:
        y = F.relu(x)
        g = gate(conv, y)
        memory.sub_(1)
        return y * g

    expected, lowering = program(*named_twice(before)), Lowering(device="cuda", plan=plan)
    got = lowering.compile(program)(*named_twice(before))
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
    assert bool(lowering.sites) is (plan == "pool")


def named_twice(x: Tensor) -> tuple[Tensor, Tensor]:
    """A map, and all of its memory."""
    memory = x.flatten().clone()
    return memory.view(x.shape), memory


# What is done with z [N, 1, C] and g [N, C, 1, 1], a view of it, behind the product, and what is returned.
BEHIND: dict[str, Callable[[Tensor, Tensor], tuple[Tensor, ...]]] = {
    "view-written": lambda z, g: (g.zero_(), z * 1)[1:],
    "base-written": lambda z, g: (z.view(-1)[:3].zero_(), g * 1)[1:],
    "both-returned": lambda z, g: (g.add_(1), z, g)[1:],
    "written-twice": lambda z, g: (g.mul_(2), z.add_(1), g * 1, z * 1)[2:],
}


class WrittenBehind(nn.Module):
    """A block whose gate is written to behind its product, a view, or with `copied` a copy, of z."""

    def __init__(self, behind: Callable[[Tensor, Tensor], tuple[Tensor, ...]], copied: bool) -> None:
        super().__init__()
        self.behind, self.copied = behind, copied
        self.projection, self.conv = nn.Conv2d(8, 8, 1, bias=False), conv1d()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        y = self.projection(x)
        z = self.conv(pooled(y)).sigmoid()
        g = spread(z.clone() if self.copied else z)
        out = y * g
        return out, *self.behind(z, g)


@pytest.mark.parametrize(
    ("plan", "dtype", "copied"),
    [
        pytest.param("gate", torch.bfloat16, False, id="gate-bfloat16-view"),
        pytest.param("gate", torch.float32, True, id="gate-float32-copy"),
        pytest.param("convfold", torch.float32, False, id="convfold-float32-view"),
        pytest.param("convfold", torch.bfloat16, True, id="convfold-bfloat16-copy"),
    ],
)
@pytest.mark.parametrize("name", BEHIND)
def test_a_gate_that_is_written_to_behind_its_product_shares_the_memory_that_it_shared(
    name: str, plan: str, dtype: torch.dtype, copied: bool
) -> None:
    torch.manual_seed(0)
    network, x = WrittenBehind(BEHIND[name], copied).eval().to(dtype), torch.randn(3, 8, 6, 5, dtype=dtype)
    lowering = Lowering("aot_eager", device="cuda", plan=plan)
    with torch.no_grad():
        expected, results = network(x), lowering.compile(network)(x)
        assert lowering.plans == [plan]
        if name == "both-returned":  # and what a caller does to them later
            for _, z, _ in (expected, results):
                z.mul_(3)
        torch.testing.assert_close(
            results, expected, rtol=1e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-6
        )
