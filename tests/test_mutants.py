"""The list of `mutants.py` is about the code as it is: every change can be made, in one place only."""

from __future__ import annotations

from pathlib import Path

import mutants
import pytest


def test_there_are_sixty_in_every_part() -> None:
    assert len(mutants.MUTANTS) >= 60
    parts = {"/".join(Path(mutant.file).parts[:-1]) for mutant in mutants.MUTANTS}
    assert parts >= {"kernels", *(f"eca_triton/{part}" for part in ("compile", "ops", "launch", "tuning"))}


@pytest.mark.parametrize("file", mutants.LISTED)
def test_every_change_applies_once_and_leaves_python(file: str) -> None:
    text = (mutants.ROOT / file).read_text()
    for mutant in (each for each in mutants.MUTANTS if each.file == file):
        assert text.count(mutant.old) == 1, mutant.old
        assert mutant.new != mutant.old
        compile(text.replace(mutant.old, mutant.new), file, "exec")


@pytest.mark.parametrize("tests", sorted({each.tests for each in mutants.MUTANTS}), ids=" ".join)
def test_the_tests_of_a_change_are_there(tests: tuple[str, ...]) -> None:
    paths = [argument for argument in tests if argument.endswith(".py")]
    assert paths
    assert all((mutants.ROOT / path).exists() for path in paths)
