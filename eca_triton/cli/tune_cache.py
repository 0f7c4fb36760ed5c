"""What `python -m eca_triton tune-cache` does with tables of tuned configs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from ..tuning import store
from ..tuning.table import Table, by_gpu
from ..util.tables import write_table

COLUMNS = ("GPU", "key", "kernel", "config", "us", "heuristic us", "faster")


def show(file: Path | None, as_json: bool, out: TextIO) -> None:
    """Write the configs in force, or those of one file.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not a table.
    """
    table = store.in_force(may_read=True).table if file is None else _load(file)
    read = [str(path) for path in store.paths()] if file is None else [str(file)]
    entries: list[dict[str, Any]] = [
        {"gpu": gpu, "key": key, **value}
        for gpu, of_gpu in by_gpu(table).items()
        for key, value in of_gpu.items()
    ]
    if as_json:
        print(json.dumps({"files": read, "entries": entries}, indent=2), file=out)
    elif entries:
        write_table(COLUMNS, [_row(entry) for entry in entries], out, numeric=COLUMNS[4:])
    else:
        out.write(f"no tuned configs in {', '.join(read) or f'use: ECA_TRITON_TUNED={store.mode()}'}\n")


def merge(files: Sequence[Path], out: TextIO) -> None:
    """Put the configs of files into the user's table, in place of those that it has for the same keys.

    Raises:
        OSError: a file cannot be read, or the table not be written.
        ValueError: a file is not a table; then nothing is written.
    """
    merged: Table = {}
    for file in files:
        merged |= _load(file)
    path = store.save(merged)
    out.write(f"configs merged into {path}: {len(merged)}\n")


def clear(out: TextIO) -> None:
    """Delete the user's table.

    Raises:
        OSError: it cannot be deleted.
    """
    path = store.user_table()
    out.write(f"deleted {path}\n" if store.clear() else f"there is no {path}\n")


def export(file: Path, out: TextIO) -> None:
    """Write the user's table to a file.

    Raises:
        OSError: the table cannot be read, or the file not be written.
        ValueError: the table is not one.
    """
    table = _load(store.user_table())
    store.export(table, file)
    out.write(f"configs written to {file}: {len(table)}\n")


def _row(entry: dict[str, Any]) -> tuple[str, ...]:
    config = " ".join(f"{name}={value}" for name, value in entry["config"].items())
    time_us, heuristic_us = entry["time_us"], entry["heuristic_us"]
    figures = f"{time_us:.1f}", f"{heuristic_us:.1f}", f"{heuristic_us / time_us - 1:.1%}"
    return entry["gpu"], entry["key"], entry["kernel"], config, *figures


def _load(file: Path) -> Table:
    """All entries of a file; what is wrong with one is not passed over where somebody asks for the file."""
    try:
        table, problems = store.load(file)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    if problems:
        raise ValueError(f"{file} has {len(problems)} bad entries; the first: {problems[0]}")
    return table
