"""What a site reads is what eager mode reads: nothing is taken from before, or behind, a write to it."""

import pytest
import torch
import torch.nn.functional as F
from harness import Lowering
from near_misses import gate
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
    x = torch.randn(3, 8, 6, 5)
    lowering = Lowering(device=device, plan=plan)
    with torch.no_grad():
        expected = network(x.clone())
        torch.testing.assert_close(
            lowering.compile(network.eval())(x.clone()), expected, rtol=1e-5, atol=1e-6
        )
    return lowering


def test_there_are_as_many_ways_as_a_program_may_find() -> None:
    assert len(WRITES) >= 90


@pytest.mark.parametrize("name", WRITES)
def test_a_map_that_is_written_to_before_its_product_is_no_site(name: str) -> None:
    network = Between(WRITES[name])
    with torch.no_grad():  # the way is one: it changes what comes out
        x = torch.randn(3, 8, 6, 5, generator=torch.Generator().manual_seed(0))
        changed = (2 * x).clone()
        WRITES[name](changed)
        assert not torch.equal(changed, 2 * x)
    lowering = run(network)
    assert [record.decision.reason for record in lowering.records] == [MUTATED]


@pytest.mark.parametrize("name", READS)
def test_a_map_that_is_only_read_before_its_product_is_a_site(name: str) -> None:
    assert len(run(Between(READS[name])).sites) == 1


class Parameters(nn.Module):
    """A block behind batch norm, of which `changed` is written to between the gate and the product."""

    def __init__(self, changed: str) -> None:
        super().__init__()
        self.changed = changed
        self.bn, self.conv = nn.BatchNorm2d(8), conv1d(bias=True)
        nn.init.normal_(self.bn.running_mean)

    def forward(self, x: Tensor) -> Tensor:
        source = x * 2
        y = self.bn(source)
        g = gate(self.conv, y)
        {"source": source, **dict(self.named_parameters()), **dict(self.named_buffers())}[self.changed].mul_(
            2
        )
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
    torch.manual_seed(0)
    network = Parameters(changed).eval()
    saved = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    x = torch.randn(3, 8, 6, 5)
    lowering = Lowering(device="cuda", plan=plan)
    with torch.no_grad():
        expected = network(x)
        network.load_state_dict(saved)
        result = lowering.compile(network)(x)
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-6)
    # The op of another plan than "pool" would have nothing to start from but what batch norm has stored.
    assert bool(lowering.sites) is (is_site and plan == "pool")
    assert not any("bn_mean" in node.kwargs for node in lowering.nodes())
