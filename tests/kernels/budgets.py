"""What the chosen kernels may cost, compiled ahead of time; `make budgets` writes the table anew.

budgets.json holds, per Triton version, target and site: the kernel, registers, spilled and shared bytes, the
share of the accesses' bytes that go in 128-bit accesses, and thread-instructions per element
(null where the code loops, or is not NVIDIA's).
"""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path

from aot import VERSION, Launch, Site, captured, compiled

from eca_triton.launch import forward as launch_forward
from eca_triton.launch import training as launch_training

FILE = Path(__file__).with_suffix(".json")

SITES = {  # by name; "tail": batch norm before, residual and ReLU after
    "56x56": Site((128, 256, 56, 56)),
    "56x56 tail": Site((128, 256, 56, 56), bn=True, after="relu"),
    "28x28": Site((128, 512, 28, 28)),
    "14x14": Site((128, 1024, 14, 14)),
    "7x7": Site((128, 2048, 7, 7), 7),
    "7x7 tail": Site((128, 2048, 7, 7), 7, bn=True, after="relu"),
    "112x112": Site((128, 16, 112, 112), 1),
    "56x56 batch 1": Site((1, 256, 56, 56)),
    "56x56 last": Site((128, 256, 56, 56), last=True),
    "28x28 last": Site((128, 512, 28, 28), last=True),
    "14x14 last": Site((128, 1024, 14, 14), last=True),
    "7x7 last": Site((128, 2048, 7, 7), 7, last=True),
}
TAIL = {"after": "relu", "bits": True, "stored": True}
TRAINING = {  # by name; "forward": with what the backward needs; "tail": residual and ReLU after
    "56x56 forward": Site((128, 256, 56, 56), **TAIL),
    "14x14 forward": Site((128, 1024, 14, 14), **TAIL),
    "56x56 backward": Site((128, 256, 56, 56)),
    "56x56 backward tail": Site((128, 256, 56, 56), **TAIL),
    "28x28 backward tail": Site((128, 512, 28, 28), **TAIL),
    "14x14 backward tail": Site((128, 1024, 14, 14), **TAIL),
    "7x7 backward": Site((128, 2048, 7, 7), 7),
    "7x7 backward tail": Site((128, 2048, 7, 7), 7, **TAIL),
    "56x56 last backward": Site((128, 256, 56, 56), last=True),
    "56x56 last backward tail": Site((128, 256, 56, 56), last=True, **TAIL),
    "28x28 last backward tail": Site((128, 512, 28, 28), last=True, **TAIL),
    "14x14 last backward": Site((128, 1024, 14, 14), last=True),
    "14x14 last backward tail": Site((128, 1024, 14, 14), last=True, **TAIL),
    "7x7 last backward tail": Site((128, 2048, 7, 7), 7, last=True, **TAIL),
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


def launched(name: str, target: str) -> Launch:
    """The one launch that is chosen for a site."""
    site = (SITES | TRAINING)[name]
    if "backward" in name:
        (item,) = captured(target, launch_training.one_launch, site.backward())
    else:
        (item,) = captured(target, launch_forward.eca, site.forward(saved="forward" in name))
    return item


def cost(site: str, target: str) -> dict[str, object]:
    """One row of the table."""
    item = launched(site, target)
    code = compiled(item)
    bits: Counter[int] = Counter()
    for width, count in (*code.loads.items(), *code.stores.items()):
        bits[width] += width * count
    per_element = None
    if code.instructions is not None:
        elements = math.prod((SITES | TRAINING)[site].shape)
        per_element = round(code.instructions * item.grid[0] * item.threads / elements, 1)
    return {
        "kernel": item.kernel.__name__.removesuffix("_kernel"),
        "registers": code.registers,
        "spilled_bytes": code.spilled_bytes,
        "shared_bytes": code.shared_bytes,
        "vector_share": round(bits[128] / bits.total(), 2),
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
