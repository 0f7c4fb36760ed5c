"""`python -m eca_triton tune-cache`: tables are shown, merged, cleared and exported, with an exit code."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from tuned import H200, entry, forward, key_of, table

from eca_triton.__main__ import main
from eca_triton.tuning import store
from eca_triton.tuning.choice import choose
from eca_triton.tuning.config import Choice
from eca_triton.tuning.table import parse, serialize

pytestmark = pytest.mark.usefixtures("table_folder")

PROBLEM, OTHER = forward(128, 256, 3136), forward(128, 1024, 196)
TWO_PASS = {key_of(PROBLEM): entry(Choice("two_pass", None))}


def run(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 0) -> str:
    """What a command prints: to stdout if it exits with 0, else to stderr."""
    assert main(["tune-cache", *map(str, arguments)]) == code
    out, err = capsys.readouterr()
    return out if code == 0 else err


def test_show_lists_the_configs_in_force_with_what_they_gain(capsys: pytest.CaptureFixture[str]) -> None:
    store.save(table(PROBLEM))
    heading, line = run(capsys, "show").splitlines()
    assert heading.split()[:4] == ["GPU", "key", "kernel", "config"]
    assert line.startswith(f"{H200.name}  {key_of(PROBLEM)}  tile    block_c=8 ")
    assert line.split()[-3:] == ["41.5", "83.0", "100.0%"]


def test_show_as_json_holds_all_that_the_table_says(capsys: pytest.CaptureFixture[str]) -> None:
    path = store.save(table(PROBLEM))
    answer = json.loads(run(capsys, "show", "--json"))
    assert answer["files"] == [str(path)]
    (shown,) = answer["entries"]
    document = json.loads(path.read_text())["gpus"][H200.name][str(key_of(PROBLEM))]
    assert shown == {"gpu": H200.name, "key": str(key_of(PROBLEM)), **document}


def test_show_of_nothing_says_where_it_looked(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(capsys, "show") == f"no tuned configs in {store.user_table()}\n"
    monkeypatch.setenv("ECA_TRITON_TUNED", "off")
    assert run(capsys, "show") == "no tuned configs in use: ECA_TRITON_TUNED=off\n"


def test_show_of_a_file_asks_for_no_other(table_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store.save(table(OTHER))
    file = store.save(table(PROBLEM), path=table_folder / "tuned.json")
    answer = json.loads(run(capsys, "show", file, "--json"))
    assert [each["key"] for each in answer["entries"]] == [str(key_of(PROBLEM))]


def test_merge_prefers_files_to_the_table_and_later_files_to_earlier(
    table_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = store.save(table(PROBLEM), path=table_folder / "one.json")
    two = store.save(TWO_PASS, path=table_folder / "two.json")
    store.save(table(PROBLEM, OTHER))
    assert run(capsys, "merge", one, two) == f"configs merged into {store.user_table()}: 1\n"
    assert store.load(store.user_table())[0] == table(OTHER) | TWO_PASS


@pytest.mark.parametrize("text", ["nonsense", '{"schema": 1, "gpus": {"NVIDIA H200": {"nonsense": {}}}}'])
def test_what_is_no_table_or_has_a_bad_entry_is_not_merged(
    table_folder: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    good = store.save(table(PROBLEM), path=table_folder / "good.json")
    bad = table_folder / "bad.json"
    bad.write_text(text)
    for command in (("merge", good, bad), ("show", bad)):
        assert str(bad) in run(capsys, *command, code=2)
    assert not store.user_table().exists()


def test_a_file_that_is_not_there_is_told(table_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (("merge", table_folder / "none.json"), ("export", table_folder / "out.json")):
        assert "No such file" in run(capsys, *command, code=1)
    assert not (table_folder / "out.json").exists()


def test_clear_deletes_the_table_and_says_if_there_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    path = store.save(table(PROBLEM))
    assert run(capsys, "clear") == f"deleted {path}\n"
    assert run(capsys, "clear") == f"there is no {path}\n"


def test_export_writes_the_users_table_as_one_that_can_be_shipped(
    table_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store.save(table(PROBLEM, OTHER))
    file = table_folder / "shipped" / "h200.json"
    file.parent.mkdir()
    assert run(capsys, "export", file) == f"configs written to {file}: 2\n"
    assert parse(file.read_text()) == (table(PROBLEM, OTHER), [])
    store.clear()
    assert store.in_force(may_read=True).table[key_of(OTHER)].choice == choose(OTHER)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_directory_that_cannot_be_written_is_told(
    table_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = store.save(table(PROBLEM), path=table_folder / "tuned.json")
    store.user_table().parent.mkdir(mode=0o500)
    assert "Permission denied" in run(capsys, "merge", file, code=1)


def test_a_table_that_is_shipped_with_the_package_is_whole() -> None:
    for path in (Path(store.__file__).parent / "tables").glob("*.json"):
        found, problems = store.load(path)
        assert found
        assert not problems
        assert path.read_text() == serialize(found)
