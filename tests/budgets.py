"""What the chosen kernels may cost, compiled ahead of time; `make budgets` writes the table anew.

tests/budgets.json holds, per Triton version, target and site: the kernel, registers, spilled and shared
bytes, the share of the accesses' bytes that go in 128-bit accesses, and thread-instructions per element
(null where the code loops, or is not NVIDIA's).
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
import triton
from aot import DEVICES, TARGETS, Launch, captured, compiled

from eca_triton import launch, launch_backward_channels_last
from eca_triton.call import BackwardCall, Call
from eca_triton.tuning.lagged_backward import lagged_backward_config
from eca_triton.tuning.tile_channels_last_backward import tile_channels_last_backward_config

FILE = Path(__file__).with_suffix(".json")
VERSION = ".".join(triton.__version__.split(".")[:2])

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
BACKWARD = {  # name: shape, taps, whether residual and ReLU follow; channels-last
    "56x56 last backward": ((128, 256, 56, 56), 5, False),
    "56x56 last backward tail": ((128, 256, 56, 56), 5, True),
    "28x28 last backward tail": ((128, 512, 28, 28), 5, True),
    "14x14 last backward": ((128, 1024, 14, 14), 5, False),
    "14x14 last backward tail": ((128, 1024, 14, 14), 5, True),
    "7x7 last backward tail": ((128, 2048, 7, 7), 7, True),
}
# gfx942 has no lagged launch: an L2 per die.
LAGGED = ("56x56 last", "56x56 last backward", "56x56 last backward tail", "28x28 last backward tail")
CASES = [
    (target, site)
    for target in TARGETS
    for site in (*SITES, *BACKWARD)
    if target != "gfx942" or site not in LAGGED
]


def launched(site: str, target: str) -> Launch:
    """The launch of a site in bf16; "tail": batch norm before, residual and ReLU after."""
    if site in BACKWARD:
        return launched_backward(site, target)
    shape, taps, memory_format, tail = SITES[site]
    x = torch.empty(shape, dtype=torch.bfloat16, device="meta", memory_format=memory_format)
    bn = tuple(torch.empty(shape[1], device="meta") for _ in range(4)) if tail else None
    (item,) = captured(
        target,
        launch.eca,
        Call(
            x, torch.empty(1, 1, taps, device="meta"), None, bn, 1e-5,
            "identity", False, "sigmoid", 1.0, x if tail else None, "relu" if tail else "identity", x,
        ),
    )  # fmt: skip
    return item


def launched_backward(site: str, target: str) -> Launch:
    """The launch of a site's backward in bf16; "tail": ReLU's bits, and a residual that needs a gradient."""
    shape, taps, tail = BACKWARD[site]
    x = torch.empty(shape, dtype=torch.bfloat16, device="meta", memory_format=LAST)
    channels = torch.empty(shape[:2], device="meta")
    bits = torch.empty((shape[0], x[0].numel() // 8), dtype=torch.uint8, device="meta")
    call = BackwardCall(
        x, x, torch.empty(1, 1, taps, device="meta"), None, None, 1e-5, False, "sigmoid", 1.0,
        None, "relu" if tail else "identity", channels, bits if tail else None,
        x, x if tail else None, channels, None, None,
    )  # fmt: skip
    config = tile_channels_last_backward_config(call.layout, 2, taps, DEVICES[target])
    function = launch_backward_channels_last.tile_channels_last_backward
    if config is None:
        config = lagged_backward_config(call.layout, 2, False, tail, tail, DEVICES[target])
        function = launch_backward_channels_last.lagged_backward
    assert config is not None
    (item,) = captured(target, function, call, config)
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
        shape = (SITES | BACKWARD)[site][0]
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
    table[VERSION] = {target: {} for target in TARGETS}
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
