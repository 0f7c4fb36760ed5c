"""How a table is written: merged, in turn, through links, and so that nothing ever loses it."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import signal
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tuned import H200, entry, forward, key_of, table, written

from eca_triton.tuning import files, store
from eca_triton.tuning.config import Choice
from eca_triton.tuning.table import parse, serialize

pytestmark = pytest.mark.usefixtures("table_folder")

PROBLEM, OTHER = forward(128, 256, 3136), forward(128, 1024, 196)
KEY = key_of(PROBLEM)
TWO_PASS = Choice("two_pass", None)


def names_beside(path: Path) -> list[str]:
    """Of all files where the table is."""
    return sorted(each.name for each in path.parent.iterdir())


def of_tomorrow() -> str:
    """A table with an entry that this version knows, and one that it does not."""
    document = json.loads(serialize(table(PROBLEM)))
    document["gpus"][H200.name] |= {"of tomorrow": {}}
    return json.dumps(document)


# What is written.


def test_a_table_is_private_and_merged_with_what_is_there() -> None:
    path = store.save(table(PROBLEM))
    assert path == store.user_table()
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o640)
    store.save({KEY: entry(TWO_PASS)} | table(OTHER))
    assert stat.S_IMODE(path.stat().st_mode) == 0o640, "a table keeps its mode"
    assert store.load(path)[0] == {KEY: entry(TWO_PASS)} | table(OTHER)


def test_another_file_can_be_written_which_is_not_read(table_folder: Path) -> None:
    path = store.save(table(PROBLEM), path=table_folder / "results" / "tuned.json")
    assert parse(path.read_text()) == (table(PROBLEM), [])
    assert KEY not in store.in_force(may_read=True).table


def test_clear_deletes_the_table_also_a_broken_one() -> None:
    assert not store.clear()
    store.save(table(PROBLEM))
    assert KEY in store.in_force(may_read=True).table
    assert store.clear()
    assert KEY not in store.in_force(may_read=True).table
    written(store.user_table(), "nonsense")
    assert store.clear()
    assert not store.user_table().exists()


def test_a_table_with_entries_of_another_version_is_kept_beside_the_new_one_and_none_replaces_another(
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = written(store.user_table(), of_tomorrow())
    store.save(table(OTHER))
    assert store.load(path) == (table(PROBLEM) | table(OTHER), [])
    assert path.with_name("tuned.json.unreadable").read_text() == of_tomorrow()
    assert "not a key: 'of tomorrow'" in caplog.text
    written(path, "precious")
    store.save(table(OTHER))
    assert store.load(path)[0] == table(OTHER)
    assert "not all of" in caplog.text
    assert path.with_name("tuned.json.unreadable-2").read_text() == "precious"


def test_a_table_that_may_not_be_written_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    path = store.save(table(PROBLEM))
    monkeypatch.setattr(os, "access", lambda file, how: how != os.W_OK)  # root may write everything
    with pytest.raises(PermissionError):
        store.save(table(OTHER))
    assert store.load(path)[0] == table(PROBLEM)


def _save(batches: range) -> None:
    for channels in batches:
        store.save(table(forward(128, 8 * channels, 3136)))


def test_processes_that_write_at_once_lose_nothing() -> None:
    context = multiprocessing.get_context("fork")  # which starts at once
    writers = [context.Process(target=_save, args=(range(10 * i + 1, 10 * i + 6),)) for i in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0] * 4
    assert len(store.load(store.user_table())[0]) == 20


def test_a_lock_that_is_held_is_waited_for_but_not_forever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "LOCK_SECONDS", 0.05)
    path = store.save(table(PROBLEM))
    with files.locked(path):
        for change in (lambda: store.save(table(OTHER)), store.clear, lambda: store.export({}, path)):
            with pytest.raises(OSError, match="lock"):
                change()
    assert store.load(path)[0] == table(PROBLEM)
    store.save(table(OTHER))


def test_an_exported_table_is_as_open_as_other_files(table_folder: Path) -> None:
    exported, other = table_folder / "exported.json", written(table_folder / "other", "")
    store.export(table(PROBLEM), exported)
    assert exported.stat().st_mode == other.stat().st_mode


# Links, and what is no file.


@pytest.mark.parametrize("there", [True, False], ids=["a file", "nothing yet"])
def test_a_link_in_place_of_the_table_stays_and_what_it_leads_to_is_written(
    there: bool, table_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, real = store.user_table(), table_folder / "mine" / "h200.json"
    real.parent.mkdir()
    if there:
        written(real, of_tomorrow())
    path.parent.mkdir()
    path.symlink_to(os.path.relpath(real, path.parent))
    store.save(table(OTHER))
    store.export(store.load(path)[0] | table(forward(128, 512, 784)), path)
    assert path.is_symlink()
    assert not real.is_symlink()
    assert store.load(real)[0].keys() >= table(*([PROBLEM] if there else []), OTHER).keys()
    asides = ["h200.json.unreadable"] if there else []
    assert names_beside(real) == [".h200.json.lock", "h200.json", *asides]
    assert names_beside(path) == ["tuned.json"]
    monkeypatch.setattr(files, "LOCK_SECONDS", 0.05)
    with files.locked(real), pytest.raises(OSError, match="lock"):  # who comes without the link has it, too
        store.save(table(PROBLEM))


def test_clear_deletes_a_link_and_not_what_it_leads_to(table_folder: Path) -> None:
    path, real = store.user_table(), store.save(table(PROBLEM), path=table_folder / "h200.json")
    path.parent.mkdir()
    path.symlink_to(real)
    assert store.clear()
    assert not path.is_symlink()
    assert store.load(real)[0] == table(PROBLEM)
    path.symlink_to(path)
    assert store.clear()
    assert not path.is_symlink()


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda path: path.symlink_to(path), "symbolic links"),
        (lambda path: path.symlink_to(path.parent / "absent" / "tuned.json"), "No such file or directory"),
        (lambda path: path.symlink_to(path.parent), "not a file"),
        (Path.mkdir, "not a file"),
        (os.mkfifo, "not a file"),
    ],
    ids=["link to itself", "link into no folder", "link to a folder", "folder", "pipe"],
)
def test_what_is_not_a_file_is_refused_and_stays(made: Callable[[Path], Any], message: str) -> None:
    path = store.user_table()
    path.parent.mkdir()
    made(path)
    before = path.lstat()
    with pytest.raises(OSError, match=message):
        store.save(table(PROBLEM))
    assert (path.lstat().st_mode, path.lstat().st_ino) == (before.st_mode, before.st_ino)
    assert names_beside(path) == ["tuned.json"]


def test_a_table_is_exported_into_a_pipe_as_well(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    store.export(table(PROBLEM), pipe)
    assert parse(os.read(reader, 1 << 16).decode()) == (table(PROBLEM), [])
    os.close(reader)


# Kills and failures.

# Of what is asked of the operating system, all that changes a file, or reads one.
STEPS = {
    "mkdir", "open", "flock", "scandir", "read", "write", "flush", "chmod", "fsync", "close", "__exit__",
    "replace", "rename", "link", "unlink",
}  # fmt: skip


def steps_of(action: Callable[[], Any], at: Callable[[int], None] = lambda step: None) -> list[str]:
    """Run an action and name its steps, calling `at(number)` before each."""
    steps: list[str] = []

    def profile(frame: Any, event: str, function: Any) -> None:
        of = getattr(function, "__self__", None)
        home = getattr(of, "__name__", type(of).__module__)  # a function's module, a method's class
        if event == "c_call" and home in ("posix", "fcntl", "io", "_io") and function.__name__ in STEPS:
            steps.append(function.__name__)
            at(len(steps))

    sys.setprofile(profile)
    try:
        action()
    finally:
        sys.setprofile(None)
    return steps


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fail() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def interrupt(action: Callable[[], Any], number: int, how: Callable[[], None]) -> int | None:
    """The exit code of a process that is interrupted before the step of this number."""
    child = multiprocessing.get_context("fork").Process(
        target=steps_of, args=(action, lambda step: how() if step == number else None)
    )
    child.start()
    child.join()
    return child.exitcode


@pytest.mark.parametrize("how", [kill, fail])
@pytest.mark.parametrize("action", ["save", "export"])
def test_at_every_step_the_old_table_or_the_new_one_is_in_force_and_nothing_is_lost(
    action: str, how: Callable[[], None]
) -> None:
    path = store.user_table()
    aside = path.with_name("tuned.json.unreadable")
    actions = {"save": lambda: store.save(table(OTHER)), "export": lambda: store.export(table(OTHER), path)}
    act = actions[action]
    old, new = of_tomorrow(), serialize(table(OTHER) if action == "export" else table(PROBLEM, OTHER))
    written(path, old)
    steps = steps_of(act)
    assert path.read_text() == new
    assert {"open", "write", "fsync", "replace", "flock"} <= set(steps)
    found = set()
    for number in range(1, len(steps) + 1):
        for each in path.parent.iterdir():
            each.unlink()
        written(path, old)
        code = interrupt(act, number, how)
        assert code == -signal.SIGKILL or how is fail, steps[number - 1]
        found.add(path.read_text())
        assert found <= {old, new}, f"before step {number}, {steps[number - 1]}"
        if action == "save" and path.read_text() == new:
            assert aside.read_text() == old
        if how is fail:
            assert code == 1 or path.read_text() == new, "what raised nothing has written"
            assert not [each for each in names_beside(path) if each.endswith(".unfinished")]
        store.save(table(PROBLEM))
        assert store.load(path)[0].items() >= table(PROBLEM).items()
        assert not [each for each in names_beside(path) if each.endswith(".unfinished")]
    assert found == {old, new}


def test_only_what_a_killed_writer_of_this_table_left_behind_is_deleted() -> None:
    path = store.user_table()
    ours = written(path.with_name(".tuned.json.0123abcd.unfinished"), "")
    others = [".tuned.json.two.0123abcd.unfinished", ".tuned.json.backup", "tuned.json.0123abcd.unfinished"]
    for name in others:
        written(path.with_name(name), "")
    store.save(table(PROBLEM))
    assert not ours.exists()
    assert names_beside(path) == sorted([*others, ".tuned.json.lock", "tuned.json"])
