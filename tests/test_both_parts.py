"""`make test` runs both parts whatever the first one says, and tells how each ended."""

from __future__ import annotations

from pathlib import Path

import both_parts
import pytest

PASSES = "import os\ndef test_variable(): assert os.environ.get('TRITON_INTERPRET') == '1'\n"
FAILS = "def test_a(): assert False\ndef test_b(): pass\n"


@pytest.mark.parametrize("failing", [["first"], ["second"], []], ids=str)
def test_both_parts_run_and_either_fails_the_whole(
    failing: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    parts = {}
    for name in ("first", "second"):
        file = tmp_path / f"test_{name}.py"
        file.write_text(FAILS if name in failing else PASSES)
        parts[name] = [file], {"TRITON_INTERPRET": "1"}
    code = both_parts.main(["-q", "-p", "no:cacheprovider", f"--rootdir={tmp_path}"], parts)
    assert code == bool(failing)
    first, second = capfd.readouterr().out.splitlines()[-2:]
    for name, line in (("first", first), ("second", second)):
        if name in failing:
            assert line.startswith(f"{name}: FAILED, exit code 1: 1 passed, 1 failed, 0 skipped in ")
        else:
            assert line.startswith(f"{name}: passed: 1 passed, 0 failed, 0 skipped in ")


def test_a_part_that_cannot_start_fails(tmp_path: Path) -> None:
    assert both_parts.main(["-q"], {"absent": ([tmp_path / "absent.py"], {})}) == 1
