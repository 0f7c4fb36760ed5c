"""Tuned tables as text: what is written is read back, and nothing else is believed."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tuned import H200, backward, entry, forward, key_of, one_of_two, product, table

from eca_triton.tuning.choice import Choice
from eca_triton.tuning.config import FLAT, TILED
from eca_triton.tuning.table import choice_of, integers, parse, serialize, versions

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
        '{"schema": 1, "gpus": {}, "x": ' + "9" * 5000 + "}",
    ],
    ids=lambda text: text[:30] or "empty",
)  # fmt: skip
def test_what_is_no_table_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"not JSON|not a table|schema must be 1"):
        parse(text)


GOOD = json.loads(serialize(table(forward(128, 256, 3136))))["gpus"][H200.name]
((KEY, VALUE),) = GOOD.items()


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
        ({"config": VALUE["config"] | {"block_c": 8.0}}, "must hold integers"),
        ({"config": VALUE["config"] | {"block_c": "8"}}, "must hold integers"),
        ({"config": VALUE["config"] | {"block_c": True}}, "must hold integers"),
        ({"config": VALUE["config"] | {"block_c": -8}}, "must hold integers"),
        ({"config": VALUE["config"] | {"block_c": 2**31}}, "must hold integers"),
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


@pytest.mark.parametrize("kernel", ["tile", "two_pass"])
def test_a_product_has_its_own_kernel_and_no_other(kernel: str) -> None:
    with pytest.raises(ValueError, match="kernel must be one of product, got"):
        choice_of("product", kernel, {})
    with pytest.raises(ValueError, match="kernel must be one of tile, tile_channels_last, lagged, two_pass"):
        choice_of("forward", "product", integers(product(128, 256, 3136, 64).heuristic()))


def test_a_bad_entry_leaves_the_others() -> None:
    document = {"schema": 1, "gpus": {H200.name: GOOD | {"nonsense": {}}, "another": 3}}
    found, problems = parse(json.dumps(document))
    assert found == table(forward(128, 256, 3136))
    assert len(problems) == 2


def test_patience_is_not_tuned() -> None:
    choice = forward(128, 256, 3136, last=True).heuristic()
    assert choice.kernel == "lagged"
    assert "patience" not in integers(choice)
    assert choice_of("forward", "lagged", integers(choice)) == choice


def test_a_time_is_told_with_the_versions_that_it_depends_on() -> None:
    assert list(versions()) == ["eca_triton", "torch", "triton"]
    text = serialize(TABLE)
    assert parse(text.replace('"3.8.0"', '"unknown"'))[1] == []
