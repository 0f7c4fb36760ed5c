"""What one command measures within ten minutes: steps in processes of their own, each with its limit.

A step may use its share of the time and what those before it left, and is ended then; what it saved stays.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from itertools import chain, count
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

from ..shared.context import ROOT
from ..shared.document import save

GRACE_S = 5.0
MODEL = "ecaresnet50d"
SMOKE = (
    "(gates and bf16 and tail and (128x256x56x56 or 128x2048x7x7))"
    " or (gradients and 512x28x28-contiguous and bfloat16) or (captured and not contiguous)"
    " or streams or bottleneck"
)
SMOKE_FILES = ("tests/test_gpu.py", "tests/test_gpu_training.py", "tests/test_gpu_product.py")
NO_DEVICE = "no CUDA device"


class Task(NamedTuple):
    """A step.

    Attributes:
        name: In the summary.
        share_s: Of the whole budget.
        arguments: Of Python.
        margin_s: How long before its limit a command that takes --budget-s is to end, for the start of Python
            and what is in flight then; None for other commands.
        gpu: Whether it needs one.
    """

    name: str
    share_s: float
    arguments: tuple[str, ...]
    margin_s: float | None = None
    gpu: bool = True

    def command(self, limit_s: float) -> list[str]:
        """Return what is run."""
        budget = [] if self.margin_s is None else ["--budget-s", f"{max(1.0, limit_s - self.margin_s):.0f}"]
        return [sys.executable, *self.arguments, *budget]


def as_it_comes() -> AbstractContextManager[object]:
    """Within it this process, and those that it starts, read the shipped tables alone."""
    return patch.dict(os.environ, ECA_TRITON_TUNED="shipped")


def empty(folder: Path) -> bool:
    """Return whether results of one run alone would be in it."""
    return not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))


def fresh(folder: Path) -> Path:
    """The folder, or, where it holds results, the first of the same name with -2, -3, ... that holds none."""
    names = (folder.with_name(f"{folder.name}-{number}") for number in count(2))
    return next(each for each in chain([folder], names) if empty(each))


def tasks(folder: Path) -> list[Task]:
    """On a GPU, what the issue of the goals needs, most telling last, for it may use what the others left."""
    smoke = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "gpu", "-k", SMOKE, *SMOKE_FILES]
    op = "-m benchmarks op --contenders eager inductor op compiled --repeats 10"
    tune = f"-m eca_triton autotune timm:{MODEL} --batch 128 --size 224 --dtype bf16 --channels-last"
    network = f"-m benchmarks network --networks {MODEL} --kinds eca plain --repeats 10"
    return [
        Task("versions", 20, ("-m", "eca_triton", "doctor"), gpu=False),
        Task("copy", 25, _into(folder, "-m benchmarks copy")),
        Task("smoke", 60, (*smoke, f"--junitxml={folder / 'smoke.xml'}")),
        Task("op", 100, _into(folder, op), margin_s=25),
        Task("tune", 70, _into(folder / "tuned.json", tune)),
        Task("network", 285, _into(folder, network), margin_s=45),
    ]


def tasks_without_a_gpu(folder: Path) -> list[Task]:
    """Return what any machine measures, and for the others that they were left out."""
    compiling = "-m benchmarks compile --networks ecaresnet26t --directions inference"
    here = [
        Task("host", 120, _into(folder, "-m benchmarks host"), gpu=False),
        Task("compile", 300, _into(folder, compiling), margin_s=25, gpu=False),
    ]
    versions, *others = tasks(folder)
    return [versions, *here, *others]


def _into(path: Path, command: str) -> tuple[str, ...]:
    return (*command.split(), "--out", str(path))


Runner = Callable[[Sequence[str], float, Path], int | None]
"""(command, limit in seconds, log to append to) -> exit code; None: ended at its limit."""


def collect(
    wanted: Sequence[Task],
    machine: Mapping[str, Any],
    date: str,
    folder: Path,
    budget_s: float,
    runner: Runner,
    say: Callable[[str], None],
    *,
    gpu: bool,
) -> dict[str, Any]:
    """Run step after step; what came of each is saved to evidence.json at once. Returns its document.

    folder: Empty or not there yet, so that nothing in it is of another run.
    """
    folder.mkdir(parents=True, exist_ok=True)
    log, path = folder / "evidence.log", folder / "evidence.json"
    log.write_text(f"{date}\n")
    document: dict[str, Any] = {
        "command": "evidence",
        "date": date,
        "machine": dict(machine),
        "budget_s": budget_s,
        "left_out": [],
        "rows": [],
    }
    runs = [task for task in wanted if gpu or not task.gpu]
    scale = budget_s / sum(task.share_s for task in runs)
    begin, share_end_s = time.monotonic(), 0.0
    for task in wanted:
        row: dict[str, Any] = {"step": task.name}
        if task not in runs:
            row |= {"status": "left out", "why": NO_DEVICE}
            document["left_out"].append(task.name)
        else:
            share_end_s += task.share_s * scale
            started_s = time.monotonic() - begin
            limit_s = share_end_s - started_s
            command = task.command(limit_s)
            say(f"{started_s:5.0f} s  {task.name}, at most {limit_s:.0f} s")
            try:
                code = runner(command, limit_s, log)
                row["status"] = {0: "ok", None: "stopped at its limit"}.get(code, "failed")
            except OSError as error:
                code, row["status"], row["why"] = None, "failed", str(error)
            seconds = time.monotonic() - begin - started_s
            row |= {"code": code, "seconds": round(seconds, 1), "limit_s": round(limit_s, 1)}
            row["command"] = ["python", *command[1:]]
        document["rows"].append(row)
        save(document, path)
    return document


def run_limited(command: Sequence[str], limit_s: float, log: Path) -> int | None:
    """Run in a session of its own, with its output in the log; at the limit all its processes are ended."""
    with log.open("a") as out:
        out.write(f"\n$ {' '.join(['python', *command[1:]])}\n")
        out.flush()
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            return process.wait(limit_s)
        except subprocess.TimeoutExpired:
            return None
        finally:
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """The process and those that it started: compilers' workers may outlive it."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_S)
