"""Where tables are, which counts more, and that nothing about a file or a directory ever stops a run."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from tuned import H200, entry, forward, key_of, table, written

from eca_triton.tuning import store
from eca_triton.tuning.choice import choose
from eca_triton.tuning.config import Choice
from eca_triton.tuning.key import Key
from eca_triton.tuning.table import serialize

pytestmark = pytest.mark.usefixtures("table_folder")

PROBLEM, OTHER = forward(128, 256, 3136), forward(128, 1024, 196)
KEY = key_of(PROBLEM)
TWO_PASS = Choice("two_pass", None)


def lookup(key: Key, may_read: bool = True) -> Choice | None:
    """What was tuned for a key."""
    found = store.in_force(may_read).table.get(key)
    return None if found is None else found.choice


# Where, and in which order.


def test_the_users_table_is_where_xdg_or_our_variable_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    assert store.user_table() == Path(os.environ["ECA_TRITON_CACHE_DIR"], "tuned.json")
    monkeypatch.setenv("ECA_TRITON_CACHE_DIR", "~/tables")
    assert store.user_table() == Path("/home/ada/tables/tuned.json")
    monkeypatch.setenv("ECA_TRITON_CACHE_DIR", "")
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/cache/ada")
    assert store.user_table() == Path("/var/cache/ada/eca_triton/tuned.json")
    for nothing in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", nothing)
        assert store.user_table() == Path("/home/ada/.cache/eca_triton/tuned.json")


def test_without_a_home_the_table_is_in_a_folder_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ECA_TRITON_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    assert store.user_table().is_absolute()
    assert str(os.getuid()) in store.user_table().parent.name


def test_the_users_entries_count_more_than_shipped_ones(
    table_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(table_folder / "shipped" / "h200.json", serialize(table(PROBLEM, OTHER)))
    assert lookup(KEY) == choose(PROBLEM)
    store.save({KEY: entry(TWO_PASS)})
    assert lookup(KEY) == TWO_PASS
    assert lookup(key_of(OTHER)) == choose(OTHER)
    monkeypatch.setenv("ECA_TRITON_TUNED", "shipped")
    assert lookup(KEY) == choose(PROBLEM)
    monkeypatch.setenv("ECA_TRITON_TUNED", "off")
    assert lookup(KEY) is None
    monkeypatch.setenv("ECA_TRITON_TUNED", "user")
    assert lookup(KEY) == TWO_PASS


def test_a_wrong_variable_reads_nothing_and_says_so_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store.save(table(PROBLEM))
    monkeypatch.setenv("ECA_TRITON_TUNED", "yes")
    assert lookup(KEY) is lookup(KEY) is None
    assert [record.getMessage() for record in caplog.records] == [
        "ECA_TRITON_TUNED must be one of user, shipped, off, got 'yes': no table is read"
    ]


# When it is read.


def test_a_table_is_read_once_and_again_after_reload_or_save(table_folder: Path) -> None:
    assert lookup(KEY) is None
    path = written(store.user_table(), serialize(table(PROBLEM)))
    assert lookup(KEY) is None
    store.reload()
    assert lookup(KEY) == choose(PROBLEM)
    path.write_text(serialize({KEY: entry(TWO_PASS)}))
    assert lookup(KEY) == choose(PROBLEM)
    store.save(table(OTHER))
    assert lookup(KEY) == TWO_PASS


def test_nothing_is_read_where_nothing_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    store.save(table(PROBLEM))
    with monkeypatch.context() as patch:
        patch.setattr(store, "load", None)
        assert lookup(KEY, may_read=False) is None
    assert lookup(KEY) == choose(PROBLEM)
    monkeypatch.setattr(store, "load", None)
    assert lookup(KEY, may_read=False) == choose(PROBLEM)


def test_the_fingerprint_is_that_of_the_choices(table_folder: Path) -> None:
    assert store.fingerprint() == ""
    store.save(table(PROBLEM))
    first = store.fingerprint()
    store.save({KEY: entry(choose(PROBLEM), time_us=3.0)})
    assert store.fingerprint() == first != ""
    store.save({KEY: entry(TWO_PASS)})
    assert store.fingerprint() != first


# What cannot be read.


def below_a_file(path: Path) -> None:
    path.parent.rmdir()
    path.parent.write_text("")


WHOLE = serialize(table(PROBLEM))
BROKEN: dict[str, Callable[[Path], object]] = {
    "directory": Path.mkdir,
    "in a directory that is a file": below_a_file,
    "pipe": os.mkfifo,
    "link to itself": lambda path: path.symlink_to(path),
    "no text": lambda path: path.write_bytes(b"\xff\xfe\x00"),
    "too large": lambda path: path.write_text(" " * (store.MAX_BYTES + 1)),
    "empty": lambda path: path.write_text(""),
    "cut off": lambda path: path.write_text(WHOLE[:-40]),
    "of tomorrow": lambda path: path.write_text(WHOLE.replace(": 1,", ": 2,")),
}


@pytest.mark.parametrize("make", BROKEN.values(), ids=BROKEN)
def test_a_broken_table_is_ignored_with_one_warning(
    make: Callable[[Path], object], caplog: pytest.LogCaptureFixture
) -> None:
    store.user_table().parent.mkdir()
    make(store.user_table())
    assert lookup(KEY) is None
    assert store.fingerprint() == ""
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert str(store.user_table()) in record.getMessage()


def test_nothing_is_written_that_would_not_be_read(
    table_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.save(table(PROBLEM))
    before = store.user_table().read_bytes()
    monkeypatch.setattr(store, "MAX_BYTES", len(before))
    store.save(table(PROBLEM))
    with pytest.raises(OSError, match=f"over {len(before)}"):
        store.save(table(OTHER))
    with pytest.raises(OSError, match=f"over {len(before)}"):
        store.export(table(PROBLEM, OTHER), table_folder / "exported.json")
    assert store.user_table().read_bytes() == before
    assert not (table_folder / "exported.json").exists()


def test_a_bad_entry_costs_one_warning_and_no_other_entry(caplog: pytest.LogCaptureFixture) -> None:
    document = json.loads(serialize(table(PROBLEM)))
    document["gpus"][H200.name] |= {"nonsense": {}, "more": {}}
    written(store.user_table(), json.dumps(document))
    assert lookup(KEY) == choose(PROBLEM)
    (record,) = caplog.records
    assert "has 2 entries that are ignored" in record.getMessage()


def test_a_problem_is_told_once_however_often_tables_are_read(caplog: pytest.LogCaptureFixture) -> None:
    path = written(store.user_table(), "nonsense")
    for _ in range(3):
        assert lookup(KEY) is None
        store.reload()
    assert len(caplog.records) == 1
    path.write_text("[]")
    assert lookup(KEY) is None
    assert len(caplog.records) == 2
