"""What is being done, for who waits: one line that is redrawn on a terminal, a line each elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TextIO

CLEAR = "\r\x1b[K"  # the cursor to the start of the line, and nothing behind it


class Progress:
    """Says what is done, with the seconds since the start; on a terminal nothing of it stays.

    Args:
        out: Where to write, stderr say.
    """

    def __init__(self, out: TextIO) -> None:
        self.out, self.start, self.terminal = out, time.monotonic(), out.isatty()

    def __call__(self, doing: str) -> None:
        """Say what begins now."""
        line = f"[{time.monotonic() - self.start:.0f} s] {doing} ..."
        self.out.write(f"{CLEAR}{line}" if self.terminal else f"{line}\n")
        self.out.flush()

    def clear(self) -> None:
        """Leave the line to somebody else."""
        if self.terminal:
            self.out.write(CLEAR)
            self.out.flush()

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.clear()
