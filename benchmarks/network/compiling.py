"""Seconds that our pass adds to `torch.compile` of a network: stock and ours in turn, from empty caches."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from eca_triton.compile.hooks import stock_inductor
from eca_triton.compile.record import recording

from ..shared import twins
from ..shared.checks import short
from ..shared.document import percentile, save
from ..shared.networks import attention
from ..shared.tensors import DTYPES
from . import measure as network
from .agreement import Step, agrees, outcome, worst
from .measure import Setting

BACKENDS = {"inductor": "inductor", "ours": "eca_triton"}
LOWERED = "lowered for an H200 that is not there: all but the compilation of the generated Triton code"
COMPILED = "compiled for this GPU, and run once"

Compiler = Callable[[Setting, str], tuple[float, str]]
"""(setting, key of `BACKENDS`) -> seconds, and what is wrong with the result, or ""."""


def compiler(device: torch.device | None) -> tuple[Compiler, str]:
    """Return what this machine can do, and its name."""
    return (lower, LOWERED) if device is None else (partial(compile_and_run, device), COMPILED)


def lower(setting: Setting, contender: str) -> tuple[float, str]:
    """On any machine; checks that every ECA module is planned as a site, or left to Inductor for a reason."""
    from eca_triton import deviceless

    model = twins.build(setting.family, "eca")
    images = torch.empty(setting.batch, 3, setting.size, setting.size, device="meta")
    with stock_inductor(), recording() as records:
        lowering = deviceless.lower(
            model,
            images,
            backend="eca_triton" if contender == "ours" else "inductor",
            training=setting.training,
            channels_last=setting.layout == "channels_last",
            dtype=DTYPES[setting.dtype],
        )
    sites, planned = len(attention(model)), sum(record.map_bytes > 0 for record in records)
    wrong = contender == "ours" and planned != sites
    return lowering.seconds, f"{planned} of {sites} sites were planned" if wrong else ""


def compile_and_run(device: torch.device, setting: Setting, contender: str) -> tuple[float, str]:
    """Compile from empty caches, run once, and compare results (and gradients) with eager float32."""
    from torch._inductor.utils import fresh_cache

    batch = network.batch_of(setting, device)
    model, native, exact = network.truth(setting, "eca", device, batch)
    module: nn.Module = copy.deepcopy(model)
    torch.compiler.reset()
    with fresh_cache(), stock_inductor():
        synchronize(device)
        started = time.perf_counter()
        call = torch.compile(module, backend=BACKENDS[contender], dynamic=False, fullgraph=True)
        found = outcome(Step(module, call, *batch), setting.training)
        synchronize(device)
        seconds = time.perf_counter() - started
    return seconds, "".join(worst({contender: agrees(found, native, exact)}))


def synchronize(device: torch.device) -> None:
    """Wait for a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure(
    settings: Sequence[Setting],
    repeats: int,
    budget_s: float,
    once: Compiler,
    how: str,
    machine: Mapping[str, Any],
    date: str,
    path: Path,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Compile each network `repeats` times either way, in turn; the document is saved to `path` as it grows.

    Each way is gone once before: imports and the start of workers are in no figure.
    """
    deadline, slowest_s = time.monotonic() + budget_s, 0.0
    document: dict[str, Any] = {
        "command": "compile",
        "date": date,
        "machine": dict(machine),
        "how": how,
        "left_out": [str(setting) for setting in settings],
        "rows": [],
    }
    for index, setting in enumerate(settings):
        started = time.monotonic()
        if started + slowest_s > deadline:
            break
        row: dict[str, Any] = {**setting._asdict(), "status": "ok", "errors": {}}
        seconds: dict[str, list[float]] = {name: [] for name in BACKENDS}
        try:
            for turn in range(-1 if index == 0 else 0, repeats):
                if turn > 0 and time.monotonic() + (time.monotonic() - started) / turn > deadline:
                    break
                for name in BACKENDS:
                    took_s, problem = once(setting, name)
                    say(f"{setting}, {name}: {took_s:.1f} s" + (", not counted" if turn < 0 else ""))
                    if problem:
                        row["status"], row["errors"][name] = "FAIL", problem
                    if turn >= 0:
                        seconds[name].append(round(took_s, 3))
        except Exception as error:
            row["status"], row["errors"]["row"] = "ERROR", short(error)
        if row["status"] == "ok":
            row |= figures(seconds)
        slowest_s = max(slowest_s, time.monotonic() - started)
        document["rows"].append(row)
        document["left_out"].pop(0)
        save(document, path)
    return document


def figures(seconds: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Medians of either way, and of the difference of each turn."""
    differences = [ours - stock for stock, ours in zip(seconds["inductor"], seconds["ours"], strict=True)]
    return {
        "seconds": dict(seconds),
        "inductor_s": round(percentile(seconds["inductor"], 0.5), 3),
        "ours_s": round(percentile(seconds["ours"], 0.5), 3),
        "added_s": round(percentile(differences, 0.5), 3),
        "added_p20_s": round(percentile(differences, 0.2), 3),
        "added_p80_s": round(percentile(differences, 0.8), 3),
    }


COLUMNS = ("network", "step", "layout", "stock, s", "ours, s", "added, s", "p20-p80", "turns")
TEXT = ("network", "step", "layout")


def table(document: Mapping[str, Any]) -> list[list[str]]:
    """Cells under `COLUMNS`; rows that failed show no figure."""
    cells = []
    for row in document["rows"]:
        line = [row["family"], row["direction"], row["layout"].replace("_", "-")]
        if row["status"] != "ok":
            cells.append([*line, row["status"], *[""] * (len(COLUMNS) - len(line) - 1)])
            continue
        spread = f"{row['added_p20_s']:+.1f} to {row['added_p80_s']:+.1f}"
        line += [f"{row['inductor_s']:.1f}", f"{row['ours_s']:.1f}", f"{row['added_s']:+.1f}", spread]
        cells.append([*line, str(len(row["seconds"]["ours"]))])
    return cells


def notes(document: Mapping[str, Any]) -> list[str]:
    """Return what went wrong, and what was left out."""
    lines = []
    for row in document["rows"]:
        name = network.setting_of(row)
        lines += [f"{row['status']} {name}, {who}: {text}" for who, text in row["errors"].items()]
    if document["left_out"]:
        lines.append(f"not measured, for lack of time: {', '.join(document['left_out'])}")
    return lines
