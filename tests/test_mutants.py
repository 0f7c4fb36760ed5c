"""The list of `mutants.py` is about the code as it is: every change can be made, in one place only."""

from __future__ import annotations

from pathlib import Path

import mutants
import pytest


def test_there_are_sixty_in_every_part() -> None:
    assert len(mutants.MUTANTS) >= 60
    parts = {"/".join(Path(mutant.file).parts[:-1]) for mutant in mutants.MUTANTS}
    assert parts >= {"kernels", *(f"eca_triton/{part}" for part in ("compile", "ops", "launch", "tuning"))}


def test_tests_that_fail_anyway_see_no_change(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And of those that pass, one that fails with a change has seen it."""
    made = {
        "code_of.py": "ONE, TWO = 1, 2\n",
        "test_sees.py": "import code_of\ndef test():\n    assert code_of.ONE == 1\n",
        "test_fails.py": "def test():\n    assert False\n",
    }
    for name, text in made.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(mutants, "ROOT", tmp_path)

    def judged(*listed: tuple[str, str, str]) -> tuple[int, str, str]:
        changes = [mutants.Mutant("code_of.py", old, new, (tests,)) for tests, old, new in listed]
        monkeypatch.setattr(mutants, "MUTANTS", changes)
        return mutants.main([]), *capsys.readouterr()

    seen, unseen = ("test_sees.py", "= 1", "= 3"), ("test_sees.py", ", 2", ", 4")
    code, out, _ = judged(seen, unseen)
    assert (code, out.count("died    "), out.count("SURVIVED")) == (1, 1, 1)
    assert judged(("test_fails.py", "= 1", "= 3")) == (2, "", "fail without a change:\ntest_fails.py\n")


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
