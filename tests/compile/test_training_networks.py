"""Five training steps of timm's networks, compiled and eager, each step against the same one in float64.

Training amplifies every difference, and one ReLU that rounding opens parts two correct runs for good, by a
distance that says nothing about the code. So each step starts from one state, and the step in float64 is told
which elements the ReLUs of the run that it judges let through; that these are the right ones is asserted
apart. The networks are timm's own classes, made smaller, and without the maximum pooling of the stem, whose
choice rounding could change too.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from given_relus import doubt, forget, remembering, tell, told
from harness import Lowering
from torch import Tensor, nn

from eca_triton.compile.backend import inspect

STEPS = 5
ULPS = 4  # where eager happens to be exact in all steps, as in a loss
EPS = torch.finfo(torch.float32).eps
# The last batch norm or gain of a block, and the classifier, are far from 0: else little passes the sites.
RESNET = {
    "layers": (1, 1, 1, 2), "channels": (16, 32, 64, 64), "zero_init_last": False, "replace_stem_pool": True,
}  # fmt: skip
NFNET = {"depths": (1, 1, 1, 2), "channels": (64, 64, 128, 128), "group_size": 16, "num_features": 128}
# The network: how it is made smaller, its classifier's deviation, the learning rate, the plan of its sites.
NETWORKS: dict[str, tuple[dict[str, Any], float, float, str]] = {
    "ecaresnet26t": (RESNET, 0.03, 0.01, "batch_norm"),
    "eca_nfnet_l0": (NFNET, 0.3, 0.03, "pool"),
}


def build(name: str) -> nn.Module:
    smaller, deviation, *_ = NETWORKS[name]
    network = timm.create_model(name, num_classes=10, **smaller).train()
    nn.init.normal_(network.get_classifier().weight, std=deviation)
    for key, parameter in network.named_parameters():
        if key.endswith(".gain"):
            nn.init.ones_(parameter)
    return remembering(network)


def step(
    network: nn.Module, run: Callable[[Tensor], Tensor], images: Tensor, classes: Tensor
) -> dict[str, Tensor]:
    """The loss, the gradients and the buffers after one step without its update."""
    forget(network)
    network.zero_grad()
    loss = F.cross_entropy(run(images), classes)
    loss.backward()
    gradients = {f"gradient of {name}": parameter.grad for name, parameter in network.named_parameters()}
    buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
    return {"loss": loss.detach(), **gradients, **buffers}


@pytest.mark.parametrize("name", NETWORKS)
def test_each_of_five_steps_is_as_exact_as_eager_mode(name: str) -> None:
    torch.manual_seed(0)
    *_, rate, plan = NETWORKS[name]
    network = build(name)
    twin, exact = copy.deepcopy(network), told(copy.deepcopy(network).double())
    lowering = Lowering("aot_eager", device="cuda")
    runs = {network: lowering.compile(network), twin: twin}
    optimizer = torch.optim.SGD(network.parameters(), lr=rate, momentum=0.9)
    errors: dict[str, list[tuple[float, ...]]] = {}
    for number in range(STEPS):
        images, classes = torch.randn(4, 3, 64, 64), torch.randint(10, (4,))
        state = copy.deepcopy(network.state_dict())
        twin.load_state_dict(state)
        found: dict[str, list[float]] = {}
        for judged, run in runs.items():
            got = step(judged, run, images, classes)
            exact.load_state_dict(state)
            tell(exact, judged)
            truth = step(exact, exact, images.double(), classes)
            for key, want in truth.items():
                assert want.is_floating_point() or got[key] == want == number + 1, key
                found.setdefault(key, []).append((got[key] - want).abs().max().item())
        for key, (error, native_error) in found.items():
            errors.setdefault(key, []).append((error, native_error, truth[key].abs().max().item()))
        optimizer.step()

    assert [record.decision.plan for record in lowering.records] == [plan] * 5
    assert lowering.calls(torch.conv1d) == []
    assert doubt(exact) < 1e-5
    for key, steps in errors.items():
        error, native_error, largest = map(max, zip(*steps, strict=True))
        assert error <= 2 * native_error + ULPS * EPS * largest, key


def test_every_site_of_the_whole_ecaresnet26t_goes_with_its_batch_norm() -> None:
    """On the meta device: only planned."""
    with torch.device("meta"):
        network, images = timm.create_model("ecaresnet26t").train(), torch.empty(64, 3, 224, 224)
    records = inspect(network, (images,))
    assert [record.decision.plan for record in records] == ["batch_norm"] * 8
    assert all(record.decision.traffic_after < record.decision.traffic_before for record in records)
