"""Detectors on ECA-ResNets: what they are built of, what trains, their parameters in the official table."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, MaskRCNN, RetinaNet
from torchvision.ops import FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from benchmarks.__main__ import main
from benchmarks.paper import detectors
from eca_triton import ECA, models
from eca_triton.models.detection import OFFICIAL_DETECTOR_K_SIZES, LastLevelSubsample, detector, resnet_fpn

CLASSES = {"fasterrcnn": FasterRCNN, "maskrcnn": MaskRCNN, "retinanet": RetinaNet}
LEVELS = {
    "fasterrcnn": ["0", "1", "2", "3", "pool"],
    "maskrcnn": ["0", "1", "2", "3", "pool"],
    "retinanet": ["0", "1", "2", "p6", "p7"],
}
BLOCKS = {"resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3)}
NAMES = pytest.mark.parametrize("name", OFFICIAL_DETECTOR_K_SIZES)


@NAMES
def test_a_detector_is_torchvisions_on_a_network_with_eca(name: str) -> None:
    kind, network = name.split("_")
    taps = OFFICIAL_DETECTOR_K_SIZES[name]
    build: Callable[..., nn.Module] = getattr(models, f"{kind}_eca_{network}_fpn")
    with torch.device("meta"):
        model, images = build(taps, num_classes=7), torch.empty(2, 3, 64, 96)
    assert type(model) is CLASSES[kind]
    found = [module.conv.weight.shape[2] for module in model.modules() if isinstance(module, ECA)]
    assert found == [k for k, blocks in zip(taps, BLOCKS[network], strict=True) for _ in range(blocks)]
    levels = model.backbone(images)
    assert list(levels) == LEVELS[kind]
    assert all(level.shape[:2] == (2, 256) for level in levels.values())
    first = 8 if kind == "retinanet" else 4
    assert levels["0"].shape[2:] == (64 // first, 96 // first)
    assert all(-(-a.shape[3] // 2) == b.shape[3] for a, b in pairwise(levels.values()))


@pytest.mark.parametrize("size", [(4, 6), (5, 7), (1, 1)])
def test_the_subsampled_level_is_torchvisions_pooled_one(size: tuple[int, int]) -> None:
    levels = [torch.randn(2, 3, 8, 12), torch.randn(2, 3, *size)]
    ours, names = LastLevelSubsample()(levels, [], ["0", "1"])
    want, wanted = LastLevelMaxPool()(list(levels), [], ["0", "1"])
    assert names == wanted
    assert all(torch.equal(a, b) for a, b in zip(ours, want, strict=True))


@pytest.mark.parametrize("trained", range(6))
def test_the_last_layers_of_the_network_train(trained: int) -> None:
    with torch.device("meta"):
        body = resnet_fpn("resnet18", "eca", trainable_layers=trained).body
    parts = ["layer4", "layer3", "layer2", "layer1", "conv1", *(["bn1"] if trained == 5 else [])]
    expected = parts if trained == 5 else parts[:trained]
    assert {name.split(".")[0] for name, p in body.named_parameters() if p.requires_grad} == set(expected)


def test_frozen_batch_norm_keeps_values_and_opens_every_branch() -> None:
    with torch.device("meta"):
        frozen = detector("fasterrcnn", "resnet18", "se", num_classes=3, frozen_batch_norm=True)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in frozen.modules())
    assert sum(isinstance(module, FrozenBatchNorm2d) for module in frozen.modules()) == 20
    assert not any("bn" in name for name, _ in frozen.named_parameters())
    body = resnet_fpn("resnet18", frozen_batch_norm=True).body
    assert all(bool(buffer.eq(1).all()) for name, buffer in body.named_buffers() if name.endswith("weight"))


def test_the_weights_of_a_network_load_into_a_frozen_trunk() -> None:
    network = models.eca_resnet18(num_classes=10)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1)
    body = resnet_fpn("resnet18", "eca", frozen_batch_norm=True).body
    missing, unexpected = body.load_state_dict(network.state_dict(), strict=False)
    assert (missing, unexpected) == ([], ["fc.weight", "fc.bias"])
    images = torch.randn(1, 3, 32, 64)
    with torch.no_grad():
        want = network.eval().forward_features(images)
        torch.testing.assert_close(body(images)["3"], want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: detector("yolo"), "name must be one of fasterrcnn, maskrcnn, retinanet, got 'yolo'"),
        (lambda: resnet_fpn(trainable_layers=6), "trainable_layers must be 0 to 5, got 6"),
        (lambda: resnet_fpn(returned_layers=(0, 1)), r"returned_layers must be some of 1 to 4, got \(0, 1\)"),
        (lambda: resnet_fpn(returned_layers=()), r"returned_layers must be some of 1 to 4, got \(\)"),
        (lambda: detector("retinanet", k_size=3), "k_size is for eca and eca_ns, got 3"),
    ],
)
def test_errors_name_the_argument_and_its_value(build: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def test_parameters_counted_alike_are_those_of_the_official_table() -> None:
    rows = list(detectors.rows())
    assert [row.name for row in rows] == list(detectors.OFFICIAL_PARAMETERS_M)
    for row in rows:
        assert row.agrees, row.name
        explained = sum(difference.parameters for difference in row.differences)
        assert row.ours - explained == row.counted_alike, row.name


def test_the_command_prints_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["detectors"]) == 0
    out = capsys.readouterr().out
    assert "maskrcnn_resnet101    63,446,798     63,167,625   63.17 M" in out
    assert "retinanet_resnet50, 228,195 more: 91 classes, not 80: 11 * 9 * (9 * 256 + 1)" in out


@pytest.mark.parametrize(("network", "official_gflops"), [("resnet50", 0.11), ("resnet101", 0.18)])
def test_the_official_flops_of_eca_are_one_per_element_that_is_pooled(
    network: str, official_gflops: float
) -> None:
    """An image of 1280 x 800, MMDetection's: 207.18 G with ECA, 207.07 without."""
    pooled: list[int] = []

    def count(_: nn.Module, inputs: tuple[Tensor]) -> None:
        pooled.append(inputs[0].numel())

    with torch.device("meta"):
        body, image = resnet_fpn(network, "eca").body, torch.empty(1, 3, 800, 1280)
    for module in body.modules():
        if isinstance(module, ECA):
            module.register_forward_pre_hook(count)
    body(image)
    assert round(sum(pooled) / 1e9, 2) == official_gflops
