"""Figures, tables and JSON from samples: pure functions, tested without a GPU."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..shared.document import NOT_MEASURED, band
from ..shared.tensors import shape_name
from .sites import BASELINES, DIRECTIONS, OURS, Row
from .tails import TAILS

COPY = "copy"  # of the map, whose bandwidth at this size is what a kernel of these bytes could reach
TEXT_COLUMNS = ("map", "layout", "variant", "kernel", "plan")
LARGE_BYTES = 50e6  # above, the goal is bandwidth
COPY_SHARE = 0.90
SPEEDUP = {  # over stock Inductor, large maps
    "forward": {"eca": 1.45, "eca_add_relu": 1.6, "bn_eca_add_relu": 1.6},
    "backward": {"eca": 1.33, "eca_add_relu": 1.33, "bn_eca_add_relu": 1.3},
    "both": {"eca": 1.4, "eca_add_relu": 1.4, "bn_eca_add_relu": 1.3},
}
SMALL_BATCH, SMALL_BATCH_SPEEDUP = 8, 2.0

Figures = dict[str, Any]
Record = dict[str, Any]
"""One row of the JSON."""


def figures(row: Row, samples: Mapping[str, Sequence[float]]) -> dict[str, Figures]:
    """Return what a row's samples (microseconds per call; `COPY` among them) say, per contender.

    gbps: of the least bytes that the row needs, so the same share of work for each contender.
    share_of_copy: of the bandwidth of the copy.
    speedup: over stock Inductor, if it was measured.
    Samples of one index are of one round. Ratios are medians over the rounds of each round's ratio, with the
    middle 60 % of them, so that a drifting clock cancels.
    """
    found: dict[str, Figures] = {}
    for name, each in samples.items():
        moved, us = 2 * row.map_bytes if name == COPY else row.least_bytes, band(each)
        found[name] = {f"{key}_us": round(value, 3) for key, value in us.items()} | {
            "samples": len(each),
            "gbps": round(moved / us["median"] / 1e3, 1),
        }
        if name != COPY:
            work = row.least_bytes / (2 * row.map_bytes)
            found[name] |= _ratio("share_of_copy", samples[COPY], each, work)
            if "inductor" in samples:
                found[name] |= _ratio("speedup", samples["inductor"], each)
    return found


def _ratio(key: str, above: Sequence[float], below: Sequence[float], times: float = 1.0) -> Figures:
    ratios = band([times * a / b for a, b in zip(above, below, strict=True)])
    return {key if end == "median" else f"{key}_{end}": round(value, 4) for end, value in ratios.items()}


def record(row: Row, kernel: str, **more: Any) -> Record:
    """A row of the JSON: what was measured, and what `more` says came of it."""
    return {
        "shape": [row.batch, *row.shape],
        "layout": row.layout,
        "variant": row.variant,
        "direction": row.direction,
        "dtype": row.dtype,
        "taps": row.taps,
        "kernel": kernel,
        "map_bytes": row.map_bytes,
        "least_bytes": row.least_bytes,
        **more,
    }


def table(document: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Headings and cells; contenders that no row has are left out."""
    seen = {name for row in document["rows"] for name in row.get("results", {})}
    baselines = [name for name in BASELINES if name in seen]
    ours = [name for name in OURS if name in seen]
    columns = [*TEXT_COLUMNS, "copy GB/s", *(f"{name} us" for name in baselines)]
    for name in ours:
        columns += [f"{name} us", "p20-p80", "GB/s", "of copy", "p20-p80", "x Inductor", "p20-p80"]
    columns.append("goal")
    cells = []
    for row in document["rows"]:
        line = [shape_name(row["shape"]), row["layout"].replace("_", "-")]
        line += [_what(row["variant"], row["direction"]), row["kernel"], row["plan"] or NOT_MEASURED]
        if row["status"] != "ok":
            cells.append([*line, row["status"], *[""] * (len(columns) - len(line) - 1)])
            continue
        results = row["results"]
        line.append(_cell(results.get(COPY), "gbps", "{:.0f}"))
        line += [_cell(results.get(name), "median_us", "{:.1f}") for name in baselines]
        for name in ours:
            result = results.get(name)
            line += [
                _cell(result, "median_us", "{:.1f}"),
                f"{result['p20_us']:.1f}-{result['p80_us']:.1f}" if result else NOT_MEASURED,
                _cell(result, "gbps", "{:.0f}"),
                _cell(result, "share_of_copy", "{:.0%}"),
                _spread(result, "share_of_copy", "{:.0%}"),
                _cell(result, "speedup", "{:.2f}"),
                _spread(result, "speedup", "{:.2f}"),
            ]
        goal = SPEEDUP[row["direction"]].get(row["variant"])
        line.append(f"{goal:.2f}" if goal and row["map_bytes"] >= LARGE_BYTES else "")
        cells.append(line)
    return columns, cells


def notes(document: Mapping[str, Any]) -> list[str]:
    """Return what the table cannot say: what failed and why, what was left out, which goals were met."""
    lines = []
    for row in document["rows"]:
        name = _name(row)
        for contender, checked in row.get("checks", {}).items():
            if not checked["passed"]:
                error, allowed = float(checked["error"]), checked["allowed"]
                where = "" if checked["tensor"] == "out" else f" of {checked['tensor']}'s gradient"
                lines.append(f"FAIL {name}: error of {contender}{where} {error:.3g}, allowed {allowed:.3g}")
        lines += [f"error {name}: {contender}: {text}" for contender, text in row.get("errors", {}).items()]
    left = document["left_out"]
    if left:
        lines.append(f"not measured, {len(left)} rows: {', '.join(left)}")
    return lines + goals(document["rows"])


def goals(rows: Iterable[Record]) -> list[str]:
    """Each goal, in how many of the rows it speaks of it was met, and the worst of them."""
    measured = [row for row in rows if row["status"] == "ok"]
    large = [row for row in measured if row["map_bytes"] >= LARGE_BYTES]
    forward = [row for row in measured if row["direction"] == "forward"]
    small = [row for row in forward if row["shape"][0] <= SMALL_BATCH]
    large_forward = [row for row in large if row["direction"] == "forward"]
    lines = []
    for name in OURS:
        lines += _goal(name, "share_of_copy", COPY_SHARE, large_forward, "of copy bandwidth, S >= 50 MB")
        for direction, variants in SPEEDUP.items():
            for variant, least in variants.items():
                rows = [row for row in large if (row["direction"], row["variant"]) == (direction, variant)]
                what = f"x Inductor, {_what(variant, direction)}, S >= 50 MB"
                lines += _goal(name, "speedup", least, rows, what)
        lines += _goal(name, "speedup", SMALL_BATCH_SPEEDUP, small, f"x Inductor, batch <= {SMALL_BATCH}")
    return lines


def _what(variant: str, direction: str) -> str:
    return TAILS[variant].label + DIRECTIONS[direction]


def _name(row: Record) -> str:
    name = f"{shape_name(row['shape'])} {row['layout']} {row['variant']}"
    return name if row["direction"] == "forward" else f"{name} {row['direction']}"


def _goal(name: str, figure: str, least: float, rows: Iterable[Record], what: str) -> list[str]:
    with_figure = [row for row in rows if figure in row["results"].get(name, {})]
    if not with_figure:
        return []
    worst = min(with_figure, key=lambda row: float(row["results"][name][figure]))
    met = sum(row["results"][name][figure] >= least for row in with_figure)
    verdict = "met" if met == len(with_figure) else "MISSED"
    return [
        f"goal {verdict}: {name} at least {least:.2f} {what}: {met} of {len(with_figure)} rows, "
        f"worst {worst['results'][name][figure]:.2f} at {_name(worst)}"
    ]


def _cell(result: Mapping[str, Any] | None, figure: str, form: str) -> str:
    return form.format(result[figure]) if result and figure in result else NOT_MEASURED


def _spread(result: Mapping[str, Any] | None, figure: str, form: str) -> str:
    return "-".join(_cell(result, figure + end, form) for end in ("_p20", "_p80"))
