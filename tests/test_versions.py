"""`make test-version` pins what belongs together, and what is said of versions is what is pinned."""

from __future__ import annotations

import re

import pytest
from versions import FILES, ROOT, TORCH, constraints, pin

OLDEST, NEWEST = (path.read_text() for path in FILES)


@pytest.mark.parametrize("torch", TORCH)
def test_another_torch_has_the_newest_constraints_but_for_what_belongs_to_it(torch: str) -> None:
    changed = {"torch": torch, **TORCH[torch]}
    text = constraints(torch)
    assert {package: pin(text, package) for package in changed} == changed
    others = [set(each.splitlines()) for each in (text, NEWEST)]
    assert len(others[0] ^ others[1]) == 2 * len(changed)


@pytest.mark.parametrize("text", [OLDEST, NEWEST], ids=["oldest", "newest"])
def test_the_ends_are_the_committed_files(text: str) -> None:
    assert constraints(pin(text, "torch")) == text


def test_another_version_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"torch must be one of 2\.11\.0, .*, got '2\.10\.0'"):
        constraints("2.10.0")


def test_torch_in_the_metadata_begins_where_tests_do() -> None:
    assert f'"torch>={pin(OLDEST, "torch").rpartition(".")[0]}"' in (ROOT / "pyproject.toml").read_text()


def test_the_table_of_what_was_run_has_every_version_and_no_other() -> None:
    rows = re.findall(r"^\| (\d+\.\d+\.\d+) ", (ROOT / "docs" / "versions.md").read_text(), re.MULTILINE)
    assert set(rows) == {pin(text, "torch") for text in (OLDEST, NEWEST)} | {*TORCH}


def test_python_in_the_metadata_is_what_was_run() -> None:
    listed = re.findall(r"Programming Language :: Python :: (3\.\d+)", (ROOT / "pyproject.toml").read_text())
    table = (ROOT / "docs" / "versions.md").read_text()
    assert listed
    assert all(re.search(rf"\b{re.escape(version)}\b", table) for version in listed)
