"""Our networks: each ECA module is a site, in one graph, in eval and training; other attentions have none."""

import pytest
import torch
from harness import Lowering
from torch import nn

from eca_triton import ECA, models
from eca_triton.models.attention import ATTENTION
from eca_triton.models.resnet import resnet

BLOCKS = {"resnet18": 8, "resnet50": 16, "mobilenet_v2": 17}  # those of the others again are not lowered here
TRAINING = pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])


def lowered(network: nn.Module, training: bool) -> Lowering:
    """The compiled network, which is on the meta device: its convolutions take no time."""
    lowering = Lowering()
    with torch.set_grad_enabled(training):
        lowering.compile(network.train(training))(torch.randn(2, 3, 224, 224, device="meta"))
    assert len(lowering.graphs) == 1
    return lowering


@TRAINING
@pytest.mark.parametrize("name", BLOCKS)
def test_every_eca_module_is_lowered(name: str, training: bool) -> None:
    with torch.device("meta"):
        network = models.create(f"eca_{name}")
    lowering = lowered(network, training)
    modules = [module for module, kind in network.named_modules() if isinstance(kind, ECA)]
    assert sorted(site.name for site in lowering.sites) == sorted(modules)
    assert len(lowering.sites) == len(lowering.own_calls()) == BLOCKS[name]
    assert lowering.rejected == []
    assert lowering.calls(torch.conv1d) == []


def test_one_tap_is_lowered_too() -> None:
    """As in the first stages of the official MobileNetV2."""
    stages = [(1, 16, 1, 1), (6, 64, 2, 2), (6, 96, 1, 2)]
    with torch.device("meta"):
        network = models.eca_mobilenet_v2((1, 1, 3), inverted_residual_setting=stages)
    assert [site.k for site in lowered(network, training=True).sites] == [1, 1, 1, 3]


def test_an_extractor_of_features_is_lowered() -> None:
    with torch.device("meta"):
        network = resnet("resnet10t", "eca", features_only=True)
    assert len(lowered(network, training=True).sites) == 4


NEAREST = "eca_ns", "se_var1"
"""A convolution whose taps differ from channel to channel, and a gate that is the mean itself."""


@pytest.mark.parametrize(
    ("name", "training"),
    [*((name, False) for name in ATTENTION if name != "eca"), *((name, True) for name in NEAREST)],
)
def test_other_attentions_have_no_site(name: str, training: bool) -> None:
    """In a network of one block a stage."""
    with torch.device("meta"):
        network = resnet("resnet10t", name)
    lowering = lowered(network, training)
    made = [module for module in network.modules() if isinstance(module, ATTENTION[name])]
    assert len(made) == (2 if name == "a2" else 4)
    assert lowering.sites == []
    assert lowering.own_calls() == []
