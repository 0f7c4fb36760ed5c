"""Tuned tables as text: what is written is read back, and nothing else is believed.

Whatever a table's file holds, one bad entry is one warning: compilations go on, and `doctor` tells it.
"""

from __future__ import annotations

import json
from contextlib import nullcontext
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tuned import H200, backward, entry, forward, key_of, one_of_two, product, table, written

from eca_triton.__main__ import main
from eca_triton.tuning import store
from eca_triton.tuning import table as tables
from eca_triton.tuning.choice import choose
from eca_triton.tuning.config import FLAT, TILED, Choice
from eca_triton.tuning.problem import Problem
from eca_triton.tuning.table import Entry, choice_of, parse, serialize, versions

TABLE = table(
    forward(128, 256, 3136),
    forward(128, 256, 3136, last=True),
    forward(128, 1024, 196, last=True),
    backward(128, 256, 3136),
    backward(128, 256, 3136, last=True),
    backward(128, 1024, 196, last=True),
    product(128, 256, 3136, 64),
    *(one_of_two(step, 128, 256, 3136) for step in (*TILED, *FLAT)),
) | {key_of(forward(1, 64, 17)): entry(Choice("two_pass", None))}


def test_a_table_is_read_as_it_was_written() -> None:
    assert {key.kernel + " " + each.choice.kernel for key, each in TABLE.items()} >= {
        "forward tile", "forward lagged", "forward tile_channels_last", "forward two_pass",
        "backward tile", "backward lagged", "backward tile_channels_last",
        "product product", *(f"{step} {step}" for step in (*TILED, *FLAT)),
    }  # fmt: skip
    assert parse(serialize(TABLE)) == (TABLE, [])
    assert parse(serialize({})) == ({}, [])


def test_a_table_is_json_with_one_line_per_entry_in_one_order() -> None:
    text = serialize(TABLE)
    assert text == serialize(dict(reversed(TABLE.items())))
    document = json.loads(text)
    assert document["schema"] == 1
    assert list(document["gpus"]) == [H200.name]
    assert len([line for line in text.splitlines() if '"time_us"' in line]) == len(TABLE)
    some = document["gpus"][H200.name]["forward/bfloat16/contiguous/c256/hw3136/k5/maps2/9.0/many"]
    assert {type(value) for value in some["config"].values()} == {int}


@pytest.mark.parametrize(
    "text",
    [
        "", "\0", "{", "[]", "1", "null", '{"schema": 1}', '{"gpus": {}}', '{"schema": 2, "gpus": {}}',
        '{"schema": true, "gpus": {}}', '{"schema": 1, "gpus": []}', "[" * 200_000,
        '{"schema": ' + "1" * 5000 + ', "gpus": {}}',
    ],
    ids=lambda text: text[:30] or "empty",
)  # fmt: skip
def test_what_is_no_table_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"not JSON|not a table|schema must be 1"):
        parse(text)


PROBLEM, OTHER = forward(128, 256, 3136), forward(128, 1024, 196)
KEY, BAD = str(key_of(PROBLEM)), str(key_of(OTHER))
DOCUMENT = json.loads(serialize(table(PROBLEM, OTHER)))
VALUE = DOCUMENT["gpus"][H200.name][KEY]


def read_with(key: str = KEY, gpu: Any = H200.name, **changes: Any) -> tuple[int, str]:
    """How many entries a table has whose one value was changed, and what is wrong with it."""
    found, problems = parse(json.dumps({"schema": 1, "gpus": {gpu: {key: VALUE | changes}}}))
    return len(found), " ".join(problems)


def test_the_entry_that_the_next_tests_spoil_is_good() -> None:
    assert read_with() == (1, "")


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"key": "nonsense"}, "not a key: 'nonsense'"),
        ({"gpu": "\x1b[31mred"}, "no GPU"),
        ({"kernel": "__import__"}, "kernel must be one of tile, tile_channels_last, lagged, two_pass"),
        ({"kernel": "lagged"}, "config of lagged must have"),
        ({"kernel": ["tile"]}, "kernel must be one of"),
        ({"config": []}, "config must be an object"),
        ({"config": {}}, "config of tile must have"),
        ({"config": VALUE["config"] | {"block_x": 1}}, "config of tile must have"),
        ({"config": VALUE["config"] | {"block_c": 8.0}}, "block_c must be an integer"),
        ({"config": VALUE["config"] | {"block_c": "8"}}, "block_c must be an integer"),
        ({"config": VALUE["config"] | {"block_c": True}}, "block_c must be an integer"),
        ({"config": VALUE["config"] | {"block_c": -8}}, "block_c must be an integer"),
        ({"config": VALUE["config"] | {"block_c": 2**31}}, "block_c must be an integer"),
        ({"config": VALUE["config"] | {"windowed": 2}}, "must be 0 or 1"),
        ({"time_us": 0}, "times must be positive"),
        ({"time_us": float("nan")}, "times must be positive"),
        ({"heuristic_us": float("inf")}, "times must be positive"),
        ({"heuristic_us": None}, "times must be positive"),
        ({"versions": None}, "versions must be texts"),
        ({"versions": {"torch": "rm -rf"}}, "versions must be texts"),
        ({"more": 1}, "an entry must have"),
    ],
    ids=str,
)
def test_a_bad_entry_is_left_out(changes: dict[str, Any], problem: str) -> None:
    count, problems = read_with(**changes)
    assert count == 0
    assert problem in problems


def test_a_gpu_of_no_entries_is_one_problem() -> None:
    found, problems = parse(json.dumps({"schema": 1, "gpus": DOCUMENT["gpus"] | {"another": 3}}))
    assert found == table(PROBLEM, OTHER)
    assert len(problems) == 1


@pytest.mark.parametrize(
    ("key", "good"), [(str(key), each) for key, each in TABLE.items()], ids=lambda value: str(value)[:30]
)
def test_a_config_that_no_kernel_can_run_with_is_left_out_and_its_field_is_told(
    key: str, good: Entry
) -> None:
    fields = good.choice.integers()
    value = {"kernel": good.choice.kernel, "config": fields, "time_us": 1, "heuristic_us": 2, "versions": {}}

    def read(config: dict[str, int]) -> tuple[int, str]:
        return read_with(key, **value | {"config": config})

    assert read(fields) == (1, "")
    for name in fields.keys() - {"windowed", "packed"}:
        counted = name in ("chunks", "steps", "halo_steps", "lag", "max_registers", "num_stages")
        for bad in [2**31 - 1, *([] if name == "block_tail" else [0]), *([] if counted else [3, 2**30])]:
            found, problem = read(fields | {name: bad})
            assert found == 0
            assert f"{key}: {name} must be {'an integer' if counted else 'a power of two'} from" in problem
    if {"block_c", "block_hw"} <= fields.keys():
        assert "block_c * block_hw must be at most" in read(fields | {"block_c": 2**10, "block_hw": 2**10})[1]


@pytest.mark.parametrize(
    ("problem", "name", "least"),
    [
        (product(128, 256, 3136, 64), "block_i", 16),
        (one_of_two("affine", 128, 256, 3136), "block", 64),
        (forward(128, 1024, 196, last=True), "block_c", 8),
    ],
    ids=["product", "affine", "tile_channels_last"],
)
def test_a_block_may_be_as_small_as_its_kernel_takes_it(problem: Problem, name: str, least: int) -> None:
    choice = choose(problem)
    for value, fits in ((least, True), (least // 2, False)):
        with nullcontext() if fits else pytest.raises(ValueError, match=f"{name} must be"):
            choice_of(problem.kind, choice.kernel, choice.integers() | {name: value})


@pytest.mark.parametrize("kernel", ["tile", "two_pass"])
def test_a_product_has_its_own_kernel_and_no_other(kernel: str) -> None:
    with pytest.raises(ValueError, match="kernel must be one of product, got"):
        choice_of("product", kernel, {})
    with pytest.raises(ValueError, match="kernel must be one of tile, tile_channels_last, lagged, two_pass"):
        choice_of("forward", "product", choose(product(128, 256, 3136, 64)).integers())


def test_patience_is_not_tuned() -> None:
    choice = choose(forward(128, 256, 3136, last=True))
    assert choice.kernel == "lagged"
    assert "patience" not in choice.integers()
    assert choice_of("forward", "lagged", choice.integers()) == choice


def test_a_time_is_told_with_the_versions_that_it_depends_on() -> None:
    assert list(versions()) == ["eca_triton", "torch", "triton"]
    text = serialize(TABLE)
    assert parse(text.replace('"3.8.0"', '"unknown"'))[1] == []


# Hostile texts.


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
def test_a_bad_entry_is_one_problem_and_the_others_stay(text: str) -> None:
    for place in PLACES:
        found, problems = parse(spoiled(place, text))
        assert found == table(PROBLEM), place
        (problem,) = problems
        assert len(problem) < 1000, place
        assert problem.isprintable(), place


@pytest.mark.parametrize("text", VALUES.values(), ids=VALUES)
def test_a_compilation_and_doctor_go_on_with_one_warning(
    text: str, table_folder: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(store.user_table(), serialize(table(PROBLEM)))
    as_it_was = store.fingerprint()
    path.write_text(spoiled(("time_us",), text))
    store.reload()
    assert store.fingerprint() == as_it_was
    assert store.in_force(may_read=True).table[key_of(PROBLEM)].choice == choose(PROBLEM)
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
        document["gpus"][H200.name] = {KEY: document["gpus"][H200.name][KEY], key: value}
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
