"""A detector of torchvision on an ECA-ResNet and a real photograph, stock and lowered, without a GPU.

    python examples/detect.py                   # RetinaNet
    python examples/detect.py fasterrcnn        # or: maskrcnn

1. The trunk's maps and the detections of the photograph in four sizes, against eager mode; recompilations.
2. One training step: losses and the gradient of the trunk.

Weights are random. Our pass runs in front of torch's "aot_eager", which compiles in seconds, and plans as for
a GPU; there it is `model.backbone.compile(backend="eca_triton")`. Exits with 1 when a check fails.
"""

from __future__ import annotations

import copy
import itertools
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from sklearn.datasets import load_sample_image
from torch import Tensor, fx, nn
from torch._dynamo.backends.registry import lookup_backend

from eca_triton.compile.passes import lower_graph
from eca_triton.compile.record import SiteRecord
from eca_triton.compile.settings import Settings
from eca_triton.models.detection import DETECTORS, OFFICIAL_DETECTOR_K_SIZES, detector

SIZES = [(427, 640), (640, 427), (480, 640), (300, 640)]
SHORT_SIDE, LONG_SIDE = 192, 320  # of what the trunk sees; torchvision's own are 800 and 1333
START = time.perf_counter()


def say(text: str) -> None:
    """Print a line of progress with the seconds since the start."""
    print(f"[{time.perf_counter() - START:5.1f} s] {text}", flush=True)


class Lowered:
    """A backend for torch.compile: our pass, then "aot_eager"; it counts graphs and keeps sites' records."""

    def __init__(self) -> None:
        self.graphs = 0
        self.records: list[SiteRecord] = []

    def __call__(self, gm: fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        """Compile one of Dynamo's graphs."""
        self.graphs += 1
        self.records += lower_graph(gm, Settings(force=True, device="cuda"))
        compiled: Callable[..., Any] = lookup_backend("aot_eager")(gm, inputs)
        return compiled

    def passed(self, blocks: int) -> bool:
        """Print what was compiled, and judge it: at most two recompilations, every site lowered in each."""
        plans = Counter(record.decision.plan for record in self.records)
        lowered = sum(record.lowered for record in self.records)
        say(f"  {self.graphs - 1} recompilations; {lowered} sites lowered of {self.graphs} x {blocks}")
        say(f"  plans: {', '.join(f'{count} {plan}' for plan, count in plans.items())}")
        return self.graphs <= 3 and lowered == len(self.records) == self.graphs * blocks


def photograph(height: int, width: int) -> Tensor:
    """scikit-learn's sample image as [3, height, width] in 0 to 1."""
    pixels = torch.from_numpy(load_sample_image("china.jpg").copy()).permute(2, 0, 1)[None] / 255
    return nn.functional.interpolate(pixels, (height, width), mode="bilinear", antialias=True)[0]


def target(image: Tensor) -> dict[str, Tensor]:
    """One object: the temple in the middle."""
    height, width = image.shape[1:]
    box = [3 * width // 8, 3 * height // 8, 5 * width // 8, 5 * height // 8]
    mask = torch.zeros(1, height, width, dtype=torch.uint8)
    mask[:, box[1] : box[3], box[0] : box[2]] = 1
    return {"boxes": torch.tensor([box], dtype=image.dtype), "labels": torch.tensor([1]), "masks": mask}


def maps(model: nn.Module, image: Tensor) -> list[Tensor]:
    """Of all levels of the pyramid."""
    with torch.no_grad():
        return list(model.backbone(model.transform([image])[0].tensors).values())


def check_inference(model: nn.Module, twin: nn.Module, blocks: int) -> bool:
    """The photograph in four sizes; the maps may be twice as far from float64 as eager's, plus one step."""
    lowered, fine = Lowered(), True
    exact = copy.deepcopy(twin).double().eval()
    model.eval().backbone.compile(backend=lowered)
    twin.eval()
    for size in SIZES:
        image = photograph(*size)
        errors = []
        for got, native, truth in zip(
            maps(model, image), maps(twin, image), maps(exact, image.double()), strict=True
        ):
            error, own = ((each - truth).abs().max().item() for each in (got, native))
            fine &= error <= 2 * own + torch.finfo(torch.float32).eps * truth.abs().max().item()
            errors.append((error, own))
        with torch.no_grad():
            found = len(model([image])[0]["boxes"])
        ours, eager = (max(each) for each in zip(*errors, strict=True))
        say(f"  {size[0]}x{size[1]}: error of the maps {ours:.1e}, eager's {eager:.1e}; {found} detections")
    return lowered.passed(blocks) and fine


def step(model: nn.Module, image: Tensor) -> tuple[float, Tensor]:
    """The sum of the losses, and the gradient of all parameters of the trunk."""
    torch.manual_seed(1)  # torchvision draws samples of its anchors
    loss = torch.stack(list(model.train()([image], [target(image)]).values())).sum()
    loss.backward()
    return loss.item(), torch.cat([p.grad.double().flatten() for p in model.backbone.parameters()])


def check_training(model: nn.Module, twin: nn.Module, blocks: int) -> bool:
    """One step; the gradient may be twice as far from float64's as eager's, which proposals can part from."""
    lowered, image, exact = Lowered(), photograph(*SIZES[0]), copy.deepcopy(twin).double()
    model.backbone.compile(backend=lowered)
    (loss, ours), (native, eager) = step(model, image), step(twin, image)
    _, truth = step(exact, image.double())
    error, own = (((each - truth).norm() / truth.norm()).item() for each in (ours, eager))
    say(f"  loss {loss:.6f}, eager's {native:.6f}; error of the gradient {error:.1e}, eager's {own:.1e}")
    fine = abs(loss - native) <= 1e-3 * native and error <= 2 * own + torch.finfo(torch.float32).eps
    return lowered.passed(blocks) and fine


def main(name: str) -> int:
    """Run both checks on torchvision's detector of that name."""
    torch.manual_seed(0)
    threshold = "score_thresh" if name == "retinanet" else "box_score_thresh"
    model = detector(
        name,
        "resnet50",
        "eca",
        k_size=OFFICIAL_DETECTOR_K_SIZES[f"{name}_resnet50"],
        num_classes=5,
        min_size=SHORT_SIDE,
        max_size=LONG_SIDE,
        **{threshold: 0.0},  # random weights find nothing by a higher one
    )
    stages = [model.backbone.body[f"layer{stage}"] for stage in range(1, 5)]
    for block in itertools.chain(*stages):
        nn.init.constant_(block.bn3.weight, 0.2)  # it starts at 0, and its site would see nothing
    blocks, twin = sum(map(len, stages)), copy.deepcopy(model)
    say(f"{name} on ResNet-50 with ECA, china.jpg in four sizes, inference")
    fine = check_inference(model, twin, blocks)
    say("one training step")
    fine &= check_training(copy.deepcopy(twin), twin, blocks)
    say("all checks passed" if fine else "A CHECK FAILED")
    return 0 if fine else 1


if __name__ == "__main__":
    chosen = sys.argv[1] if len(sys.argv) > 1 else "retinanet"
    if chosen not in DETECTORS:
        sys.exit(f"choose {', '.join(DETECTORS)}, got {chosen!r}")
    sys.exit(main(chosen))
