"""What `explain` returns."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TextIO

from .result import Result
from .text import write


class Report(Result):
    """A result that writes itself: as text, as a page, or as the plain values of `as_dict`."""

    def __str__(self) -> str:
        out = io.StringIO()
        self.write(out)
        return out.getvalue().rstrip("\n")

    def __repr__(self) -> str:
        return f"<Report of {self.subject.model}: {self.lowered} of {len(self.sites)} sites lowered>"

    def write(self, out: TextIO) -> None:
        """Write the table of sites, then why some were left alone, then the totals."""
        write(self, out)

    def to_html(self) -> str:
        """One page that refers to nothing outside itself."""
        from .html import render

        return render(self)

    def save_html(self, path: str | Path) -> None:
        """Write `to_html` to a file."""
        Path(path).write_text(self.to_html(), encoding="utf-8")
