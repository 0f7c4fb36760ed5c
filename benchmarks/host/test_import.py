"""What `import eca_triton` takes beyond torch: processor time of fresh interpreters, bytecode written before.

tests/test_import.py counts the files, modules and calls that it comes from.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from ..shared.context import ROOT

CODE = """
import sys, time, torch
sys.pycache_prefix, sys.dont_write_bytecode = sys.argv[1], False
start = time.process_time()
import eca_triton
print(time.process_time() - start)
"""
elapsed = 0.0  # s, of all imports so far


@pytest.mark.benchmark(timer=lambda: elapsed)
def test_import(benchmark: BenchmarkFixture, tmp_path: Path) -> None:
    def once() -> None:
        global elapsed
        command = [sys.executable, "-c", CODE, str(tmp_path)]
        elapsed += float(subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout)

    benchmark.pedantic(once, rounds=5, warmup_rounds=1)
