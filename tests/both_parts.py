"""Run all tests: as they are, then the kernels in Triton's interpreter, whether or not the first part passed.

    python tests/both_parts.py [pytest's options]

Ends with one line for each part, and exit code 1 if either failed.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from xml.etree import ElementTree

from paths import TESTS

Part = tuple[Sequence[Path | str], dict[str, str]]
"""Arguments of pytest, of which the tests are paths, and what the environment has besides."""
PARTS: dict[str, Part] = {
    "as they are": ([TESTS, f"--ignore={TESTS / 'interpreter'}"], {}),
    "in Triton's interpreter": ([TESTS / "interpreter"], {"TRITON_INTERPRET": "1"}),
}


def run(name: str, part: Part, options: Sequence[str]) -> tuple[bool, str]:
    """Run one part: whether it passed, and a line that says so."""
    tests, variables = part
    environment = {"OMP_NUM_THREADS": "1", **os.environ, **variables}
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", *options, f"--junitxml={report}", *map(str, tests)]
        code = subprocess.run(command, env=environment, check=False).returncode
        counts = counted(report) if report.exists() else "no report"
    return code == 0, f"{name}: {'passed' if code == 0 else f'FAILED, exit code {code}'}: {counts}"


def counted(report: Path) -> str:
    """How many tests passed, failed and were skipped, and in what time."""
    suite = next(ElementTree.parse(report).iter("testsuite"))
    total, failed, errors, skipped = (
        int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")
    )
    passed = total - failed - errors - skipped
    return (
        f"{passed} passed, {failed + errors} failed, {skipped} skipped in {float(suite.get('time', 0)):.0f} s"
    )


def main(options: Sequence[str], parts: Mapping[str, Part] = PARTS) -> int:
    """Run the parts one after the other, print a line for each, and return the exit code."""
    results = [run(name, part, options) for name, part in parts.items()]
    print("", *(line for _, line in results), sep="\n")
    return 0 if all(passed for passed, _ in results) else 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
