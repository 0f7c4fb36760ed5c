"""What a call costs the host: pytest-benchmark's figures of this folder, as one of our documents."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ..shared.context import ROOT
from ..shared.document import NOT_MEASURED, percentile

FOLDER = Path(__file__).parent
FILES = ("test_launch.py", "test_host.py")
COLUMNS = ("call", "how", "us", "quartiles", "rounds")
TEXT = ("call", "how")
HOW = {
    "test_direct_launch": "up to the driver",
    "cpu": "on the CPU",
    "cuda": "on the GPU, to its queue",
}


def measure(machine: Mapping[str, Any], date: str) -> tuple[dict[str, Any], str]:
    """Run the benchmarks in a process of their own.

    Returns:
        The document, and what pytest wrote where a check or a bound failed, else "".
    """
    with TemporaryDirectory() as folder:
        path = Path(folder) / "benchmarks.json"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--benchmark-only"]
        command += [f"--benchmark-json={path}", *(str(FOLDER / name) for name in FILES)]
        # Of one thread, as `make bench` runs it: on a busy machine threads of OpenMP wait for each other.
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        found = json.loads(path.read_text()) if path.exists() and path.stat().st_size else {"benchmarks": []}
    problem = "" if done.returncode == 0 else done.stdout + done.stderr
    return document(found, machine, date), problem


def times_as_long(
    call: Callable[[], object],
    base: Callable[[], object],
    rounds: int = 100,
    iterations: int = 200,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """A call's time over that of the base, taken in turn: the median over the rounds of each round's ratio.

    A machine that is slow, or busy for a while, is so for both.
    """

    def took(function: Callable[[], object]) -> float:
        start = clock()
        for _ in range(iterations):
            function()
        return clock() - start

    return percentile([took(call) / took(base) for _ in range(rounds)], 0.5)


def document(found: Mapping[str, Any], machine: Mapping[str, Any], date: str) -> dict[str, Any]:
    """Pick what counts of pytest-benchmark's JSON, in microseconds."""
    rows = []
    for each in found["benchmarks"]:
        test, _, parameters = each["name"].rstrip("]").partition("[")
        stats, device = each["stats"], each["params"].get("device")
        grad = ", recorded for gradients" if each["params"].get("grad") else ""
        rows.append(
            {
                "call": each["params"].get("name", parameters) + grad,
                "how": HOW.get(device or test, test),
                "median_us": round(stats["median"] * 1e6, 3),
                "p25_us": round(stats["q1"] * 1e6, 3),
                "p75_us": round(stats["q3"] * 1e6, 3),
                "rounds": stats["rounds"],
            }
        )
    return {"command": "host", "date": date, "machine": dict(machine), "left_out": [], "rows": rows}


def table(found: Mapping[str, Any]) -> list[list[str]]:
    """Cells under `COLUMNS`."""
    return [
        [
            row["call"],
            row["how"] or NOT_MEASURED,
            f"{row['median_us']:.1f}",
            f"{row['p25_us']:.1f}-{row['p75_us']:.1f}",
            str(row["rounds"]),
        ]
        for row in found["rows"]
    ]
