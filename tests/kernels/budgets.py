"""What the chosen kernels may cost, compiled ahead of time; `make budgets` writes the table anew.

budgets.json holds, per Triton version, target and site: the kernel, registers, spilled and shared bytes, the
share of the accesses' bytes that go in 128-bit accesses, and thread-instructions per element
(null where the code loops, or is not NVIDIA's).
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from aot import TARGETS, VERSION, Launch, captured, compiled

from eca_triton.launch import forward as launch_forward
from eca_triton.launch import training as launch_training
from eca_triton.launch.call import BackwardCall, Call

FILE = Path(__file__).with_suffix(".json")

CONTIGUOUS, LAST = torch.contiguous_format, torch.channels_last
SITES = {  # name: shape, taps, memory format, whole tail
    "56x56": ((128, 256, 56, 56), 5, CONTIGUOUS, False),
    "56x56 tail": ((128, 256, 56, 56), 5, CONTIGUOUS, True),
    "28x28": ((128, 512, 28, 28), 5, CONTIGUOUS, False),
    "14x14": ((128, 1024, 14, 14), 5, CONTIGUOUS, False),
    "7x7": ((128, 2048, 7, 7), 7, CONTIGUOUS, False),
    "7x7 tail": ((128, 2048, 7, 7), 7, CONTIGUOUS, True),
    "112x112": ((128, 16, 112, 112), 1, CONTIGUOUS, False),
    "56x56 batch 1": ((1, 256, 56, 56), 5, CONTIGUOUS, False),
    "56x56 last": ((128, 256, 56, 56), 5, LAST, False),
    "28x28 last": ((128, 512, 28, 28), 5, LAST, False),
    "14x14 last": ((128, 1024, 14, 14), 5, LAST, False),
    "7x7 last": ((128, 2048, 7, 7), 7, LAST, False),
}
TRAINING = {  # name: shape, taps, memory format, residual and ReLU after; "forward": with what backward needs
    "56x56 forward": ((128, 256, 56, 56), 5, CONTIGUOUS, True),
    "14x14 forward": ((128, 1024, 14, 14), 5, CONTIGUOUS, True),
    "56x56 backward": ((128, 256, 56, 56), 5, CONTIGUOUS, False),
    "56x56 backward tail": ((128, 256, 56, 56), 5, CONTIGUOUS, True),
    "28x28 backward tail": ((128, 512, 28, 28), 5, CONTIGUOUS, True),
    "14x14 backward tail": ((128, 1024, 14, 14), 5, CONTIGUOUS, True),
    "7x7 backward": ((128, 2048, 7, 7), 7, CONTIGUOUS, False),
    "7x7 backward tail": ((128, 2048, 7, 7), 7, CONTIGUOUS, True),
    "56x56 last backward": ((128, 256, 56, 56), 5, LAST, False),
    "56x56 last backward tail": ((128, 256, 56, 56), 5, LAST, True),
    "28x28 last backward tail": ((128, 512, 28, 28), 5, LAST, True),
    "14x14 last backward": ((128, 1024, 14, 14), 5, LAST, False),
    "14x14 last backward tail": ((128, 1024, 14, 14), 5, LAST, True),
    "7x7 last backward tail": ((128, 2048, 7, 7), 7, LAST, True),
}
# gfx942 has no lagged launch: an L2 per die. Training takes long to compile: all of it for one target only.
BUDGETED = ("sm_80", "sm_90", "sm_100", "gfx942")
CASES = [
    (target, site) for target in BUDGETED for site in SITES if (target, site) != ("gfx942", "56x56 last")
]
CASES += [("sm_90", site) for site in TRAINING]
CASES += [
    (target, f"{size} backward tail")
    for target in ("sm_80", "sm_100")
    for size in ("56x56", "14x14", "56x56 last", "14x14 last")
]


def launched(site: str, target: str) -> Launch:
    """The launch of a site in bf16; "tail": batch norm before, residual and ReLU after."""
    if site in TRAINING:
        return launched_in_training(site, target)
    shape, taps, memory_format, tail = SITES[site]
    x = torch.empty(shape, dtype=torch.bfloat16, device="meta", memory_format=memory_format)
    bn = tuple(torch.empty(shape[1], device="meta") for _ in range(4)) if tail else None
    (item,) = captured(
        target,
        launch_forward.eca,
        Call(
            x, torch.empty(1, 1, taps, device="meta"), None, bn, 1e-5,
            "identity", False, "sigmoid", 1.0, x if tail else None, "relu" if tail else "identity", x,
        ),
    )  # fmt: skip
    return item


def launched_in_training(site: str, target: str) -> Launch:
    """The launch of a site of TRAINING in bf16, without batch norm."""
    shape, taps, memory_format, tail = TRAINING[site]
    n, c, h, w = shape
    x = torch.empty(shape, dtype=torch.bfloat16, device="meta", memory_format=memory_format)
    weight = torch.empty(1, 1, taps, device="meta")
    pooled = torch.empty(n, c, device="meta")
    mask = torch.empty(n, c * h * w // 8, dtype=torch.uint8, device="meta") if tail else None
    residual, activation = (x, "relu") if tail else (None, "identity")
    function, call = launch_training.one_launch, BackwardCall(
        x, x, weight, None, None, 0.0, False, "sigmoid", 1.0, None, activation,
        pooled, mask, x, residual, pooled, None, None,
    )  # fmt: skip
    if "forward" in site:
        function, call = launch_forward.one_launch, Call(
            x, weight, None, None, 0.0, "identity", False, "sigmoid", 1.0, residual, activation, x,
            pooled, mask,
        )  # fmt: skip
    (item,) = captured(target, function, call)
    return item


def cost(site: str, target: str) -> dict[str, object]:
    """One row of the table."""
    item = launched(site, target)
    code = compiled(item)
    bits = {width: code.loads.get(width, 0) * width for width in code.loads}
    for width, count in code.stores.items():
        bits[width] = bits.get(width, 0) + count * width
    per_element = None
    if code.instructions is not None:
        shape = (SITES | TRAINING)[site][0]
        threads = item.grid[0] * item.num_warps * TARGETS[target].warp_size
        per_element = round(code.instructions * threads / torch.Size(shape).numel(), 1)
    return {
        "kernel": item.kernel.__name__.removesuffix("_kernel"),
        "registers": code.registers,
        "spilled_bytes": code.spilled_bytes,
        "shared_bytes": code.shared_bytes,
        "vector_share": round(bits.get(128, 0) / sum(bits.values()), 2),
        "instructions_per_element": per_element,
    }


def main() -> None:
    """Write this Triton's part of the table, one line per row."""
    table = json.loads(FILE.read_text()) if FILE.exists() else {}
    table[VERSION] = {target: {} for target in BUDGETED}
    for target, site in CASES:
        table[VERSION][target][site] = cost(site, target)
    versions = []
    for version, targets in sorted(table.items()):
        blocks = []
        for target, rows in targets.items():
            lines = ",\n".join(f"      {json.dumps(site)}: {json.dumps(row)}" for site, row in rows.items())
            blocks.append(f'    "{target}": {{\n{lines}\n    }}')
        versions.append(f'  "{version}": {{\n' + ",\n".join(blocks) + "\n  }")
    FILE.write_text("{\n" + ",\n".join(versions) + "\n}\n")


if __name__ == "__main__":
    main()
