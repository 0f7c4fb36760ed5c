"""Checkpoints as people have them, made on the spot: each loads whole, with whatever is around it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
import torchvision
from official_checkpoints import TAPS, assert_same, image, official, trained, training_dict
from torch import nn

from eca_triton.models import create, eca_mobilenet_v2, eca_resnet18, load_checkpoint, load_into
from eca_triton.models.attention import ATTENTION
from eca_triton.models.resnet import resnet

MOBILE_TAPS = (1, 1, 1, 1, 3, 3, 3)

CONTENTS = {
    "bare": lambda state: state,
    "module": lambda state: {f"module.{name}": value for name, value in state.items()},
    "compiled": lambda state: {f"_orig_mod.module.{name}": value for name, value in state.items()},
    "official": training_dict,
    "timm": lambda state: training_dict(
        {name: value + 1 for name, value in state.items()},
        state_dict_ema=state,
        args=argparse.Namespace(model="ecaresnet"),
    ),
    "model": lambda state: {"model": state, "epoch": 1},
    "model_state": lambda state: {"model_state": state},
    "before counters": lambda state: {
        name: value for name, value in state.items() if "num_batches" not in name
    },
}


@pytest.mark.parametrize("content", CONTENTS)
def test_whatever_is_around_a_state_dict_is_taken_off(
    source: nn.Module, content: str, tmp_path: Path
) -> None:
    file = tmp_path / "eca_resnet18_k3577.pth.tar"
    torch.save(CONTENTS[content](official(source)), file)
    model = load_checkpoint(file)
    assert model.training
    if content == "before counters":
        assert model.bn1.num_batches_tracked == 0
        for name, buffer in source.named_buffers():
            if name.endswith("num_batches_tracked"):
                model.get_buffer(name).copy_(buffer)
    assert_same(model, source)


def test_files_of_old_releases_and_of_safetensors_load(source: nn.Module, tmp_path: Path) -> None:
    old, new = tmp_path / "old.pth", tmp_path / "new.safetensors"
    torch.save(training_dict(official(source)), old, _use_new_zipfile_serialization=False)
    safetensors.torch.save_file(official(source), new)
    assert_same(load_checkpoint(str(old)), source)
    assert_same(load_checkpoint(new), source)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("eca_resnet50", {"k_size": (3, 5, 5, 7)}),
        ("eca_mobilenet_v2", {"k_size": MOBILE_TAPS, "num_classes": 7}),
        ("eca_ns_resnet18", {"k_size": TAPS, "in_chans": 1}),
        ("mobilenet_v2", {}),
    ],
)
def test_network_attention_taps_and_classes_are_told_from_the_tensors(
    name: str, arguments: dict[str, Any]
) -> None:
    wanted = trained(create(name, **arguments))
    got = load_checkpoint(official(wanted))
    assert str(got) == str(wanted)
    got.eval()
    x = image()[:, : arguments.get("in_chans", 3)]
    with torch.no_grad():
        assert torch.equal(got(x), wanted(x))


@pytest.mark.parametrize("network", ["resnet18", "resnet50", "mobilenet_v2"])
@pytest.mark.parametrize("attention", sorted(set(ATTENTION) - {"se_var1"}))
def test_checkpoints_of_every_attention_find_their_network(attention: str, network: str) -> None:
    with torch.device("meta"):
        wanted = create(f"{attention}_{network}", num_classes=10)
        assert str(load_checkpoint(wanted.state_dict())) == str(wanted)
        assert str(load_checkpoint(wanted.state_dict(), f"{attention}_{network}")) == str(wanted)


def test_an_attention_without_tensors_is_named() -> None:
    with torch.device("meta"):
        state = create("se_var1_resnet18").state_dict()
        assert "SEVar1" in str(load_checkpoint(state, "se_var1_resnet18"))
        assert "SEVar1" not in str(load_checkpoint(state))


TIMM = {
    "ecaresnet26t": "resnet26t",
    "ecaresnet50t": "resnet50t",
    "ecaresnet50d": "resnet50d",
    "ecaresnet101d": "resnet101d",
    "ecaresnet200d": "resnet200d",
    "ecaresnet269d": None,
    "ecaresnetlight": None,
}
"""Which of `resnet` they are with "eca"; None: none, they are timm's own."""


@pytest.mark.parametrize("name", TIMM)
def test_timm_s_networks_are_told_from_their_tensors(name: str) -> None:
    with torch.device("meta"):
        theirs = timm.create_model(name)
        plain = TIMM[name]
        wanted = resnet(plain, "eca", k_size=(5, 5, 5, 7)) if plain else theirs
        assert str(load_checkpoint(theirs.state_dict())) == str(wanted)


def test_timm_s_weights_give_timm_s_results() -> None:
    theirs = trained(timm.create_model("ecaresnet26t", num_classes=10))
    assert_same(load_checkpoint(theirs.state_dict(), "ecaresnet26t"), theirs)
    with torch.no_grad():
        torch.testing.assert_close(load_checkpoint(theirs.state_dict()).eval()(image()), theirs(image()))


def test_a_network_that_its_blocks_do_not_tell_is_named() -> None:
    with torch.device("meta"):
        theirs = timm.create_model("ecaresnet50d_pruned")
        with pytest.raises(
            ValueError, match=r"blocks are those of resnet\('resnet50d', 'eca', .*its sizes are"
        ):
            load_checkpoint(theirs.state_dict())
        assert str(load_checkpoint(theirs.state_dict(), "ecaresnet50d_pruned")) == str(theirs)
        other = timm.create_model("eca_resnet33ts", num_classes=3)
        with pytest.raises(
            ValueError, match=r"no network here has these tensors: stem.*network='ecaresnet50t'"
        ):
            load_checkpoint(other.state_dict())
        assert load_checkpoint(other.state_dict(), "eca_resnet33ts").num_classes == 3
        halved = eca_mobilenet_v2(width_mult=0.5)
        assert str(load_checkpoint(halved.state_dict(), width_mult=0.5)) == str(halved)


@pytest.mark.parametrize(
    ("attention", "network", "tensors"),
    [
        ("eca", "resnet50", 16),
        ("eca", "mobilenet_v2", 17),
        ("a2", "resnet18", 16),
        ("a2", "mobilenet_v2", 20),
    ],
)
def test_weights_of_torchvision_go_into_the_trunk(attention: str, network: str, tensors: int) -> None:
    plain = getattr(torchvision.models, network)().state_dict()
    model = create(f"{attention}_{network}")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fresh = load_into(model, plain)
    assert fresh == [name for name in before if name not in plain]
    assert len(fresh) == tensors
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name] if name in fresh else plain[name])


def test_the_plain_network_of_torchvision_computes_the_same() -> None:
    plain = trained(torchvision.models.resnet18())
    model = load_checkpoint(plain.state_dict(), "resnet18").eval()
    with torch.no_grad():
        torch.testing.assert_close(model(image()), plain(image()))


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile], ids=["data parallel", "compiled"])
def test_a_wrapped_network_is_loaded_into(source: nn.Module, wrap: Any) -> None:
    model = eca_resnet18(k_size=TAPS, num_classes=10)
    assert load_into(wrap(model), official(source)) == []
    assert_same(model, source)


@pytest.mark.parametrize("make", [eca_resnet18, eca_mobilenet_v2])
def test_features_take_what_they_have(make: Any) -> None:
    whole = trained(make())
    state = whole.state_dict()
    backbone = load_checkpoint(state, features_only=True).eval()
    first = make(features_only=True, out_indices=(0, 1)).eval()
    assert load_into(first, state) == []
    with torch.no_grad():
        *_, last = backbone(image())
        last_of_whole = (
            whole.forward_features(image()) if make is eca_resnet18 else whole.features[:-1](image())
        )
        assert torch.equal(last, last_of_whole)
        assert all(torch.equal(a, b) for a, b in zip(first(image()), backbone(image()), strict=False))


def test_another_number_of_classes_means_a_new_classifier(source: nn.Module) -> None:
    model = load_checkpoint(official(source), num_classes=3)
    assert model.fc.weight.shape == (3, 512)
    assert torch.equal(model.layer4[1].se.conv.weight, source.layer4[1].se.conv.weight)
    assert load_into(model, official(source), head=False) == ["fc.weight", "fc.bias"]
    assert load_checkpoint(official(source), num_classes=0)(image()).shape == (2, 512)
    headless = eca_resnet18(k_size=TAPS, num_classes=0)
    assert load_into(headless, official(source), head=False) == []
    assert load_checkpoint(headless.state_dict())(image()).shape == (2, 512)
