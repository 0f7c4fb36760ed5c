"""Bandwidth of a copy, by its size: what any kernel that moves these bytes could reach."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eca_triton.util.timing import Timer, input_sets

from ..shared.document import band, save

MEGABYTES = (822, 411, 206, 103, 51, 13, 3)  # S of ResNet's maps in bf16 at batch 512 ... 2
COLUMNS = ("MB", "us", "p20-p80", "GB/s")


def measure(
    machine: Mapping[str, Any],
    date: str,
    device: torch.device,
    timer: Timer,
    repeats: int,
    path: Path,
    megabytes: Sequence[int] = MEGABYTES,
) -> dict[str, Any]:
    """Time `x.clone()` on changing inputs; the document is saved to `path` after each size."""
    document: dict[str, Any] = {
        "command": "copy", "date": date, "machine": dict(machine), "left_out": [], "rows": [],
    }  # fmt: skip
    for each in megabytes:
        size = each * 10**6
        sets = input_sets(size, machine.get("l2_bytes", 0))
        inputs = [torch.randn(size // 2, device=device, dtype=torch.bfloat16) for _ in range(sets)]
        assert torch.equal(inputs[0].clone(), inputs[0])
        us = band(timer({"copy": partial(_clone, inputs)}, sets, repeats)["copy"])
        document["rows"].append(
            {
                "bytes": size,
                **{f"{key}_us": round(value, 3) for key, value in us.items()},
                "gbps": round(2 * size / us["median"] / 1e3, 1),
            }
        )
        save(document, path)
    return document


def _clone(inputs: Sequence[Tensor], index: int) -> Tensor:
    return inputs[index].clone()


def table(document: Mapping[str, Any]) -> list[list[str]]:
    """Cells under `COLUMNS`."""
    return [
        [
            f"{row['bytes'] / 1e6:.0f}",
            f"{row['median_us']:.1f}",
            f"{row['p20_us']:.1f}-{row['p80_us']:.1f}",
            f"{row['gbps']:.0f}",
        ]
        for row in document["rows"]
    ]
