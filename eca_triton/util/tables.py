"""Tables of text: drawn by rich on a terminal where it is installed, plain columns elsewhere."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TextIO

Rows = Sequence[Sequence[str]]


def write_table(columns: Sequence[str], rows: Rows, out: TextIO, numeric: Collection[str] = ()) -> None:
    """Write a table to `out`; columns named in `numeric` are set to the right.

    Args:
        columns: Headings.
        rows: Cells, as many per row as there are columns.
        out: Where to write. Colours and lines appear on a terminal only, and none of them with NO_COLOR set.
        numeric: Headings of the columns of numbers.
    """
    if not (out.isatty() and _write_with_rich(columns, rows, out, numeric)):
        out.write(plain_table(columns, rows, numeric) + "\n")


def plain_table(columns: Sequence[str], rows: Rows, numeric: Collection[str] = ()) -> str:
    """The table as lines of text, columns separated by two spaces."""
    lines = [columns, *rows]
    widths = [max(len(line[index]) for line in lines) for index in range(len(columns))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if name in numeric else cell.ljust(width)
            for name, cell, width in zip(columns, line, widths, strict=True)
        ).rstrip()
        for line in lines
    )


def _write_with_rich(columns: Sequence[str], rows: Rows, out: TextIO, numeric: Collection[str]) -> bool:
    try:
        from rich.box import SIMPLE_HEAD
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        return False
    table = Table(box=SIMPLE_HEAD)
    for name in columns:
        table.add_column(name, justify="right" if name in numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    Console(file=out, highlight=False, markup=False).print(table)
    return True
