"""Detectors on a photograph: the trunk lowered inside torchvision's changing sizes, against eager mode.

Proposals and non-maximum suppression turn a rounding into another choice, so maps, losses and gradients are
compared closely, and detections by how many of eager's are found again.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from given_relus import doubt, forget, remembering, tell, told
from harness import Lowering
from torch import Tensor, nn
from torchvision.ops import box_iou

from eca_triton.models.detection import DETECTORS, detector

SIZES = [(427, 640), (640, 427), (480, 640), (300, 640)]  # torchvision pads what it makes of them to 32
DETECTOR = pytest.mark.parametrize("name", DETECTORS)
EPS = torch.finfo(torch.float32).eps
ULPS = 4  # a loss is one number, of which eager may happen to be exact
FEWER = {"rpn_post_nms_top_n_train": 200, "rpn_post_nms_top_n_test": 100, "box_batch_size_per_image": 64}
SMALLER = {  # and with random weights every score counts
    "fasterrcnn": FEWER | {"box_score_thresh": 0.0},
    "maskrcnn": FEWER | {"box_score_thresh": 0.0},
    "retinanet": {"score_thresh": 0.0},
}


@pytest.fixture(autouse=True)
def _nothing_compiled_before() -> None:
    torch._dynamo.reset()


def photograph(height: int = 427, width: int = 640) -> Tensor:
    """scikit-learn's sample image [3, height, width] in 0 to 1."""
    from sklearn.datasets import load_sample_image  # which takes a second, also of whoever runs other tests

    pixels = torch.from_numpy(load_sample_image("china.jpg").copy()).permute(2, 0, 1)[None] / 255
    return nn.functional.interpolate(pixels, (height, width), mode="bilinear", antialias=True)[0]


def target(image: Tensor) -> dict[str, Tensor]:
    """The temple: about a quarter of the photograph's width and height, in its middle."""
    height, width = image.shape[1:]
    top, left, bottom, right = 3 * height // 8, 3 * width // 8, 5 * height // 8, 5 * width // 8
    mask = torch.zeros(1, height, width, dtype=torch.uint8)
    mask[:, top:bottom, left:right] = 1
    boxes = torch.tensor([[left, top, right, bottom]], dtype=image.dtype)
    return {"boxes": boxes, "labels": torch.tensor([1]), "masks": mask}


def trained(name: str, network: str = "resnet18", **arguments: Any) -> nn.Module:
    """A small detector whose batch norms are not the initial ones, as after training."""
    torch.manual_seed(0)
    size = {"min_size": 96, "max_size": 160} | arguments
    model = detector(name, network, "eca", num_classes=5, **size, **SMALLER[name])
    for module in model.backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1)
    return model


def without_choices(model: nn.Module) -> nn.Module:
    """The model itself, in which no rounding opens a ReLU or moves a maximum unseen."""
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.MaxPool2d):
            pooling = nn.AvgPool2d(module.kernel_size, module.stride, module.padding)
            model.set_submodule(name, pooling)
    return remembering(model)


def detect(model: nn.Module, image: Tensor) -> tuple[list[Tensor], dict[str, Tensor]]:
    """The pyramid's maps, and what is detected."""
    with torch.no_grad():
        (found,) = model.eval()([image])
        return list(model.backbone(model.transform([image])[0].tensors).values()), found


def losses(model: nn.Module, image: Tensor) -> dict[str, Tensor]:
    """Those of one training step, which leaves its gradients; torchvision draws the same samples in each."""
    forget(model)
    model.zero_grad()
    torch.manual_seed(1)
    found: dict[str, Tensor] = model.train()([image], [target(image)])
    torch.stack(list(found.values())).sum().backward()
    return {key: loss.detach() for key, loss in found.items()}


def assert_like(got: dict[str, Tensor], native: dict[str, Tensor], rtol: float) -> None:
    """Losses of anchors are close; those of proposals are of another choice, should rounding change it."""
    assert got.keys() == native.keys()
    for key, loss in native.items():
        chosen = key in ("loss_classifier", "loss_box_reg", "loss_mask")
        torch.testing.assert_close(got[key], loss, rtol=0.05 if chosen else rtol, atol=1e-5, msg=key)


def gradient(model: nn.Module) -> Tensor:
    """Of all parameters of the trunk, in float64."""
    return torch.cat([p.grad.double().flatten() for p in model.backbone.parameters() if p.grad is not None])


def found_again(found: dict[str, Tensor], among: dict[str, Tensor]) -> float:
    """Share of the detections that have one of the same class in nearly the same place."""
    same = found["labels"][:, None] == among["labels"]
    return float(((box_iou(found["boxes"], among["boxes"]) > 0.95) & same).any(1).float().mean())


@DETECTOR
def test_a_photograph_is_seen_as_in_eager_mode(name: str) -> None:
    model, image, lowering = (
        trained(name, frozen_batch_norm=name == "maskrcnn"),
        photograph(),
        Lowering("eager", device="cuda"),
    )
    exact, _ = detect(copy.deepcopy(model).double(), image.double())
    native, want = detect(model, image)
    model.backbone.compile(backend=lowering)
    maps, found = detect(model, image)
    assert len(lowering.graphs) == 1
    assert [record.decision.plan for record in lowering.records] == ["block"] * 8
    for got, eager, truth in zip(maps, native, exact, strict=True):
        step = EPS * truth.abs().max()
        assert (got - truth).abs().max() <= 2 * (eager - truth).abs().max() + step
    assert found.keys() == want.keys()
    assert found_again(want, found) >= 0.95
    assert found_again(found, want) >= 0.95


@DETECTOR
def test_a_training_step_is_that_of_eager_mode(name: str) -> None:
    frozen = name == "maskrcnn"
    model, image, lowering = (
        trained(name, frozen_batch_norm=frozen),
        photograph(),
        Lowering("aot_eager", device="cuda"),
    )
    if name == "retinanet":
        without_choices(model)
    twin, exact = copy.deepcopy(model), told(copy.deepcopy(model).double())
    model.backbone.compile(backend=lowering)
    got, native = losses(model, image), losses(twin, image)
    assert [record.decision.plan for record in lowering.records] == ["pool" if frozen else "batch_norm"] * 8
    assert_like(got, native, rtol=1e-4)
    distance = (gradient(model) - gradient(twin)).norm() / gradient(twin).norm()
    assert distance <= 0.05
    if name == "retinanet":  # which chooses nothing else by its maps
        errors = []
        for judged, found in ((model, got), (twin, native)):
            tell(exact, judged)
            truth = losses(exact, image.double())
            wrong = max((found[key] - loss).abs() for key, loss in truth.items())
            errors.append((wrong, (gradient(judged) - gradient(exact)).norm()))
        assert doubt(exact) < 1e-5
        for error, own, size in zip(*errors, (max(truth.values()), gradient(exact).norm()), strict=True):
            assert error <= 2 * own + ULPS * EPS * size


@pytest.mark.parametrize("frozen", [False, True], ids=["batch norm", "frozen batch norm"])
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_four_image_sizes_recompile_the_trunk_once(training: bool, frozen: bool) -> None:
    """At torchvision's own sizes, on the meta device; every site is lowered in both versions."""
    with torch.device("meta"):
        model = detector("fasterrcnn", "resnet18", "eca", frozen_batch_norm=frozen)
    lowering = Lowering(device="cuda")
    model.backbone.train(training).compile(backend=lowering)
    padded = set()
    with torch.set_grad_enabled(training):
        for height, width in SIZES:
            images = model.transform.eval()([torch.empty(3, height, width, device="meta")])[0].tensors
            padded.add(tuple(images.shape[2:]))
            model.backbone(images)
    assert len(padded) == 4
    assert len(lowering.graphs) == 2
    assert len(lowering.sites) == 2 * 8
    assert lowering.rejected == []
    plans = {record.decision.plan for record in lowering.sites}
    assert plans == ({"pool"} if training and frozen else {"batch_norm"} if training else {"block"})


@pytest.mark.slow
def test_a_resnet50_detector_recompiles_at_most_twice_over_four_sizes() -> None:
    """Inference and training on photographs of four sizes, as users run them; detectors share their trunk."""
    model, lowering = trained("fasterrcnn", "resnet50", min_size=256, max_size=448), Lowering("aot_eager")
    twin = copy.deepcopy(model)
    model.backbone.compile(backend=lowering)
    for size in SIZES:
        image = photograph(*size)
        (maps, _), (native, _) = detect(model, image), detect(twin, image)
        for got, want in zip(maps, native, strict=True):
            assert (got - want).norm() <= 1e-4 * want.norm()
    assert len(lowering.graphs) <= 3
    assert len(lowering.sites) == 16 * len(lowering.graphs)
    inference = len(lowering.graphs)
    for size in SIZES:
        image = photograph(*size)
        assert_like(losses(model, image), losses(twin, image), rtol=1e-3)
    assert len(lowering.graphs) - inference <= 3
    assert len(lowering.sites) == 16 * len(lowering.graphs)
    assert lowering.rejected == []
