"""Export an ECA network, lower the program, package it, and run the package without this package.

Four forms of one network, each compared with eager mode on images of two batch sizes: the exported program,
the same with our operators in it, plain ATen again (for ONNX or TensorRT), and a package of AOTInductor,
which another Python process runs that never imports eca_triton. Needs `g++`; on the CPU our operators run
as formulas. Exits with 1 where a form differs. How-to: docs/export.md.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim, export, load, save

import eca_triton

BATCHES = (2, 5)
# What the other process runs: images in, result out, and a look at what is imported.
ELSEWHERE = """
import sys, torch
package, images, result = sys.argv[1:]
run = torch._inductor.aoti_load_package(package)
torch.save([run(x) for x in torch.load(images)], result)
assert not any(name.startswith("eca_triton") for name in sys.modules)
"""


class Block(nn.Module):
    """Convolution, batch norm, hand-written ECA, ReLU."""

    def __init__(self, channels: int, taps: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.weights = nn.Conv1d(1, 1, taps, padding=taps // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x))
        gate = self.weights(x.mean((2, 3)).unsqueeze(1)).sigmoid()
        return torch.relu(x * gate.transpose(1, 2).unsqueeze(-1))


def check(name: str, function: Callable[[Tensor], Tensor], model: nn.Module, images: list[Tensor]) -> None:
    """Compare with eager mode; end with 1 where they differ."""
    worst = max((function(x) - model(x)).abs().max().item() for x in images)
    print(f"{name:40} differs from eager by at most {worst:.1e}", flush=True)
    if not worst < 1e-5:
        sys.exit(f"{name}: not the same")


@torch.no_grad()
def main() -> None:
    """Make each form, and try it."""
    torch.manual_seed(0)
    model = Block(32).eval()
    images = [torch.randn(batch, 3, 32, 32) for batch in BATCHES]
    dim = Dim("batch", min=2, max=64)
    program = export(model, (images[0],), dynamic_shapes=({0: dim},))
    check("the exported program", program.module(), model, images)
    lowered = eca_triton.rewrite_exported(program, force=True)  # force: on a CPU; a GPU needs no word
    names = sorted({str(node.target) for node in lowered.graph.nodes if "eca_triton" in str(node.target)})
    with tempfile.TemporaryDirectory() as folder:
        save(lowered, Path(folder, "lowered.pt2"))
        check(f"lowered to {', '.join(names)}", load(Path(folder, "lowered.pt2")).module(), model, images)
        plain = eca_triton.decompose(lowered)
        assert not any("eca_triton" in str(node.target) for node in plain.graph.nodes)
        check("plain ATen again", plain.module(), model, images)
        package = eca_triton.aoti_compile_and_package(program, package_path=str(Path(folder, "net.pt2")))
        given, result = Path(folder, "images.pt"), Path(folder, "result.pt")
        torch.save(images, given)
        subprocess.run([sys.executable, "-c", ELSEWHERE, str(package), given, result], check=True)
        found = dict(zip(BATCHES, torch.load(result), strict=True))
        check("the package, in another process", lambda x: found[len(x)], model, images)


if __name__ == "__main__":
    main()
