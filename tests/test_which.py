"""`make test-for` finds the tests of every file."""

from __future__ import annotations

import both_parts
import pytest
import which

FOLDERS = ("benchmarks", "eca_triton", "kernels")
FILES = [str(file.relative_to(which.ROOT)) for each in FOLDERS for file in (which.ROOT / each).rglob("*.py")]


def names(file: str) -> set[str]:
    return {str(test.relative_to(which.TESTS)) for test in which.concerning(file)}


@pytest.mark.parametrize("pattern", sorted({name for each in which.CONCERNS.values() for name in each}))
def test_every_pattern_finds_tests(pattern: str) -> None:
    assert list(which.TESTS.glob(pattern))


@pytest.mark.parametrize("start", [start for start in which.CONCERNS if start])
def test_every_beginning_is_of_a_path(start: str) -> None:
    assert (which.ROOT / start).exists()


def test_every_file_has_tests_of_its_own() -> None:
    rows = {file: {start for start in which.CONCERNS if file.startswith(start)} for file in FILES}
    entrances = ("__init__.py", "version.py")
    assert [
        file for file, found in rows.items() if found <= {"", "eca_triton/"} and not file.endswith(entrances)
    ] == []


def test_a_kernel_is_tried_by_the_interpreter_and_compiled_ahead() -> None:
    assert {"interpreter", "kernels"} <= names("kernels/tile.py")


def test_a_test_concerns_itself_and_a_file_beside_it_those_that_name_it() -> None:
    assert names("tests/tuning/test_choice.py") == {"tuning/test_choice.py"}
    assert {"tuning/test_key.py", "launch/test_tuned_launch.py"} <= names("tests/tuned.py")


def test_tests_of_the_interpreter_run_in_its_part_alone() -> None:
    tests = which.concerning("eca_triton/autotune/verify.py")
    plain, interpreted = which.parts_of(tests).values()
    assert interpreted == ([which.INTERPRETED / "test_autotune.py"], {"TRITON_INTERPRET": "1"})
    assert not set(interpreted[0]) & set(plain[0])
    assert {*plain[0], *interpreted[0]} == tests
    assert list(which.parts_of([which.INTERPRETED / "test_tile.py"])) == [list(both_parts.PARTS)[1]]


def test_what_is_not_there_is_an_error() -> None:
    with pytest.raises(FileNotFoundError, match=r"no such file: kernels/tiles\.py"):
        which.concerning("kernels/tiles.py")
    assert which.main([]) == 2
