"""The paper's networks: with ECA every module is a site; with another attention there is none."""

import pytest
import torch
from harness import Lowering

from eca_triton.models import create
from eca_triton.models.attention import ATTENTION

BLOCKS = {"resnet18": 8, "mobilenet_v2": 17}


def lowered(name: str, training: bool) -> Lowering:
    """On the meta device, where a network takes no memory and its convolutions no time."""
    with torch.device("meta"):
        network = create(name).train(training)
        x = torch.randn(2, 3, 64, 64)
    lowering = Lowering()
    with torch.set_grad_enabled(training):
        lowering.compile(network)(x)
    assert len(lowering.graphs) == 1
    return lowering


@pytest.mark.parametrize(
    ("network", "training"), [("resnet18", False), ("resnet18", True), ("mobilenet_v2", False)]
)
def test_every_eca_module_is_lowered(network: str, training: bool) -> None:
    lowering = lowered(f"eca_{network}", training)
    assert (len(lowering.sites), lowering.rejected) == (BLOCKS[network], [])
    assert lowering.calls(torch.conv1d) == []


@pytest.mark.parametrize(
    ("attention", "training"),
    [*((name, False) for name in ATTENTION if name != "eca"), ("se", True), ("cbam", True)],
)
def test_another_attention_is_left_alone(attention: str, training: bool) -> None:
    lowering = lowered(f"{attention}_resnet18", training)
    assert lowering.sites == []
    assert lowering.own_calls() == []
