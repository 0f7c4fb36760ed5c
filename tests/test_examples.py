"""Each example does what it says: the how-to pages lead to them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT

EXAMPLES = ROOT / "examples"
SAYS = {  # what the last lines must show
    "train_ddp.py": r"lowered  one, eager(\n +\d  +\d\.\d{5}  +\d\.\d{5}){4}\n[12] channel attentions",
    "tune.py": r"<- heuristic",
    "export_package.py": r"lowered to eca_triton(.|\n)*the package, in another process +differs from eager",
}


def run(*command: str, cwd: Path) -> str:
    """What a command prints; it must succeed within two minutes."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *command],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", SAYS)
def test_an_example_runs_and_shows_its_result(name: str, tmp_path: Path) -> None:
    assert re.search(SAYS[name], run(str(EXAMPLES / name), cwd=tmp_path))


@pytest.mark.slow
def test_the_test_for_ones_own_ci_passes(tmp_path: Path) -> None:
    test = tmp_path / "test_attention.py"
    test.write_text((EXAMPLES / "test_attention.py").read_text())
    assert "3 passed" in run("-m", "pytest", "-q", "-p", "no:cacheprovider", str(test), cwd=tmp_path)


def test_every_example_names_its_page_and_the_index_has_it() -> None:
    index = (ROOT / "docs" / "index.md").read_text()
    for path in EXAMPLES.glob("*.py"):
        if not path.stem.startswith("digits_"):  # parts of train_digits.py
            assert f"../examples/{path.name}" in index, path.name
