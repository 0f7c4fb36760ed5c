"""The twins of ECA networks are the networks that their names say, with weights that tell networks apart."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("timm")

from benchmarks.__main__ import main
from benchmarks.network import weights
from benchmarks.shared import twins
from benchmarks.shared.networks import attention

CPU = torch.device("cpu")


def clock(step: Callable[[], Any]) -> float:
    """One on which every step takes a microsecond."""
    step()
    return 1.0


@pytest.mark.parametrize("family", [name for name in twins.FAMILIES if name[-3:] not in ("101", "152")])
def test_twins_under_a_name_of_timms_are_timms_networks(family: str) -> None:
    """Or torchvision's, or ours. The deepest are the blocks of another one again."""
    import timm
    import torchvision

    from eca_triton import models

    assert attention(twins.build(family, "eca"))
    for kind in ("plain", "se", "cbam"):
        model, name = twins.build(family, kind), twins.model_name(family, kind)
        assert not attention(model)
        known = {**dict.fromkeys(models.names(), models.create)}
        known |= {**dict.fromkeys(torchvision.models.list_models(), torchvision.models.get_model)}
        known |= {**dict.fromkeys(timm.list_models(), timm.create_model)}
        if name in known:
            with torch.device("meta"):
                theirs = known[name](name)
            here, there = (
                sorted(map(tuple, (w.shape for w in each.parameters()))) for each in (model, theirs)
            )
            assert here == there
        else:
            assert set(name) & {"+", "-"}, "a name that nobody has shows that"


def test_a_twin_has_its_attention_of_the_width_of_each_eca() -> None:
    se: Any = twins.build("ecaresnet26t", "se")
    assert [block.se.fc1.in_channels for block in se.layer4] == [2048, 2048]
    assert se.layer4[0].se.fc1.out_channels == 128
    cbam: Any = twins.build("ecaresnet26t", "cbam")
    assert [block.se.channel.fc2.out_channels for block in cbam.layer4] == [2048, 2048]


@pytest.mark.parametrize(
    ("family", "taps"),
    [
        ("eca_resnet50", [3] * 3 + [5] * 4 + [5] * 6 + [7] * 3),
        ("eca_mobilenet_v2", [1] * 10 + [3] * 7),
    ],
)
def test_the_papers_networks_have_the_taps_of_the_authors(family: str, taps: list[int]) -> None:
    model: Any = twins.build(family, "eca")
    found = [model.get_submodule(path).conv.kernel_size[0] for path in attention(model)]
    assert found == taps


def test_no_branch_is_silent() -> None:
    """timm's last batch norm of a block starts with the weight 0, before which anything agrees."""
    model = weights.fill(twins.build("ecaresnet26t", "eca"), CPU)
    assert all(weight.abs().max() > 0 for weight in model.parameters())
    assert all(torch.isfinite(each).all() for each in model.state_dict().values())


@pytest.mark.parametrize("family", ["ecaresnet26t", "eca_resnet18"])
@pytest.mark.parametrize("kind", ["eca", "se", "cbam"])
def test_gates_vary(family: str, kind: str) -> None:
    """Those of CBAM by channel, then by position."""
    gates: list[Tensor] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> None:
        gates.append((out / inputs[0])[inputs[0] != 0])

    images = torch.randn(4, 3, 64, 64)
    model = weights.vary_gates(weights.fill(twins.build(family, kind), CPU), images)
    for module in model.modules():
        if type(module).__name__ in {"ECA", "EcaModule", "SE", "SEModule", "ChannelAttn", "SpatialAttn"}:
            module.register_forward_hook(note)
    with torch.no_grad():
        model(images)
    assert len(gates) == 8 * (1 + (kind == "cbam"))
    assert all(0.1 < each.std() < 0.4 for each in gates), [f"{each.std():.2f}" for each in gates]


def test_a_training_step_of_a_real_network_agrees_with_itself(tmp_path: Path) -> None:
    """With dropout it would not."""
    what = ["--networks", "eca_mobilenet_v2", "--size", "32", "--batch", "4", "--dtype", "fp32"]
    what += ["--kinds", "eca", "cbam", "--directions", "training", "--layouts", "channels_last"]
    how = ["--contenders", "eager", "--repeats", "1", "--out", str(tmp_path)]
    assert main(["network", *what, *how], device=CPU, clock=clock) == 0
    (row,) = json.loads((tmp_path / "network.json").read_text())["rows"]
    assert set(row["results"]) == {"eca/eager", "cbam/eager"}
