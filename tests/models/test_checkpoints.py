"""Checkpoints as people have them, made on the spot: each loads whole, or the error says what to change."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
import torchvision
from torch import nn

from eca_triton.models import (
    create,
    eca_mobilenet_v2,
    eca_resnet18,
    eca_resnet50,
    load_checkpoint,
    load_into,
    resnet18,
)
from eca_triton.models.attention import ATTENTION
from eca_triton.models.resnet import resnet

TAPS = (3, 5, 7, 7)
MOBILE_TAPS = (1, 1, 1, 1, 3, 3, 3)


def trained(model: nn.Module) -> nn.Module:
    """With statistics in its batch norms that are not the initial ones, in evaluation mode."""
    for name, buffer in model.named_buffers():
        if buffer.is_floating_point():
            nn.init.uniform_(buffer, 0.5, 1.5)
        else:
            buffer.fill_(len(name))
    return model.eval()


def official(model: nn.Module) -> dict[str, torch.Tensor]:
    """Under the names of the official code."""
    return {name.replace(".se.", ".eca."): value for name, value in model.state_dict().items()}


def image(seed: int = 0) -> torch.Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def assert_same(got: nn.Module, wanted: nn.Module) -> None:
    left, right = got.state_dict(), wanted.state_dict()
    assert list(left) == list(right)
    assert all(torch.equal(left[name], right[name]) for name in right)
    with torch.no_grad():
        assert torch.equal(got.eval()(image()), wanted(image()))


@pytest.fixture(scope="module")
def source() -> nn.Module:
    torch.manual_seed(0)
    return trained(eca_resnet18(k_size=TAPS, num_classes=10))


def training_dict(state: dict[str, Any], **more: Any) -> dict[str, Any]:
    """What the official main.py saves."""
    parameter = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([parameter], 0.1, momentum=0.9)
    parameter.sum().backward()
    optimizer.step()
    return {
        "epoch": 100,
        "arch": "eca_resnet18",
        "state_dict": {f"module.{name}": value for name, value in state.items()},
        "best_prec1": torch.tensor([77.5]),
        "optimizer": optimizer.state_dict(),
        **more,
    }


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
    "ecaresnet269d": "ecaresnet269d",
    "ecaresnetlight": "ecaresnetlight",
}


@pytest.mark.parametrize("name", TIMM)
def test_timm_s_networks_are_told_from_their_tensors(name: str) -> None:
    with torch.device("meta"):
        state = timm.create_model(name).state_dict()
        ours = resnet(TIMM[name], "eca", k_size=(5, 5, 5, 7))
        assert str(load_checkpoint(state)) == str(ours)


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


@pytest.mark.parametrize("network", ["resnet50", "mobilenet_v2"])
def test_weights_of_torchvision_go_into_the_trunk(network: str) -> None:
    plain = getattr(torchvision.models, network)()
    model = create(f"eca_{network}")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fresh = load_into(model, plain.state_dict())
    assert fresh == [name for name in before if name not in plain.state_dict()]
    assert len(fresh) == {"resnet50": 16, "mobilenet_v2": 17}[network]
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name] if name in fresh else plain.state_dict()[name])


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


class Harm:
    """Unpickled, it writes a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.file,)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_no_code_of_a_file_runs(tmp_path: Path, zipped: bool) -> None:
    file = tmp_path / "harm.pth"
    content = {"state_dict": Harm(tmp_path / "harmed")}
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=r"holds \S+, not only tensors[\s\S]*Never set weights_only=False"):
        load_checkpoint(file)
    assert not (tmp_path / "harmed").exists()
    torch.load(file, weights_only=False)
    assert (tmp_path / "harmed").exists()  # the file would have done it


def test_whole_pickled_networks_are_refused(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "linear.pth")
    with pytest.raises(ValueError, match=r"holds torch\.nn\.modules\.linear\.Linear.*Ask for a file of"):
        load_checkpoint(tmp_path / "linear.pth")


@pytest.mark.parametrize("name", ["page.pth", "page.safetensors"])
@pytest.mark.parametrize("content", [b"<!DOCTYPE html>", b"hello world", b""], ids=["html", "text", "empty"])
def test_files_that_are_no_checkpoints(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(
        ValueError, match=rf"{re.escape(name)} is no checkpoint of torch\.save.*download it again"
    ):
        load_checkpoint(tmp_path / name)


def test_a_half_downloaded_file(source: nn.Module, tmp_path: Path) -> None:
    file = tmp_path / "half.pth"
    torch.save(source.state_dict(), file)
    file.write_bytes(file.read_bytes()[:100_000])
    with pytest.raises(ValueError, match="or it is damaged"):
        load_checkpoint(file)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.pth"):
        load_checkpoint(tmp_path / "none.pth")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"net": {"conv1.weight": torch.ones(1)}, "epoch": 1},
            r"no tensors but 'net', 'epoch', and no state dict",
        ),
        ({}, "no tensors but nothing"),
        ({"state_dict": {}}, "no tensors but nothing"),
        ({"weight": torch.ones(1)}, "no network here has these tensors: weight"),
    ],
    ids=["unknown wrapper", "empty", "empty state dict", "another network"],
)
def test_mappings_that_are_no_checkpoints(content: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_checkpoint(content)


def test_what_is_neither_path_nor_mapping(source: nn.Module, tmp_path: Path) -> None:
    torch.save([1], tmp_path / "list.pth")
    for wrong in (source, None, tmp_path / "list.pth"):
        with pytest.raises(TypeError, match=r"a path, or a mapping .* got (ResNet|NoneType|list)"):
            load_checkpoint(wrong)


def test_eca_resnet50_reports_nothing_when_all_is_loaded() -> None:
    with torch.device("meta"):
        assert load_into(eca_resnet50(k_size=3), official(eca_resnet50(k_size=3))) == []
