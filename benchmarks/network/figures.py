"""Ratios, tables and timm's columns from times of whole networks: pure, tested without a GPU."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..shared.document import NOT_MEASURED, band, markdown
from ..shared.twins import KINDS, model_name

Record = dict[str, Any]
"""One row of the JSON: a family in one setting."""
Band = dict[str, float]
"""median, p20, p80"""

# Of a twin, the contender that a contender's ratios are against: the same compiler without our pass.
AGAINST = {
    "eager": "eager", "inductor": "inductor", "ours": "inductor", "max-autotune": "max-autotune",
    "ours-max-autotune": "max-autotune",
}  # fmt: skip

TAXES = {"eca": "tax", "se": "se_tax", "cbam": "cbam_tax"}
"""By kind, the key of what its attention adds to the plain network."""
OVER = {"se": "x_se", "cbam": "x_cbam"}
"""By kind, the key of its time over the ECA network's."""
RATIOS = ("speedup", *OVER.values())
"""Keys of the ratios that ECA networks alone have."""
PREFIX = {"inference": "infer", "training": "train"}
TIMM = ("samples_per_sec", "step_time", "batch_size", "img_size")
COUNTS = {"infer": ("infer_gmacs", "infer_macts"), "train": ()}  # timm's, too, of inference alone
MORE = (
    "contender", "kind", "family", "layout", "dtype", "step_time_p20", "step_time_p80", "samples", "tax",
    "tax_p20", "tax_p80", "speedup", "speedup_p20", "speedup_p80", "x_se", "x_se_p20", "x_se_p80",
    "x_cbam", "x_cbam_p20", "x_cbam_p80", "gpu", "torch", "triton",
)  # fmt: skip


def figures(times: Mapping[str, Sequence[float]], batch: int) -> dict[str, Any]:
    """Return what microseconds by entry ("eca/inductor", ...), taken in turn, say.

    results: per entry its median step, the middle 60 %, and images per second.
    tax: per contender, ECA's time over the plain twin's under the same compiler, less 1.
    se_tax, cbam_tax: the same of the networks with SE and CBAM.
    x_se, x_cbam: per contender of ECA, their time under the same compiler over its own.
    speedup: per contender of ECA, the time of stock Inductor (max-autotune for ours under it) over its own.
    Ratios are medians over the rounds of each round's ratio, so that a drifting clock cancels.
    """
    found: dict[str, Any] = {key: {} for key in ("results", *TAXES.values(), *RATIOS)}
    for name, each in times.items():
        us = band(each)
        found["results"][name] = {f"{key}_us": round(value, 3) for key, value in us.items()} | {
            "samples": len(each),
            "images_per_s": round(batch / us["median"] * 1e6, 2),
        }
    for contender, against in AGAINST.items():
        for kind, key in TAXES.items():
            ratio = _ratio(times, f"{kind}/{contender}", f"plain/{against}", less=1.0)
            found[key] |= {contender: ratio} if ratio else {}
        for kind, key in OVER.items():
            ratio = _ratio(times, f"{kind}/{against}", f"eca/{contender}")
            found[key] |= {contender: ratio} if ratio else {}
        base = "max-autotune" if contender == "ours-max-autotune" else "inductor"
        ratio = _ratio(times, f"eca/{base}", f"eca/{contender}") if contender != base else None
        found["speedup"] |= {contender: ratio} if ratio else {}
    return found


def _ratio(times: Mapping[str, Sequence[float]], above: str, below: str, less: float = 0.0) -> Band | None:
    if not (times.get(above) and times.get(below)):
        return None
    ratios = band([a / b - less for a, b in zip(times[above], times[below], strict=True)])
    return {key: round(value, 4) for key, value in ratios.items()}


COLUMNS = (
    "network", "step", "layout", "contender", "images/s", "ms", "p20-p80", "tax", "p20-p80",
    "x Inductor", "p20-p80", "x SE", "p20-p80", "x CBAM", "p20-p80",
)  # fmt: skip
TEXT = ("network", "step", "layout", "contender")


def table(document: Mapping[str, Any]) -> list[list[str]]:
    """Cells under `COLUMNS`: a line for each entry that was measured, twins below their ECA network."""
    cells = []
    for row in document["rows"]:
        for entry, result in sorted(row.get("results", {}).items(), key=_order):
            kind, contender = entry.split("/")
            bands = _bands(row, kind, contender)
            cells.append(
                [
                    model_name(row["family"], kind),
                    row["direction"],
                    row["layout"].replace("_", "-"),
                    contender,
                    f"{result['images_per_s']:.0f}",
                    f"{result['median_us'] / 1e3:.2f}",
                    f"{result['p20_us'] / 1e3:.2f}-{result['p80_us'] / 1e3:.2f}",
                    *_percent(bands["tax"]),
                    *(cell for name in RATIOS for cell in _times(bands[name])),
                ]
            )
    return cells


def as_markdown(document: Mapping[str, Any]) -> str:
    """The table, for a page."""
    return markdown(COLUMNS, table(document), TEXT)


def notes(document: Mapping[str, Any]) -> list[str]:
    """Return what failed and why, and what was left out."""
    lines = []
    for row in document["rows"]:
        name = setting_name(row)
        for entry, checked in row["checks"].items():
            if not checked["passed"]:
                error, allowed = float(checked["error"]), checked["allowed"]
                lines.append(
                    f"FAIL {name} {entry}: {checked['tensor']} off by {error:.2g}, allowed {allowed:.2g}"
                )
        lines += [f"error {name} {entry}: {text}" for entry, text in row["errors"].items()]
        if row["left_out"]:
            lines.append(f"not measured, for lack of time: {name} {', '.join(row['left_out'])}")
    if document["left_out"]:
        lines.append(f"not measured: {', '.join(document['left_out'])}")
    return lines


def setting_name(row: Mapping[str, Any]) -> str:
    """A row's setting in words."""
    layout = row["layout"].replace("_", "-")
    return f"{row['family']} {row['direction']}, {row['batch']}x{row['size']}, {row['dtype']}, {layout}"


def write_csv(document: Mapping[str, Any], folder: Path) -> list[Path]:
    """network-infer.csv and network-train.csv: timm's columns first, then ours; returns what was written."""
    written = []
    for direction, prefix in PREFIX.items():
        lines = list(_csv_lines(document, direction))
        if lines:
            path = folder / f"network-{prefix}.csv"
            timm = (*(f"{prefix}_{name}" for name in TIMM), "param_count", *COUNTS[prefix])
            names = ("model", *timm, *MORE)
            with path.open("w", newline="") as file:
                writer = csv.DictWriter(file, names, lineterminator="\n")
                writer.writeheader()
                writer.writerows(lines)
            written.append(path)
    return written


def _csv_lines(document: Mapping[str, Any], direction: str) -> Iterable[dict[str, Any]]:
    """timm's step_time is milliseconds, its param_count and macts millions."""
    prefix, machine = PREFIX[direction], document["machine"]
    for row in document["rows"]:
        if row["direction"] != direction:
            continue
        for entry, result in sorted(row.get("results", {}).items(), key=_order):
            kind, contender = entry.split("/")
            yield {
                "model": model_name(row["family"], kind),
                f"{prefix}_samples_per_sec": result["images_per_s"],
                f"{prefix}_step_time": round(result["median_us"] / 1e3, 3),
                f"{prefix}_batch_size": row["batch"],
                f"{prefix}_img_size": row["size"],
                "param_count": round(row["parameters"][kind] / 1e6, 2),
                **{name: row["counts"][kind][name.removeprefix("infer_")] for name in COUNTS[prefix]},
                "contender": contender,
                "kind": kind,
                "family": row["family"],
                "layout": row["layout"],
                "dtype": row["dtype"],
                "step_time_p20": round(result["p20_us"] / 1e3, 3),
                "step_time_p80": round(result["p80_us"] / 1e3, 3),
                "samples": result["samples"],
                **_flat(_bands(row, kind, contender)),
                "gpu": machine["gpu"],
                "torch": machine["torch"],
                "triton": machine["triton"],
            }


def _bands(row: Mapping[str, Any], kind: str, contender: str) -> dict[str, Band | None]:
    """The tax of an entry and its ratios, None where it has none."""
    found = {"tax": row.get(TAXES[kind], {}).get(contender) if kind in TAXES else None}
    return found | {name: row.get(name, {}).get(contender) if kind == "eca" else None for name in RATIOS}


def _flat(bands: Mapping[str, Band | None]) -> dict[str, float]:
    parts = {"": "median", "_p20": "p20", "_p80": "p80"}
    return {name + end: band[part] for name, band in bands.items() if band for end, part in parts.items()}


def _order(item: tuple[str, Any]) -> tuple[int, int]:
    kind, contender = item[0].split("/")
    return KINDS.index(kind), list(AGAINST).index(contender)


def _percent(band: Band | None) -> list[str]:
    if band is None:
        return [NOT_MEASURED, NOT_MEASURED]
    return [f"{band['median']:+.1%}", f"{band['p20']:+.1%} to {band['p80']:+.1%}"]


def _times(band: Band | None) -> list[str]:
    if band is None:
        return [NOT_MEASURED, NOT_MEASURED]
    return [f"{band['median']:.3f}", f"{band['p20']:.3f}-{band['p80']:.3f}"]
