"""A checkpoint that does not fit: the error names the layers, both shapes, and what would fit."""

from __future__ import annotations

import random

import pytest
import timm
import torch
from official_checkpoints import official
from torch import nn

from eca_triton.models import create, eca_resnet18, load_checkpoint, load_into, resnet18


def test_wrong_taps_are_named_and_nothing_is_loaded(source: nn.Module) -> None:
    model = eca_resnet18(k_size=3, num_classes=10)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match="does not fit") as error:
        load_into(model, official(source))
    assert str(error.value) == (
        "the checkpoint does not fit:\n"
        "  layer2.0.se.conv.weight: the checkpoint has [1, 1, 5], the network [1, 1, 3]\n"
        "  layer2.1.se.conv.weight: the checkpoint has [1, 1, 5], the network [1, 1, 3]\n"
        "  layer3.0.se.conv.weight: the checkpoint has [1, 1, 7], the network [1, 1, 3]\n"
        "  layer3.1.se.conv.weight: the checkpoint has [1, 1, 7], the network [1, 1, 3]\n"
        "  layer4.0.se.conv.weight: the checkpoint has [1, 1, 7], the network [1, 1, 3]\n"
        "  and 1 more\n"
        "Build it with eca_resnet18(k_size=(3, 5, 7, 7), num_classes=10), as load_checkpoint(source) does."
    )
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


FIT = {
    "other depth": (
        lambda: resnet18(),
        lambda: create("resnet34").state_dict(),
        r"layer1\.2\.conv1\.weight: the checkpoint has \[64, 64, 3, 3\], the network none"
        r"[\s\S]*Build it with resnet34\(\),",
    ),
    "no attention wanted": (
        lambda: resnet18(),
        lambda: create("se_resnet18").state_dict(),
        r"layer1\.0\.se\.fc1\.weight: .* the network none[\s\S]*Build it with create\('se_resnet18'\),",
    ),
    "attention missing in one block": (
        lambda: eca_resnet18(k_size=3),
        lambda: {
            name: value
            for name, value in eca_resnet18(k_size=3).state_dict().items()
            if "layer1.1.se" not in name
        },
        r"layer1\.1\.se\.conv\.weight: the checkpoint has none, the network \[1, 1, 3\]",
    ),
    "other classes": (
        lambda: resnet18(num_classes=10),
        lambda: resnet18().state_dict(),
        r"fc\.weight: the checkpoint has \[1000, 512\], the network \[10, 512\]\n.*\n"
        r"The classifier alone differs: num_classes=1000 makes one that fits, load_into\(\.\.\., head",
    ),
    "other attention": (
        lambda: create("eca_ns_mobilenet_v2", k_size=3),
        lambda: create("eca_mobilenet_v2", k_size=3).state_dict(),
        r"features\.1\.conv\.3\.conv\.weight: the checkpoint has \[1, 1, 3\], the network \[16, 1, 3\]"
        r"[\s\S]*Build it with eca_mobilenet_v2\(k_size=\(3, 3, 3, 3, 3, 3, 3\)\)",
    ),
    "other input": (
        lambda: resnet18(),
        lambda: resnet18(in_chans=1).state_dict(),
        r"conv1\.weight: .*\[64, 1, 7, 7\], .*\[64, 3, 7, 7\]\nBuild it with resnet18\(in_chans=1\)",
    ),
    "no network of ours": (
        lambda: resnet18(),
        lambda: timm.create_model("seresnet18").state_dict(),
        r"Build the network that it was saved from: no attention here has, .*fc1\.bias \[8\]",
    ),
}


@pytest.mark.parametrize("case", FIT)
def test_what_does_not_fit_is_named_with_both_shapes_and_what_would(case: str) -> None:
    make, state, message = FIT[case]
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        load_into(make(), state())


def test_a_checkpoint_of_another_network_than_the_named_one(source: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"of eca_resnet18\(k_size=.*\), not of eca_resnet50$"):
        load_checkpoint(official(source), "eca_resnet50")
    with torch.device("meta"):
        plain = resnet18().state_dict()
    with pytest.raises(
        ValueError,
        match=r"of resnet18\(\), not of eca_resnet18; load_into\(create\('eca_resnet18'\), source\)",
    ):
        load_checkpoint(plain, "eca_resnet18")
    with pytest.raises(ValueError, match="no network 'eca_resnet81'; did you mean eca_resnet18"):
        load_checkpoint(official(source), "eca_resnet81")


def test_taps_that_no_network_can_have(source: nn.Module) -> None:
    even = {**official(source), "layer2.0.eca.conv.weight": torch.ones(1, 1, 4)}
    for load in (load_checkpoint, lambda state: load_into(eca_resnet18(), state)):
        with pytest.raises(
            ValueError,
            match=r"layer2\.0\.se\.conv\.weight: .*\[1, 1, 4\], an even number of taps.*odd k_size",
        ):
            load(even)
    mixed = {**official(source), "layer2.1.eca.conv.weight": torch.ones(1, 1, 3)}
    with pytest.raises(
        ValueError,
        match=r"one number of taps, got in stage 2: 5 in layer2\.0\.se.*, 3 in layer2\.1\.se.*load_into",
    ):
        load_checkpoint(mixed)


@pytest.mark.parametrize("name", ["eca_resnet18", "a2_resnet18", "cbam_mobilenet_v2"])
def test_any_part_of_a_checkpoint_is_refused_in_words(name: str) -> None:
    draw = random.Random(0)
    with torch.device("meta"):
        model = create(name)
        state = model.state_dict()
        for _ in range(10):
            part = {key: state[key] for key in draw.sample(list(state), draw.randrange(1, len(state) // 2))}
            part[draw.choice(list(part))] = torch.empty(())
            with pytest.raises(ValueError, match=r"checkpoint does not fit|no network|no attention|of taps"):
                load_checkpoint(part)
            with pytest.raises(ValueError, match=r"the checkpoint has none, the network \["):
                load_into(model, part)
