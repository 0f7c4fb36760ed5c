"""What changed since an earlier `--json` of the same model: plans, totals, and whether it got worse."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .result import SCHEMA

# Another value of one of these is another question: figures cannot be compared.
SAME = ("model", "inputs", "dtype", "training", "mode")


class NotComparableError(Exception):
    """Two reports do not compare; the message names the key."""


@dataclass(frozen=True)
class Diff:
    """Lines for people, and what got worse, on which the command exits with 3.

    Attributes:
        changes: Sites whose plan changed, that came or went.
        totals: Totals that changed, as "name: before -> after".
        worse: Sites that are not lowered any more, and `bytes_after` if it rose.
    """

    changes: tuple[str, ...]
    totals: tuple[str, ...]
    worse: tuple[str, ...]

    def as_dict(self) -> dict[str, list[str]]:
        """Plain values, under the names of the attributes."""
        return {name: list(lines) for name, lines in vars(self).items()}

    def lines(self) -> list[str]:
        """All of it as text."""
        return [*self.changes, *self.totals, *(f"worse: {line}" for line in self.worse)] or [
            "nothing changed"
        ]


def load_report(path: Path) -> dict[str, Any]:
    """The object that an earlier `--json` printed.

    Raises:
        NotComparableError: It cannot be read or is no such object; the message names file and key.
    """
    try:
        report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(report, dict):
            report.setdefault("mode", "default")  # of reports from before there was a choice
        _check(report)
    except (OSError, ValueError, NotComparableError) as error:
        raise NotComparableError(f"{path}: {error}") from error
    return report


def compare_reports(old: Mapping[str, Any], new: Mapping[str, Any]) -> Diff:
    """Compare two objects of `Report.as_dict`.

    Raises:
        NotComparableError: They are of another model, input, mode or target; the message names the key.
    """
    for key in SAME:
        if old[key] != new[key]:
            raise NotComparableError(f"{key}: {old[key]!r} then, {new[key]!r} now")
    if None not in (old["target"], new["target"]) and old["target"] != new["target"]:
        raise NotComparableError(f"target: {old['target']!r} then, {new['target']!r} now")
    before, after = (_numbered(report["sites"]) for report in (old, new))
    changes = [
        f"{name}: {_plan(before.get(name))} -> {_plan(after.get(name))}"
        for name in {**before, **after}
        if _plan(before.get(name)) != _plan(after.get(name))
    ]
    totals = {name: (old["totals"].get(name), value) for name, value in new["totals"].items()}
    worse = [
        f"{name} is not lowered any more"
        for name, site in before.items()
        if site["lowered"] and not (name in after and after[name]["lowered"])
    ]
    then, now = totals["bytes_after"]
    if then is not None and now is not None and now > then:
        worse.append(f"bytes_after rose by {now / then - 1:.2%}")
    return Diff(
        tuple(changes),
        tuple(f"{name}: {then} -> {now}" for name, (then, now) in totals.items() if then != now),
        tuple(worse),
    )


def _check(report: Any) -> None:
    """Raise unless this has the keys that a comparison reads."""
    if not isinstance(report, dict):
        raise NotComparableError(f"expected one JSON object, got {type(report).__name__}")
    if report.get("schema") != SCHEMA:
        raise NotComparableError(f"schema: expected {SCHEMA}, got {report.get('schema')!r}")
    for key in (*SAME, "target", "sites", "totals"):
        if key not in report:
            raise NotComparableError(f"{key}: missing")
    if not isinstance(report["totals"], dict):
        raise NotComparableError("totals: expected an object")
    for name, total in report["totals"].items():
        if total is not None and not isinstance(total, int):
            raise NotComparableError(f"totals.{name}: expected a whole number or null, got {total!r}")
    if not isinstance(report["sites"], list):
        raise NotComparableError("sites: expected a list")
    for index, site in enumerate(report["sites"]):
        for key in ("name", "plan", "lowered", "reason"):
            if not isinstance(site, dict) or key not in site:
                raise NotComparableError(f"sites[{index}].{key}: missing")


def _numbered(sites: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Key sites by name; of a module that is called twice the second site is "name #2"."""
    seen: Counter[str] = Counter()
    named = {}
    for site in sites:
        name = str(site["name"])
        seen[name] += 1
        named[name if seen[name] == 1 else f"{name} #{seen[name]}"] = site
    return named


def _plan(site: dict[str, Any] | None) -> str:
    if site is None:
        return "absent"
    return site["plan"] if site["reason"] is None else f"{site['plan']} {site['reason']}"
