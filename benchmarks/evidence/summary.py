"""One screen of what `python -m benchmarks evidence` found, from the files of its folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from eca_triton.autotune.search import LEAST_GAIN
from eca_triton.tuning.table import parse

from ..network import compiling
from ..network import figures as network_figures
from ..op import bandwidth, figures
from ..shared.document import load, percentile
from . import goals

Document = dict[str, Any]


def summary(folder: Path) -> list[str]:
    """Lines; a part whose file is missing or broken off is left out, for the list of steps says why."""
    document = load(folder / "evidence.json", "evidence")
    machine = document["machine"]
    where = machine["cpu"] if machine["gpu"] == "none" else f"{machine['gpu']}, driver {machine['driver']}"
    versions = f"torch {machine['torch']}, Triton {machine['triton']}, eca_triton {machine['eca_triton']}"
    lines = [
        f"{where}, {versions}, {document['date']}",
        "",
        *(_step(row) for row in document["rows"]),
        "",
    ]
    for part in (_copy, _smoke, _op, _network, _tuned, _host, _compile):
        try:
            lines += part(folder)
        except (OSError, ValueError, KeyError, ElementTree.ParseError):
            continue
    if document["left_out"]:
        lines.append(f"left out, for there is no CUDA device: {', '.join(document['left_out'])}")
    return lines


def _step(row: Document) -> str:
    if "seconds" not in row:
        return f"  {row['step']:10} {row['status']}: {row['why']}"
    code = f", exit code {row['code']}" if row["code"] else ""
    return f"  {row['step']:10} {row['status']}{code}, {row['seconds']:.0f} s"


def _copy(folder: Path) -> Iterator[str]:
    rows = load(folder / "copy.json", "copy")["rows"]
    shown = (f"{cells[3]} GB/s at {cells[0]} MB" for cells in bandwidth.table({"rows": rows}))
    yield f"copy       {', '.join(shown)}"


def _smoke(folder: Path) -> Iterator[str]:
    suites = list(ElementTree.parse(folder / "smoke.xml").iter("testsuite"))
    counts = {
        name: sum(int(suite.get(name, 0)) for suite in suites)
        for name in ("tests", "failures", "errors", "skipped")
    }
    passed = counts["tests"] - counts["failures"] - counts["errors"] - counts["skipped"]
    failed = counts["failures"] + counts["errors"]
    yield f"smoke      {passed} tests passed, {failed} failed, {counts['skipped']} skipped"


def _op(folder: Path) -> Iterator[str]:
    document = load(folder / "op.json", "op")
    ok = sum(row["status"] == "ok" for row in document["rows"])
    yield f"op         {ok} rows of {len(document['rows'])} agree; {len(document['left_out'])} were left out"
    yield from (f"  {line}" for line in figures.goals(document["rows"]))


def _network(folder: Path) -> Iterator[str]:
    document = load(folder / "network.json", "network")
    for row in document["rows"]:
        yield f"network    {network_figures.setting_name(row)}: {_ratios(row)}"
    problems = network_figures.notes(document)
    yield from (f"  {line}" for line in (*problems, *goals.verdicts([document])))


def _ratios(row: Document) -> str:
    taxes = [
        f"{row['tax'][who]['median']:+.1%} {name}"
        for who, name in (("inductor", "stock"), ("ours", "ours"))
        if who in row.get("tax", {})
    ]
    found = [f"ECA tax {', '.join(taxes)}"] if taxes else []
    if "ours" in row.get("speedup", {}):
        images = row["results"]["eca/ours"]["images_per_s"]
        found += [f"{row['speedup']['ours']['median']:.3f}x stock torch.compile", f"{images:.0f} images/s"]
    return "; ".join(found) or row["status"]


def _tuned(folder: Path) -> Iterator[str]:
    path, steps = folder / "tuned.json", load(folder / "evidence.json", "evidence")["rows"]
    if not path.exists() and ("tune", "ok") in ((row["step"], row["status"]) for row in steps):
        yield f"tuned      0 keys: none takes {100 * LEAST_GAIN:.0f} % less time than the heuristic's choice"
        return
    table, _ = parse(path.read_text())
    gains = [entry.heuristic_us / entry.time_us for entry in table.values()]
    figures = f"{percentile(gains, 0.5):.2f}x as fast as the heuristic's choice, at best {max(gains):.2f}x"
    yield f"tuned      {len(gains)} keys: {figures}"


def _host(folder: Path) -> Iterator[str]:
    rows = load(folder / "host.json", "host")["rows"]
    for row in rows:
        if row["call"] == "eca_triton.eca":
            yield f"host       {row['call']} {row['how']}: {row['median_us']:.1f} us"


def _compile(folder: Path) -> Iterator[str]:
    document = load(folder / "compile.json", "compile")
    for cells in compiling.table(document):
        figures = f"stock {cells[3]} s, ours {cells[4]} s" if cells[4] else cells[3]
        yield f"compile    {' '.join(cells[:3])}: {figures} ({document['how']})"
