"""What is found in a Dynamo graph and what is left alone: every spelling once, no near miss ever."""

import pytest
import torch
import torch.nn.functional as F
from harness import Lowering, leaf
from near_misses import NEAR_MISSES
from spellings import SPELLINGS
from styles import STYLES
from torch import Tensor, nn

from eca_triton.compile import passes, recognize
from eca_triton.compile.reasons import UNEXPECTED

MODES = pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
MODES_AND_SHAPES = pytest.mark.parametrize(
    ("training", "dynamic"), [(False, False), (True, True)], ids=["eval-static", "train-dynamic"]
)


class Inside(nn.Module):
    """A block whose map is an intermediate of the network, not its input."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> object:
        return self.block(x * 2)


def lower(network: nn.Module, x: Tensor, *, training: bool, dynamic: bool) -> tuple[Lowering, object]:
    """Compile and run the network once; return the lowering and the result."""
    lowering = Lowering()
    with torch.set_grad_enabled(training):
        compiled = lowering.compile(network.train(training), dynamic=dynamic)
        torch.manual_seed(1)
        result = compiled(leaf(x) if training and x.is_floating_point() else x.clone())
    return lowering, result


@MODES_AND_SHAPES
@pytest.mark.parametrize("name", SPELLINGS)
def test_every_spelling_is_one_site_and_leaves_no_convolution(
    name: str, training: bool, dynamic: bool
) -> None:
    torch.manual_seed(0)
    spelling = SPELLINGS[name]
    lowering, _ = lower(Inside(spelling.build()), spelling.example(), training=training, dynamic=dynamic)

    assert len(lowering.sites) == 1, lowering.rejected
    assert lowering.rejected == []
    assert lowering.sites[0].k == spelling.k
    assert len(lowering.own_calls()) == 1
    assert lowering.calls(torch.conv1d, torch.conv2d, torch._C._nn.pad) == []
    assert lowering.calls(torch.sigmoid, F.hardsigmoid, F.adaptive_avg_pool2d, F.avg_pool2d) == []


@MODES
@pytest.mark.parametrize("name", STYLES)
def test_every_style_keeps_its_number_of_sites(name: str, training: bool) -> None:
    torch.manual_seed(0)
    style = STYLES[name]
    lowering, _ = lower(style.build(), style.example(), training=training, dynamic=False)

    assert len(lowering.sites) == style.sites, lowering.rejected
    assert len(lowering.own_calls()) == style.sites
    assert lowering.calls(torch.conv1d) == []


@pytest.mark.parametrize(
    ("name", "training", "dynamic"),
    [
        pytest.param(name, mode == "train", mode == "train", id=f"{name}-{mode}")
        for name, near_miss in NEAR_MISSES.items()
        for mode in ("eval", "train")
        if near_miss.only in (None, mode)
    ],
)
def test_every_near_miss_is_left_alone(name: str, training: bool, dynamic: bool) -> None:
    """In eval mode with static shapes, in training with dynamic ones."""
    torch.manual_seed(0)
    near_miss = NEAR_MISSES[name]
    network, x = Inside(near_miss.build()), near_miss.example()
    with torch.set_grad_enabled(training):
        network.train(training)
        torch.manual_seed(1)
        expected = network(x.clone())
    lowering, result = lower(network, x, training=training, dynamic=dynamic)

    assert lowering.sites == [], near_miss.reason
    assert UNEXPECTED not in {record.decision.reason for record in lowering.rejected}
    assert lowering.own_calls() == []
    torch.testing.assert_close(result, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    ("module", "function"), [(recognize, "_match"), (passes, "facts_of"), (passes, "rewrite")]
)
def test_an_error_of_ours_leaves_the_program_as_it_was(
    module: object, function: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise KeyError("a bug")

    monkeypatch.setattr(module, function, fail)
    network, x = SPELLINGS["official"].build(), SPELLINGS["official"].example()
    lowering, result = lower(network, x, training=False, dynamic=False)
    assert [record.decision.reason for record in lowering.records] == [UNEXPECTED]
    torch.testing.assert_close(result, network(x), rtol=0, atol=0)
