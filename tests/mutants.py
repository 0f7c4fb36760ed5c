"""Change the package in one place at a time, and run the tests of that file: what they do not see is a hole.

    python tests/mutants.py [FILE ...]

Everything happens in temporary copies of the tree; first, the tests must pass there without a change. Prints
what becomes of every change of `mutant_list.py`, and exits with 1 if fewer than 95 of 100 die. Its old text
occurs once in its file: `test_mutants.py`.
"""

from __future__ import annotations

import os
import queue
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from mutant_list import LISTED
from paths import ROOT

PROCESSES = 2
SECONDS = 600  # of one run of tests: a change may make a loop endless
LEAST = 0.95
SKIPPED = shutil.ignore_patterns(".git", ".venv*", "__pycache__", ".*_cache", ".hypothesis", "shared")


class Mutant(NamedTuple):
    """One text of a file, another one in its place, and the tests (arguments of pytest) that must fail."""

    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    @property
    def line(self) -> int:
        """Where the old text begins."""
        text = (ROOT / self.file).read_text()
        return text[: text.index(self.old)].count("\n") + 1


MUTANTS = [Mutant(file, old, new, tests) for file, each in LISTED.items() for tests, old, new in each]


def run(mutant: Mutant, tree: Path) -> bool:
    """Apply a change to a copy of the tree, run its tests there, undo it; whether it died.

    Raises:
        RuntimeError: pytest ran no tests, so nothing is known.
    """
    path, interprets = tree / mutant.file, "interpreter" in mutant.tests[0]
    before = path.read_text()
    environment = os.environ | {
        "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1",
        "TRITON_INTERPRET": "1" if interprets else "0",
    }  # fmt: skip
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *mutant.tests]
    path.write_text(before.replace(mutant.old, mutant.new))
    try:
        done = subprocess.run(
            command, cwd=tree, env=environment, capture_output=True, text=True, timeout=SECONDS
        )
    except subprocess.TimeoutExpired:
        return True
    finally:
        path.write_text(before)
    if done.returncode > 2:  # 1: a test failed; 2: a module of tests cannot even be imported
        raise RuntimeError(f"{' '.join(mutant.tests)}: {done.stdout[-500:]}{done.stderr[-500:]}")
    return done.returncode != 0


def main(files: list[str]) -> int:
    """Run the mutants of the files, by default of all; the exit code."""
    chosen = [mutant for mutant in MUTANTS if not files or mutant.file in files]
    if not chosen:
        print(f"no mutant of {', '.join(files)}; listed are {', '.join(LISTED)}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(PROCESSES) as pool:
        trees: queue.SimpleQueue[Path] = queue.SimpleQueue()
        for number in range(PROCESSES):
            trees.put(Path(shutil.copytree(ROOT, Path(folder, str(number)), symlinks=True, ignore=SKIPPED)))

        def dies(mutant: Mutant) -> bool:
            tree = trees.get()
            try:
                return run(mutant, tree)
            finally:
                trees.put(tree)

        def judge(mutant: Mutant) -> bool:
            died = dies(mutant)
            verdict = "died    " if died else "SURVIVED"
            print(f"{verdict} {mutant.file}:{mutant.line}: {mutant.old!r} -> {mutant.new!r}", flush=True)
            return died

        unchanged = list({mutant.tests: mutant._replace(new=mutant.old) for mutant in chosen}.values())
        verdicts = zip(unchanged, pool.map(dies, unchanged), strict=True)
        failing = [mutant.tests for mutant, failed in verdicts if failed]
        if failing:
            print("fail without a change:", *map(" ".join, failing), sep="\n", file=sys.stderr)
            return 2
        died = sum(pool.map(judge, chosen))
    print(f"{died} of {len(chosen)} died")
    return int(died < LEAST * len(chosen))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
