"""Real code: every ECA module of timm's 23 networks is a site, in eval and in training, in one graph each."""

import pytest
import timm
import torch
from harness import OLDEST, Lowering
from timm.layers import CecaModule, EcaModule
from torch import nn

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


def attention_modules(network: nn.Module) -> list[str]:
    return [name for name, module in network.named_modules() if isinstance(module, (EcaModule, CecaModule))]


def test_all_networks_with_eca_are_listed() -> None:
    assert {name for name in timm.list_models() if "eca" in name} == SITES.keys()
    assert len(SITES) == 23
    assert sum(SITES.values()) == 526


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("name", [name for name in SITES if not OLDEST or SITES[name] <= 10])
def test_every_eca_module_is_lowered(name: str, training: bool) -> None:
    """On the meta device, where a network takes no memory and its convolutions no time.

    The oldest torch has the smallest ones: the others are mostly of their blocks.
    """
    with torch.device("meta"):
        network = timm.create_model(name).train(training)
        x = torch.randn(2, *network.pretrained_cfg["input_size"])
    lowering = Lowering()
    with torch.set_grad_enabled(training):
        lowering.compile(network)(x)

    assert len(lowering.graphs) == 1
    assert sorted(site.name for site in lowering.sites) == sorted(attention_modules(network))
    assert len(lowering.sites) == SITES[name]
    assert lowering.rejected == []
    assert lowering.calls(torch.conv1d) == []
    assert len(lowering.own_calls()) == SITES[name]
