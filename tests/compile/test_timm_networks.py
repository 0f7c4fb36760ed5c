"""Real code: every ECA module of timm's 23 networks is a site, in eval and in training, in one graph each."""

import pytest
import timm
import torch
from harness import OLDEST, WHOLE, Lowering

from benchmarks.shared.networks import NETWORKS, attention, images, network

SITES = {
    "eca_botnext26ts_256": 5,
    "eca_halonext26ts": 5,
    "eca_nfnet_l0": 12,
    "eca_nfnet_l1": 24,
    "eca_nfnet_l2": 36,
    "eca_nfnet_l3": 48,
    "eca_resnet33ts": 10,
    "eca_resnext26ts": 8,
    "eca_vovnet39b": 4,
    "ecaresnet26t": 8,
    "ecaresnet50d": 16,
    "ecaresnet50d_pruned": 16,
    "ecaresnet50t": 16,
    "ecaresnet101d": 33,
    "ecaresnet101d_pruned": 33,
    "ecaresnet200d": 66,
    "ecaresnet269d": 89,
    "ecaresnetlight": 16,
    "ecaresnext26t_32x4d": 8,
    "ecaresnext50t_32x4d": 16,
    "nf_ecaresnet26": 8,
    "nf_ecaresnet50": 16,
    "nf_ecaresnet101": 33,
}


def test_all_networks_with_eca_are_listed() -> None:
    assert {name for name in timm.list_models() if "eca" in name} == SITES.keys() == NETWORKS.keys()
    assert {name: len(attention(network(name, whole=True))) for name in SITES} == SITES
    assert sum(SITES.values()) == 526


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] * (sites > 10))
        for name, sites in SITES.items()
        if not OLDEST or sites <= 10
    ],
)
def test_every_eca_module_is_lowered(name: str, training: bool) -> None:
    """On the meta device, where a network takes no memory and its convolutions no time.

    The deepest have three blocks in each stage: the others are these again. ECA_TRITON_FULL_DEPTH=1 has them
    all. The oldest torch has the smallest networks.
    """
    model = network(name, whole=WHOLE).train(training)
    lowering = Lowering()
    with torch.set_grad_enabled(training):
        lowering.compile(model)(images(name, 2))

    assert len(lowering.graphs) == 1
    assert sorted(site.name for site in lowering.sites) == sorted(attention(model))
    assert lowering.rejected == []
    assert lowering.calls(torch.conv1d) == []
    assert len(lowering.own_calls()) == len(lowering.sites)
