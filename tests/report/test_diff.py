"""`--diff`: what changed since an earlier report, and whether it got worse."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from reports import fixed

from eca_triton.report.diff import NotComparableError, compare_reports, load_report

Answer = dict[str, Any]


def now() -> Answer:
    return fixed().as_dict()


def earlier(change: Callable[[Answer], object]) -> Answer:
    report = copy.deepcopy(now())
    change(report)
    return report


def test_the_same_report_changed_nothing() -> None:
    diff = compare_reports(now(), now())
    assert (diff.lines(), diff.worse) == (["nothing changed"], ())


def test_plans_and_totals_that_changed_are_listed() -> None:
    old = earlier(
        lambda report: (
            report["sites"][0].update(plan="gate"), report["totals"].update(bytes_after=3 * 10**9),
            report["sites"].append(report["sites"][0] | {"name": "gone", "lowered": False}),
        )
    )  # fmt: skip
    diff = compare_reports(old, now())
    assert diff.changes == ("layer1.0.se: gate -> block", "gone: gate -> absent")
    assert diff.totals == ("bytes_after: 3000000000 -> 1400000000",)
    assert diff.worse == ()


def test_reports_of_another_mode_do_not_compare() -> None:
    with pytest.raises(NotComparableError, match="mode: 'max-autotune' then, 'default' now"):
        compare_reports(earlier(lambda report: report.update(mode="max-autotune")), now())


def test_a_report_from_before_there_were_modes_is_of_the_default_one(tmp_path: Path) -> None:
    path = tmp_path / "old.json"
    path.write_text(json.dumps(earlier(lambda report: report.pop("mode"))))
    assert compare_reports(load_report(path), now()).lines() == ["nothing changed"]


def test_a_site_that_is_not_lowered_any_more_is_worse() -> None:
    old = earlier(lambda report: report["sites"][2].update(plan="block", reason=None, lowered=True))
    assert compare_reports(old, now()).worse == ("layer3.0.se is not lowered any more",)


def test_a_second_call_of_a_module_is_a_site_of_its_own() -> None:
    old = earlier(lambda report: report["sites"].insert(1, dict(report["sites"][0])))
    assert compare_reports(old, now()).worse == ("layer1.0.se #2 is not lowered any more",)


def test_more_bytes_are_worse() -> None:
    old = earlier(lambda report: report["totals"].update(bytes_after=10**9))
    assert compare_reports(old, now()).worse == ("bytes_after rose by 40.00%",)


def test_a_report_without_a_target_compares_in_its_sites() -> None:
    old = earlier(
        lambda report: (report.update(target=None), report["totals"].update(bytes_after=None))
    )  # fmt: skip
    assert compare_reports(old, now()).worse == ()


@pytest.mark.parametrize("key", ["model", "inputs", "dtype", "training", "target"])
def test_another_question_does_not_compare(key: str) -> None:
    with pytest.raises(NotComparableError, match=f"^{key}: 'other' then, "):
        compare_reports(earlier(lambda report: report.update({key: "other"})), now())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda report: report.update(schema=99), "schema: expected 1, got 99"),
        (lambda report: report.pop("sites"), "sites: missing"),
        (lambda report: report["sites"][1].pop("plan"), r"sites\[1\].plan: missing"),
        (lambda report: report["totals"].update(bytes_after="2 GB"), "totals.bytes_after: expected a whole"),
    ],
)
def test_a_file_that_is_no_report_is_refused_by_its_key(
    tmp_path: Path, change: Callable[[Answer], object], message: str
) -> None:
    path = tmp_path / "old.json"
    path.write_text(json.dumps(earlier(change)))
    with pytest.raises(NotComparableError, match=rf"old.json: {message}"):
        load_report(path)


@pytest.mark.parametrize("text", ["", "[]", '{"schema": 1'])
def test_so_is_one_that_is_no_object(tmp_path: Path, text: str) -> None:
    path = tmp_path / "old.json"
    path.write_text(text)
    with pytest.raises(NotComparableError, match=r"old.json: "):
        load_report(path)
    with pytest.raises(NotComparableError, match=r"missing.json: "):
        load_report(tmp_path / "missing.json")
