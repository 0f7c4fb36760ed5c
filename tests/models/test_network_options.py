"""Networks with other outputs, sizes, devices and attentions; copies; and what is wrong with a call."""

import copy
import io
import pickle
from collections.abc import Callable
from functools import partial

import pytest
import torch
from paper_networks import SMALL, create, image, kernel_sizes, with_values
from torch import nn

from eca_triton import ECA, models
from eca_triton.models.attention import A2, ATTENTION
from eca_triton.models.resnet import resnet


@pytest.mark.parametrize("attention", ["eca", "a2"])
@pytest.mark.parametrize(
    ("network", "channels"),
    [("resnet50", [64, 256, 512, 1024, 2048]), ("mobilenet_v2", [16, 24, 32, 96, 320])],
    ids=["resnet50", "mobilenet_v2"],
)
def test_features_are_the_last_maps_of_each_stride(network: str, channels: list[int], attention: str) -> None:
    extractor = create(f"{attention}_{network}", features_only=True)
    assert [tuple(y.shape) for y in extractor(image(device="meta"))] == [
        (2, c, 32 >> i, 32 >> i) for i, c in enumerate(channels)
    ]
    assert extractor.feature_info.channels() == channels
    assert extractor.feature_info.reduction() == [2, 4, 8, 16, 32]
    chosen = create(f"{attention}_{network}", features_only=True, out_indices=(-1, 2))
    assert chosen.feature_info.channels() == [channels[2], channels[4]]


@pytest.mark.parametrize("attention", ["eca", "a2"])
@pytest.mark.parametrize("network", SMALL)
def test_features_are_those_of_the_network(network: str, attention: str) -> None:
    model = with_values(f"{attention}_{network}").eval()
    for module in model.modules():
        if isinstance(module, A2):
            nn.init.normal_(module.expand.weight)
    extractor = with_values(f"{attention}_{network}", features_only=True).eval()
    weights = model.state_dict()
    extractor.load_state_dict(
        {key: weights[key.replace("features_", "features.")] for key in extractor.state_dict()}
    )
    x, found = image(), {}
    keep = lambda key: lambda module, inputs, output: found.update({key: output})  # noqa: E731 (a hook a stage)
    ends = {"resnet18": ["act1", "layer1", "layer2", "layer3", "layer4"]}
    tapped = ends.get(network, [f"features.{index}" for index in (1, 3, 6, 13, 17)])
    for name in tapped:
        behind = f"{name}_attention"
        there = behind if behind in dict(model.named_modules()) else name
        model.get_submodule(there).register_forward_hook(keep(name))
    model(x)
    for name, map_ in zip(tapped, extractor(x), strict=True):
        torch.testing.assert_close(map_, found[name])


def test_a_stem_and_stages_can_be_changed() -> None:
    dilated = create("eca_resnet50", features_only=True, output_stride=8, in_chans=1)
    maps = dilated(torch.empty(1, 1, 64, 64, device="meta"))
    assert [y.shape[-1] for y in maps] == [32, 16, 8, 8, 8]
    assert [name for name, _ in create("a2_resnet50", output_stride=8).layer3.named_children()] == [
        name for name, _ in create("a2_resnet50").layer3.named_children()
    ]

    half = create("eca_mobilenet_v2", width_mult=0.5, features_only=True)
    assert (
        [y.shape[1] for y in half(image(device="meta"))]
        == half.feature_info.channels()
        == [8, 16, 16, 48, 160]
    )

    setting = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 128, 1, 2)]
    short = create("eca_mobilenet_v2", inverted_residual_setting=setting, k_size=(1, 3, 5))
    assert kernel_sizes(short) == [1, 3, 3, 5]
    maps = create("a2_mobilenet_v2", inverted_residual_setting=setting, features_only=True)(
        image(device="meta")
    )
    assert [y.shape[1] for y in maps] == [16, 24, 128]


@pytest.mark.parametrize(("network", "width"), [("resnet18", 512), ("mobilenet_v2", 1280)])
def test_classes_are_counted_and_none_leaves_pooled_features(network: str, width: int) -> None:
    assert create(f"eca_{network}", num_classes=10)(image(device="meta")).shape == (2, 10)
    assert create(f"eca_{network}", num_classes=0)(image(device="meta")).shape == (2, width)


@pytest.mark.parametrize("attention", ["eca", "a2"])
def test_modules_are_made_on_the_networks_device_and_in_its_dtype(attention: str) -> None:
    model = models.resnet18(attention, device="meta", dtype=torch.bfloat16)
    assert {(p.device.type, p.dtype) for p in model.parameters()} == {("meta", torch.bfloat16)}


@pytest.mark.parametrize("features_only", [False, True], ids=["classifier", "features"])
@pytest.mark.parametrize("name", ["eca_resnet18", "a2_resnet18", "cbam_mobilenet_v2"])
def test_copies_and_pickles_compute_the_same(name: str, features_only: bool) -> None:
    model = with_values(name, features_only=features_only).eval()
    x = image(32)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(twin(x), model(x), rtol=0, atol=0)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    again = with_values(name, features_only=features_only).eval()
    again.load_state_dict(torch.load(file, weights_only=True))
    torch.testing.assert_close(again(x), model(x), rtol=0, atol=0)


def test_any_function_of_channels_is_an_attention() -> None:
    with torch.device("meta"):
        model = models.resnet18(partial(ATTENTION["se"], reduction=4))
        assert [block.se.fc1.out_channels for stage in (model.layer1, model.layer4) for block in stage] == [
            16, 16, 128, 128,
        ]  # fmt: skip
        model = models.mobilenet_v2(lambda channels: nn.GroupNorm(2, channels))
    assert sum(isinstance(module, nn.GroupNorm) for module in model.modules()) == 17


class BehindUnits(nn.Conv2d):
    """An attention of one's own that says where it stands."""

    behind = {4: 1, 32: 9}  # noqa: RUF012 (as a user writes it)

    def __init__(self, channels: int, kernel: int = 1) -> None:
        super().__init__(channels, channels, kernel, padding=kernel // 2)


@pytest.mark.parametrize("make", [BehindUnits, partial(BehindUnits, kernel=3)], ids=["class", "partial"])
def test_an_attention_may_say_behind_how_many_blocks_it_stands(make: Callable[[int], nn.Module]) -> None:
    with torch.device("meta"):
        model = models.resnet50(make)
    assert [name for name, module in model.named_modules() if isinstance(module, BehindUnits)] == [
        "layer1.2_attention", "layer4.0_attention", "layer4.1_attention", "layer4.2_attention",
    ]  # fmt: skip
    assert all(block.se is None for block in model.layer2)


WRONG: dict[str, tuple[Callable[[], nn.Module], type[Exception]]] = {
    "no network 'eca_resnet51'; did you mean .*eca_resnet50": (
        lambda: models.create("eca_resnet51"),
        ValueError,
    ),
    "no network '!'$": (lambda: models.create("!"), ValueError),
    "unknown attention 'ecu'; choose eca, eca_ns, se, .*a2": (lambda: models.resnet18("ecu"), ValueError),
    "k_size is for eca and eca_ns, got 3 with attention 'se'": (
        lambda: models.resnet18("se", k_size=3),
        ValueError,
    ),
    "k_size is for eca and eca_ns, got 3 with attention None": (
        lambda: models.resnet18(k_size=3),
        ValueError,
    ),
    "k_size is for eca and eca_ns, got 3 with attention <class": (
        lambda: models.resnet18(ECA, k_size=3),
        ValueError,
    ),
    r"one number or one per stage \(4\), got \[3, 5\]": (
        lambda: models.resnet18("eca", k_size=(3, 5)),
        ValueError,
    ),
    r"one number or one per stage \(7\), got \[1, 3\]": (
        lambda: models.mobilenet_v2("eca", k_size=(1, 3)),
        ValueError,
    ),
    "k_size must be odd and positive, got 4": (lambda: models.resnet18("eca", k_size=4), ValueError),
    "attention must return an nn.Module, got int": (
        lambda: models.resnet18(lambda channels: channels),
        TypeError,
    ),
    "output_stride must be 8, 16 or 32, got 4": (lambda: models.resnet18(output_stride=4), ValueError),
    "timm has no ResNet 'resnet51'; did you mean .*resnet50": (lambda: resnet("resnet51"), ValueError),
    "timm has no ResNet 'vit_tiny_patch16_224'": (lambda: resnet("vit_tiny_patch16_224"), ValueError),
    "'seresnet50' has attention of its own": (lambda: resnet("seresnet50", "eca"), ValueError),
    r"out_indices must be different numbers from 0 to 4, got \(1, 5\)": (
        lambda: models.resnet18(features_only=True, out_indices=(1, 5)),
        ValueError,
    ),
    r"out_indices must be different numbers from 0 to 4, got \(4, -1\)": (
        lambda: models.mobilenet_v2(features_only=True, out_indices=(4, -1)),
        ValueError,
    ),
}


@pytest.mark.parametrize("message", WRONG)
def test_what_is_wrong_is_named(message: str) -> None:
    call, error = WRONG[message]
    with torch.device("meta"), pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("name", ["resnet50d", "resnet50_gn", "wide_resnet50_2", "resnet26t.ra2_in1k"])
def test_other_resnets_of_timm_take_attention_too(name: str) -> None:
    with torch.device("meta"):
        model = resnet(name, "eca")
    assert model(image(device="meta")).shape == (2, 1000)
    blocks = [block for stage in (model.layer1, model.layer2, model.layer3, model.layer4) for block in stage]
    assert len(kernel_sizes(model)) == len(blocks)
