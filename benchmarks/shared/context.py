"""What a command of `python -m benchmarks` has besides its arguments: folders, a device, clocks."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    import torch

    from eca_triton.report.measure import Clock
    from eca_triton.util.timing import Timer

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
COUNTED = RESULTS / "counted"  # by the command tax
DOCS = ROOT / "docs"
NOTHING_MEASURED = 2  # exit code: nothing was measured on a GPU, or nothing was written; wrong arguments


@dataclass(frozen=True)
class Context:
    """What a command has besides its arguments; a test gives its own.

    Attributes:
        out: For the answer; whatever libraries print goes elsewhere.
        device: To measure on, if there is one.
        timer: Of calls of the op.
        clock: Of steps of whole networks.
    """

    out: TextIO
    device: torch.device | None
    timer: Timer
    clock: Clock

    def say(self, line: str) -> None:
        """Write a line of the answer at once."""
        print(line, file=self.out, flush=True)


Run = Callable[[argparse.Namespace, Context], int]
"""Runs a command and returns the exit code."""


def positive(text: str) -> int:
    """A number of an argument."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


def now() -> str:
    """The time that a document bears."""
    return f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC"
