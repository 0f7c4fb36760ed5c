"""Where tuned tables are, what they say, and how they are written.

A process reads them once, when the first kernel's config is asked for, and keeps what it read: no call in the
middle of a run changes its config because a file did. `save` and `reload` are the two ways to read anew.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
import tempfile
import threading
from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from . import files
from .config import Choice
from .key import Key
from .problem import Problem
from .table import Entry, Table, parse, serialize

log = logging.getLogger("eca_triton")

MODES = ("user", "shipped", "off")
SHIPPED = Path(__file__).parent / "tables"
MAX_BYTES = 16 << 20  # of a table: thousands of networks

VARIABLES = ("ECA_TRITON_TUNED", "ECA_TRITON_CACHE_DIR", "XDG_CACHE_HOME", "HOME")


class InForce(NamedTuple):
    """Tables that were read.

    Attributes:
        table: All entries; the user's have taken the place of shipped ones.
        fingerprint: Of all choices, "" of none.
        chosen: For `select`, what was chosen with this table before.
    """

    table: Table
    fingerprint: str
    chosen: dict[Problem, Choice]


_NOTHING = InForce({}, "", {})
_lock = threading.Lock()
_read: dict[tuple[str | None, ...], InForce] = {}  # by the values of VARIABLES
_passed_over = False  # whether a call of a graph capture went without tables
_warned: set[tuple[Path, str]] = set()
_listeners: list[Callable[[], None]] = []


def mode() -> str:
    """ECA_TRITON_TUNED: "user" reads the user's table and the shipped ones, "shipped" these, "off" none."""
    asked = os.environ.get("ECA_TRITON_TUNED") or MODES[0]
    if asked in MODES:
        return asked
    _warn_once(
        Path("ECA_TRITON_TUNED"), f"must be one of {', '.join(MODES)}, got {asked!r}: no table is read"
    )
    return "off"


def user_table() -> Path:
    """The user's table, which need not exist: in ECA_TRITON_CACHE_DIR, else where XDG keeps caches."""
    given = os.environ.get("ECA_TRITON_CACHE_DIR")
    if given:
        return Path(os.path.expanduser(given), "tuned.json")
    caches = os.environ.get("XDG_CACHE_HOME", "")
    root = caches if os.path.isabs(caches) else os.path.expanduser("~/.cache")  # as its specification says
    if not os.path.isabs(root):  # nobody's home
        return Path(tempfile.gettempdir(), f"eca_triton_{os.getuid()}", "tuned.json")
    return Path(root, "eca_triton", "tuned.json")


def in_force(may_read: bool) -> InForce:
    """Return what was read, or is read now; nothing if it may not be."""
    global _passed_over
    state = tuple(os.environ.get(name) for name in VARIABLES)
    found = _read.get(state)
    if found is not None:
        return found
    if not may_read:
        _passed_over = True
        return _NOTHING
    with _lock:
        found = _read.get(state)
        if found is None:
            # Calls were planned without these tables: in a graph capture, or before the environment changed.
            stale, _passed_over = bool(_read) or _passed_over, False
            found = _read[state] = _read_all()
            if stale:
                _tell()
    return found


def save(entries: Mapping[Key, Entry], *, path: Path | None = None) -> Path:
    """Merge entries into a table, by default the user's; in force for every later call of this process.

    What the table has and this version does not understand is kept in a file beside it.

    Args:
        entries: Take the place of those that the table has for the same keys.
        path: Of another table; where it is a symbolic link, the file that it leads to is written.

    Returns:
        Path: where they were written.

    Raises:
        OSError: the table cannot be written, or would be too large to be read, or another process holds its
            lock for long.
    """
    path = user_table() if path is None else path
    path.parent.mkdir(mode=0o700 if path == user_table() else 0o777, parents=True, exist_ok=True)
    file = files.target(path)
    with files.locked(file):
        known, problem = _known(file)
        aside = files.replace(file, _text(known | dict(entries)), keep_old=bool(problem))
    if aside is not None:
        log.warning("not all of %s could be merged (%s): as it was, it is now %s", path, problem, aside)
    reload()
    return path


def export(table: Table, path: Path) -> None:
    """Write a table to a file, in place of what is there.

    Raises:
        OSError: the file cannot be written, or would be too large to be read, or another process holds its
            lock for long.
    """
    if path.exists() and not path.is_file():  # a terminal or a pipe has nothing to lose
        path.write_text(serialize(table), encoding="utf-8")
        return
    file = files.target(path)
    with files.locked(file):
        files.replace(file, _text(table), mode=0o666)


def _text(table: Table) -> str:
    """Return what a table's file holds.

    Raises:
        OSError: `load` would not read it.
    """
    text = serialize(table)
    size = len(text.encode())
    if size > MAX_BYTES:
        raise OSError(errno.EFBIG, f"a table of {len(table)} entries takes {size} bytes, over {MAX_BYTES}")
    return text


def reload() -> None:
    """Forget what was read, and the plans that were made with it: the next call reads the tables anew."""
    with _lock:
        _read.clear()
        _tell()


def clear() -> bool:
    """Delete the user's table, also one that cannot be read; whether there was one. Of a link only itself.

    Raises:
        OSError: it cannot be deleted, or another process holds its lock for long.
    """
    path = user_table()
    if not os.path.lexists(path):
        return False
    with files.locked(path):
        path.unlink(missing_ok=True)
    reload()
    return True


def on_change(listener: Callable[[], None]) -> None:
    """Have a function called whenever other entries may be in force."""
    _listeners.append(listener)


def fingerprint() -> str:
    """Hash all choices in force, for keys of caches of code that was generated with them; "" for none."""
    return in_force(may_read=True).fingerprint


def paths() -> list[Path]:
    """The files that are read: the shipped ones, then the user's, whose entries count more."""
    asked = mode()
    shipped = [] if asked == "off" else sorted(SHIPPED.glob("*.json"))
    return [*shipped, *([user_table()] if asked == "user" else [])]


def examine(path: Path) -> tuple[Table, str]:
    """The entries of one file, none if it cannot be read, and what is wrong with it, "" if nothing is."""
    try:
        table, problems = load(path)
    except FileNotFoundError:
        return {}, ""
    except (OSError, ValueError) as error:
        return {}, f"is ignored: {error}"
    if problems:
        return table, f"has {len(problems)} entries that are ignored; the first: {problems[0]}"
    return table, ""


def load(path: Path) -> tuple[Table, list[str]]:
    """The entries of one file, and what was wrong with those that were left out.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not a table, or one of another schema.
    """
    with open(path, encoding="utf-8", opener=_without_waiting) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("not a file")
        if status.st_size > MAX_BYTES:
            raise ValueError(f"larger than {MAX_BYTES} bytes")
        return parse(file.read())


def _read_all() -> InForce:
    table: Table = {}
    for path in paths():
        entries, problem = examine(path)
        if problem:
            _warn_once(path, problem)
        table |= entries
    choices = sorted((key.gpu, str(key), repr(entry.choice)) for key, entry in table.items())
    return InForce(table, sha256(repr(choices).encode()).hexdigest() if choices else "", {})


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # a pipe would wait for whoever writes to it


def _known(path: Path) -> tuple[Table, str]:
    """Return what a table holds before it is written, and the first thing that cannot be merged, or ""."""
    try:
        table, problems = load(path)
    except FileNotFoundError:
        return {}, ""
    except ValueError as error:
        return {}, str(error) or "not a table"
    return table, problems[0] if problems else ""


def _tell() -> None:
    for listener in _listeners:
        listener()


def _warn_once(path: Path, problem: str) -> None:
    if (path, problem) not in _warned:
        _warned.add((path, problem))
        log.warning("%s %s", path, problem)
