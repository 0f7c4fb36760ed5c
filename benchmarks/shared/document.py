"""What every command's results are made of: JSON documents, medians and their bands, tables for pages."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

NOT_MEASURED = "-"


def percentile(samples: Sequence[float], share: float) -> float:
    """The value below which a share of the samples lies, linear between neighbours; 0.5 is the median.

    Raises:
        ValueError: there are no samples.
    """
    if not samples:
        raise ValueError("a percentile needs at least one sample")
    ordered = sorted(samples)
    place = share * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def band(values: Sequence[float]) -> dict[str, float]:
    """The median, and the ends of the middle 60 %."""
    return {name: percentile(values, share) for name, share in (("median", 0.5), ("p20", 0.2), ("p80", 0.8))}


def save(document: Mapping[str, Any], path: Path) -> None:
    """Write JSON, one line per row, in one step: whoever reads sees the old file or the new one."""
    text = json.dumps({**document, "rows": []}, indent=1)
    lines = ",\n  ".join(json.dumps(row, allow_nan=False) for row in document["rows"])
    text = text.replace('"rows": []', f'"rows": [\n  {lines}\n ]')
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(text + "\n")
    partial.replace(path)


def load(path: Path, command: str) -> dict[str, Any]:
    """Return what `save` wrote.

    Raises:
        ValueError: the file is no JSON of this command.
    """
    document = json.loads(path.read_text())
    if not isinstance(document, dict) or document.get("command") != command:
        raise ValueError(f"{path} was not written by `python -m benchmarks {command}`")
    return document


def heading(document: Mapping[str, Any]) -> str:
    """One line: on what, when, and how much of it."""
    machine = document["machine"]
    left = len(document["left_out"])
    return (
        f"{machine['gpu']}, driver {machine['driver']}, torch {machine['torch']}, "
        f"Triton {machine['triton']}, {document['date']}: {len(document['rows'])} rows"
        + (f", {left} not measured" if left else "")
    )


def markdown(columns: Sequence[str], cells: Iterable[Sequence[str]], text: Collection[str]) -> str:
    """A table for a page; columns other than those of `text` are set to the right."""
    rule = ["---" if name in text else "--:" for name in columns]
    return "\n".join(f"| {' | '.join(line)} |" for line in (columns, rule, *cells))
