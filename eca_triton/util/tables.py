"""Text for a terminal or a file: tables, drawn by rich where it is installed, and lines that fit.

Words are never broken: what does not fit at its spaces sticks out. A file, or a pipe, has no width.
"""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Collection, Sequence
from typing import TextIO

Rows = Sequence[Sequence[str]]
GAP = 2  # columns of the terminal between two of a table


def width_of(out: TextIO) -> int | None:
    """Columns of the terminal that `out` is, None where it is none."""
    return shutil.get_terminal_size().columns if out.isatty() else None


def wrapped(text: str, width: int | None) -> str:
    """A line broken at spaces so that it fits; what follows is indented as the line is, and by two more."""
    if width is None or len(text) <= width:
        return text
    indent = text[: len(text) - len(text.lstrip())]
    return textwrap.fill(
        text, width, subsequent_indent=f"{indent}  ", break_long_words=False, break_on_hyphens=False
    )


def write_table(columns: Sequence[str], rows: Rows, out: TextIO, numeric: Collection[str] = ()) -> None:
    """Write a table to `out`; columns named in `numeric` are set to the right.

    Args:
        columns: Headings.
        rows: Cells, as many per row as there are columns.
        out: Where to write. Colours and lines appear on a terminal only, and none of them with NO_COLOR set.
        numeric: Headings of the columns of numbers.
    """
    width = width_of(out)
    if width is None:
        out.write(plain_table(columns, rows, numeric) + "\n")
        return
    fitting = _fitting([columns, *rows], width)
    if not _write_with_rich(columns, fitting, out, numeric):
        out.write("\n".join(_lines(columns, fitting, numeric)) + "\n")


def plain_table(columns: Sequence[str], rows: Rows, numeric: Collection[str] = ()) -> str:
    """The table as lines of text, columns separated by two spaces."""
    return "\n".join(_lines(columns, [columns, *rows], numeric))


def _lines(columns: Sequence[str], rows: Rows, numeric: Collection[str]) -> list[str]:
    """Lines of a table; a cell may have several."""
    split = [
        [
            [line[index] if index < len(line) else "" for line in cells]
            for index in range(max(map(len, cells)))
        ]
        for cells in ([cell.split("\n") for cell in row] for row in rows)
    ]
    widths = [
        max(len(line) for row in rows for line in row[index].split("\n")) for index in range(len(columns))
    ]
    return [
        (" " * GAP)
        .join(
            cell.rjust(width) if name in numeric else cell.ljust(width)
            for name, cell, width in zip(columns, line, widths, strict=True)
        )
        .rstrip()
        for row in split
        for line in row
    ]


def _fitting(rows: Rows, width: int) -> list[list[str]]:
    """Break cells at spaces, in the widest columns first, until the table fits or nothing helps."""
    columns = [list(column) for column in zip(*rows, strict=True)]
    widths = [max(map(len, column)) for column in columns]
    least = [max(len(word) for cell in column for word in cell.split() or [""]) for column in columns]
    while sum(widths) + GAP * len(widths) > width and widths != least:
        index = max((i for i in range(len(widths)) if widths[i] > least[i]), key=widths.__getitem__)
        widths[index] -= 1
    broken = [
        [
            "\n".join(textwrap.wrap(cell, size, break_long_words=False, break_on_hyphens=False))
            for cell in column
        ]
        for column, size in zip(columns, widths, strict=True)
    ]
    return [list(row) for row in zip(*broken, strict=True)]


def _write_with_rich(columns: Sequence[str], rows: Rows, out: TextIO, numeric: Collection[str]) -> bool:
    """Write a table whose first row is the head; False where rich is not installed."""
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        return False
    table = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0))
    head, *body = rows
    for name, text in zip(columns, head, strict=True):
        table.add_column(text, justify="right" if name in numeric else "left", no_wrap=True)
    for row in body:
        table.add_row(*row)
    width = max(len(line) for line in _lines(columns, rows, numeric))
    Console(file=out, width=width, highlight=False, markup=False).print(table)
    return True
