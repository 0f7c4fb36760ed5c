"""The networks: sizes as published, modules where the papers have them, weights named as in plain ones."""

import pytest
import timm
import torch
import torchvision
from formulas import PARAMETERS, reduced
from paper_networks import BLOCKS, SMALL, create, image, kernel_sizes, size, with_values
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from eca_triton import ECA, models
from eca_triton.models import mobilenetv2, resnet
from eca_triton.models.attention import A2, ATTENTION, SEVar2

FOLLOWED = {  # by A2: two of the blocks at stride 8, three of those at stride 16
    "resnet18": {128: 2, 256: 2},
    "resnet34": {128: 2, 256: 3},
    "resnet50": {512: 2, 1024: 3},
    "resnet101": {512: 2, 1024: 3},
    "resnet152": {512: 2, 1024: 3},
    "mobilenet_v2": {32: 2, 64: 2, 96: 1},
}
PUBLISHED = {  # table 3 of the ECA-Net paper, in 2**20
    "resnet50": 24.37,
    "se_resnet50": 26.77,
    "cbam_resnet50": 26.77,
    "eca_resnet50": 24.37,
    "resnet101": 42.49,
    "se_resnet101": 47.01,
    "cbam_resnet101": 47.01,
    "eca_resnet101": 42.49,
    "resnet152": 57.40,
    "se_resnet152": 63.68,
    "eca_resnet152": 57.40,
    "mobilenet_v2": 3.34,
    "se_mobilenet_v2": 3.40,
    "eca_mobilenet_v2": 3.34,
}


def each_block(network: str, *by_stage: int) -> list[int]:
    return [k for k, blocks in zip(by_stage, BLOCKS[network].values(), strict=True) for _ in range(blocks)]


def test_names_are_the_networks_and_each_with_each_attention() -> None:
    attentions = ["", *(f"{name}_" for name in ATTENTION)]
    assert sorted(models.names()) == sorted(name + network for name in attentions for network in BLOCKS)


@pytest.mark.parametrize("name", models.names())
def test_it_has_the_plain_networks_parameters_and_those_of_its_modules(name: str) -> None:
    network = next(each for each in BLOCKS if name.endswith(each))
    attention = name.removesuffix(network).rstrip("_")
    places = FOLLOWED if attention == "a2" else BLOCKS
    parameters = PARAMETERS.get(attention, lambda channels: 0)
    if name == "se_mobilenet_v2":
        parameters = lambda channels: 2 * channels * reduced(channels, 8)  # noqa: E731 (beside the dict's)
    expected = sum(blocks * parameters(channels) for channels, blocks in places[network].items())
    assert size(create(name)) == size(create(network)) + expected


@pytest.mark.parametrize("name", PUBLISHED)
def test_its_size_is_the_published_one(name: str) -> None:
    assert round(size(create(name)) / 2**20, 2) == PUBLISHED[name]


def test_resnet50_with_a2_is_as_large_and_as_costly_as_published() -> None:
    """33.0 million parameters and 6.5 G multiply-adds, with a ResNet of other strides inside its blocks."""
    network = create("a2_resnet50")
    with FlopCounterMode(display=False) as counter:
        network(torch.empty(1, 3, 224, 224, device="meta"))
    assert size(network) == pytest.approx(33.0e6, rel=0.004)
    assert counter.get_total_flops() / 2 == pytest.approx(6.5e9, rel=0.03)


@pytest.mark.parametrize("attention", ["", *(f"{name}_" for name in ATTENTION)])
@pytest.mark.parametrize("network", SMALL)
def test_it_runs(network: str, attention: str) -> None:
    assert create(attention + network)(image(device="meta")).shape == (2, 1000)


@pytest.mark.parametrize("network", SMALL)
def test_every_weight_has_a_gradient(network: str) -> None:
    model = with_values(f"eca_{network}", num_classes=10)
    model(image()).square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert all(
        module.conv.weight.grad.abs().sum() > 0 for module in model.modules() if isinstance(module, ECA)
    )


@pytest.mark.parametrize("network", BLOCKS)
def test_kernel_sizes_are_adaptive_by_default(network: str) -> None:
    by_stage = [PARAMETERS["eca"](channels) for channels in BLOCKS[network]]
    assert kernel_sizes(create(f"eca_{network}")) == each_block(network, *by_stage)


@pytest.mark.parametrize("network", BLOCKS)
def test_kernel_sizes_are_those_of_each_stage(network: str) -> None:
    official = {**resnet.OFFICIAL_K_SIZES, "mobilenet_v2": mobilenetv2.OFFICIAL_K_SIZES}[network]
    expected = each_block(network, *official)
    assert kernel_sizes(create(f"eca_{network}", k_size=official)) == expected
    ns = create(f"eca_ns_{network}", k_size=list(official))
    assert [weight.shape[-1] for name, weight in ns.state_dict().items() if weight.dim() == 3] == expected


def test_one_kernel_size_is_that_of_all_stages() -> None:
    assert kernel_sizes(create("eca_resnet18", k_size=9)) == [9] * 8


@pytest.mark.parametrize("network", [*resnet.OFFICIAL_K_SIZES, "mobilenet_v2"])
def test_functions_make_the_networks_of_their_names(network: str) -> None:
    with torch.device("meta"):
        plain, eca = getattr(models, network)(), getattr(models, f"eca_{network}")(3)
        assert kernel_sizes(plain) == []
        assert kernel_sizes(eca) == [3] * sum(BLOCKS[network].values())
        assert kernel_sizes(getattr(models, network)("eca", k_size=3)) == kernel_sizes(eca)


@pytest.mark.parametrize("attention", [name for name in ATTENTION if name != "se_var1"])
@pytest.mark.parametrize("network", SMALL)
def test_the_networks_own_weights_keep_their_names(network: str, attention: str) -> None:
    plain = {"resnet18": timm.create_model, "mobilenet_v2": torchvision.models.get_model}[network]
    with torch.device("meta"):
        own = list(plain(network).state_dict())
    added = {key for key in create(f"{attention}_{network}").state_dict() if key not in own}
    assert [key for key in create(f"{attention}_{network}").state_dict() if key in own] == own
    parts = {
        ("resnet18", False): "se.",
        ("mobilenet_v2", False): "conv.",
        ("resnet18", True): "_attention.",
        ("mobilenet_v2", True): "_attention.",
    }
    assert added
    assert all(parts[network, attention == "a2"] in key for key in added)


def test_a_resnets_module_is_the_last_thing_before_the_addition() -> None:
    block = models.resnet18("se_var2").eval().layer2[0]
    nn.init.uniform_(block.se.weight)
    x = torch.randn(2, 64, 8, 8)
    inner = block.bn2(block.conv2(block.act1(block.bn1(block.conv1(x)))))
    torch.testing.assert_close(block(x), torch.relu(block.se(inner) + block.downsample(x)))


def test_a_mobilenets_module_is_the_last_thing_before_the_addition() -> None:
    block = models.mobilenet_v2("se_var2").eval().features[5]
    assert isinstance(block.conv[-1], SEVar2)
    assert isinstance(block.conv[-2], nn.BatchNorm2d)
    x = torch.randn(2, 32, 8, 8)
    torch.testing.assert_close(block(x), x + block.conv[-1](block.conv[:-1](x)))


@pytest.mark.parametrize(
    ("network", "names"),
    {
        "resnet18": ["layer2.0", "layer2.1", "layer3.0", "layer3.1"],
        "resnet50": ["layer2.1", "layer2.3", "layer3.1", "layer3.3", "layer3.5"],
        "resnet101": ["layer2.1", "layer2.3", "layer3.6", "layer3.14", "layer3.22"],
        "mobilenet_v2": [f"features.{index}" for index in (4, 6, 8, 10, 13)],
    }.items(),
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a2_stands_behind_blocks(network: str, names: list[str]) -> None:
    model = create(f"a2_{network}")
    assert [name for name, module in model.named_modules() if isinstance(module, A2)] == [
        f"{name}_attention" for name in names
    ]
    for name in names:
        stage, _, block = name.rpartition(".")
        members = [member for member, _ in model.get_submodule(stage).named_children()]
        assert members[members.index(block) + 1] == f"{block}_attention"


@pytest.mark.parametrize("network", SMALL)
def test_a2_put_into_a_network_with_weights_changes_nothing_at_first(network: str) -> None:
    plain, with_a2 = models.create(network).eval(), models.create(f"a2_{network}").eval()
    missing, unexpected = with_a2.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected
    assert all("_attention." in name for name in missing)
    x = image()
    torch.testing.assert_close(with_a2(x), plain(x))
