"""The main job on a real photograph, without a GPU.

1. timm's ecaresnet50t, compiled with backend="eca_triton" and lowering forced on this CPU, against eager.
2. One ECA site of that run through the real Triton kernels, in Triton's interpreter.
3. What the network would cost on an H200, with stock Inductor and with our pass.

Exits with 1 when a check fails.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import timm
import torch
from sklearn.datasets import load_sample_image
from torch import Tensor, nn

import eca_triton
from eca_triton.compile.record import recording
from eca_triton.report import explain, write

MODEL, SIZE, SITE = "ecaresnet50t", 224, "layer3.0.se"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
START = time.perf_counter()


def say(text: str) -> None:
    """Print a line of progress with the seconds since the start."""
    print(f"[{time.perf_counter() - START:5.1f} s] {text}", flush=True)


def photograph() -> Tensor:
    """scikit-learn's sample image as [1, 3, SIZE, SIZE], cropped, scaled and normalised as ImageNet is."""
    pixels = torch.from_numpy(load_sample_image("china.jpg").copy()).permute(2, 0, 1)[None] / 255
    side = min(pixels.shape[-2:])
    top, left = ((length - side) // 2 for length in pixels.shape[-2:])
    square = pixels[..., top : top + side, left : left + side]
    small = nn.functional.interpolate(square, (SIZE, SIZE), mode="bilinear", antialias=True)
    return (small - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)


def network() -> nn.Module:
    """The network in eval mode with seeded weights; batch norms hold statistics, as after training."""
    torch.manual_seed(0)
    model = timm.create_model(MODEL, pretrained=False, zero_init_last=False).eval()
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.normal_(norm.running_mean, std=0.1)
            nn.init.uniform_(norm.running_var, 0.5, 1.5)
            nn.init.uniform_(norm.weight, 0.5, 1.0)
    return model


def within_eager_error(got: Tensor, native: Tensor, exact: Tensor) -> bool:
    """Print both errors against float64; ours may be twice eager's own, plus one step of float32."""
    error, own = ((values.double() - exact).abs().max().item() for values in (got, native))
    allowed = 2 * own + torch.finfo(torch.float32).eps * exact.abs().max().item()
    passed = error <= allowed
    verdict = "ok" if passed else "TOO LARGE"
    say(f"  largest difference from float64: ours {error:.2e}, eager {own:.2e}: {verdict}")
    return passed


def check_compiled(model: nn.Module, image: Tensor) -> bool:
    """The compiled network against eager, every site lowered."""
    say(f"{MODEL} on china.jpg at {SIZE}x{SIZE}, eager in float64 and float32")
    exact, native = model.double()(image.double()), model.float()(image)
    say('torch.compile(model, backend="eca_triton") with ECA_TRITON_FORCE=1; the C++ compiler takes a while')
    os.environ["ECA_TRITON_FORCE"] = "1"
    try:
        with recording() as records:
            got = torch.compile(model, backend="eca_triton", fullgraph=True)(image)
    finally:
        del os.environ["ECA_TRITON_FORCE"]
    lowered = sum(record.lowered for record in records)
    top, eager_top = got.argmax().item(), native.argmax().item()
    say(f"  {lowered} of {len(records)} sites lowered; top class {top}, eager {eager_top}")
    return within_eager_error(got, native, exact) and lowered == len(records) > 0


def check_kernels(model: nn.Module, image: Tensor) -> bool:
    """The map that one site sees on this photograph, through the Triton kernels in the interpreter."""
    seen: list[Tensor] = []
    site = model.get_submodule(SITE)
    with site.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0])):
        model(image)
    (x,) = seen
    say(f"{SITE} {tuple(x.shape[1:])} through the Triton kernels, in the interpreter")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "site.pt"
        torch.save((x, site.conv.weight), file)
        environment = os.environ | {"TRITON_INTERPRET": "1"}
        subprocess.run([sys.executable, __file__, "--interpret", str(file)], env=environment, check=True)
        got = torch.load(file)
    exact = site.double()(x.double())
    return within_eager_error(got, site.float()(x), exact)


def interpret(file: str) -> None:
    """In a process of its own: replace the map and weight in `file` by the rescaled map."""
    x, weight = torch.load(file)
    torch.save(eca_triton.eca(x, weight), file)


def show_h200() -> bool:
    """The table of sites and the totals for an H200 that is not there."""
    say(f"{MODEL} at 128x3x{SIZE}x{SIZE}, bf16, channels-last, lowered for an H200, stock and with our pass")
    from eca_triton.cli.named_model import Request, load

    name = f"timm:{MODEL}"
    model, inputs = load(Request(name=name, batch=128, size=SIZE, dtype="bf16", channels_last=True))
    report = explain(model, *inputs, target="h200")
    write(report, sys.stdout)
    totals = report.totals
    return (
        totals["bytes_after"] < totals["bytes_before"] and totals["kernels_after"] <= totals["kernels_before"]
    )


def main() -> int:
    """Run the three parts and say which failed."""
    model, image = network(), photograph()
    with torch.no_grad():
        passed = {
            "compiled network": check_compiled(model, image),
            "Triton kernels": check_kernels(model, image),
            "H200 lowering": show_h200(),
        }
    failed = [name for name, good in passed.items() if not good]
    say(f"FAILED: {', '.join(failed)}" if failed else "all checks passed")
    return 1 if failed else 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--interpret"]:
        with torch.no_grad():
            interpret(sys.argv[2])
    else:
        sys.exit(main())
