"""Whatever a table's file holds, one bad entry is one warning: compilations go on, and `doctor` tells it."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tuned import H200, forward, key_of, table, written

from eca_triton.__main__ import main
from eca_triton.tuning import store
from eca_triton.tuning import table as tables
from eca_triton.tuning.choice import choose
from eca_triton.tuning.table import parse, serialize

PROBLEM, OTHER = forward(128, 256, 3136), forward(128, 1024, 196)
GOOD, BAD = str(key_of(PROBLEM)), str(key_of(OTHER))
DOCUMENT = json.loads(serialize(table(PROBLEM, OTHER)))


def spoiled(path: tuple[str, ...], text: str) -> str:
    """The table with other JSON at a place in its second entry, however unlikely."""
    document = deepcopy(DOCUMENT)
    entry = document["gpus"][H200.name][BAD]
    for name in path[:-1]:
        entry = entry[name]
    entry[path[-1]] = "SPOILED"
    return json.dumps(document).replace('"SPOILED"', text)


PLACES = [("kernel",), ("config",), ("config", "block_c"), ("time_us",), ("heuristic_us",), ("versions",)]
PLACES += [("versions", "torch"), ("more",)]
VALUES = {
    "an integer of 400 digits": "9" * 400,
    "an integer of 5000 digits": "9" * 5000,
    "a negative one": "-" + "9" * 400,
    "a number that is infinite": "1e999",
    "not a number": "NaN",
    "infinite": "-Infinity",
    "lists in lists": "[" * 300 + "]" * 300,
    "objects in objects": '{"torch": ' * 300 + "1" + "}" * 300,
    "half of a character": '"\\ud800"',
    "a text that moves the cursor": '"\\u001b[2J\\u0000"',
    "a long text": '"' + "x" * 100_000 + '"',
    "nothing": "null",
    "truth": "true",
}


@pytest.mark.parametrize("text", VALUES.values(), ids=VALUES)
@pytest.mark.parametrize("place", PLACES, ids=".".join)
def test_a_bad_entry_is_one_problem_and_the_others_stay(place: tuple[str, ...], text: str) -> None:
    found, problems = parse(spoiled(place, text))
    assert found == table(PROBLEM)
    (problem,) = problems
    assert len(problem) < 1000
    assert problem.isprintable()


@pytest.mark.parametrize("text", VALUES.values(), ids=VALUES)
def test_a_compilation_and_doctor_go_on_with_one_warning(
    text: str, table_folder: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(store.user_table(), serialize(table(PROBLEM)))
    as_it_was = store.fingerprint()
    path.write_text(spoiled(("time_us",), text))
    store.reload()
    assert store.fingerprint() == as_it_was
    assert store.lookup(key_of(PROBLEM)) == choose(PROBLEM)
    (record,) = caplog.records
    assert "has 1 entries that are ignored" in record.getMessage()
    assert main(["doctor", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["tables"] == {str(path): 1}
    assert [note for note in answer["notes"] if note.startswith(str(path))] == [f"{path} {record.args[1]}"]


@pytest.mark.parametrize("error", [OverflowError, RecursionError, TypeError, KeyError, MemoryError])
def test_an_entry_that_raises_anything_is_one_problem(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = tables._entry

    def entry(key: Any, value: Any) -> Any:
        if str(key) == BAD:
            raise error("nobody thought of it")
        return right(key, value)

    monkeypatch.setattr(tables, "_entry", entry)
    found, (problem,) = parse(json.dumps(DOCUMENT))
    assert found == table(PROBLEM)
    assert BAD in problem
    assert error.__name__ in problem


anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(exclude_categories=()))
    | st.just(10**400),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)


@settings(deadline=None)
@given(key=st.text(max_size=40), place=st.sampled_from([*PLACES, ()]), value=anything)
def test_any_value_anywhere_leaves_the_others(key: str, place: tuple[str, ...], value: Any) -> None:
    if place:
        text = spoiled(place, json.dumps(value))
    else:
        document = deepcopy(DOCUMENT)
        document["gpus"][H200.name] = {GOOD: document["gpus"][H200.name][GOOD], key: value}
        text = json.dumps(document)
    found, problems = parse(text)
    assert found.items() >= table(PROBLEM).items()
    assert len(found) + len(problems) == 2


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_any_bytes_can_be_examined(data: st.DataObject, tmp_path: Path) -> None:
    whole = serialize(table(PROBLEM, OTHER)).encode()
    first, last = sorted(data.draw(st.integers(0, len(whole)), label="place") for _ in range(2))
    path = tmp_path / "tuned.json"
    path.write_bytes(whole[:first] + data.draw(st.binary(max_size=20), label="bytes") + whole[last:])
    found, problem = store.examine(path)
    assert len(found) <= 2
    assert isinstance(problem, str)
