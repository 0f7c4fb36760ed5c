"""Where tuned tables are, what they say, and how they are written.

A process reads them once, when the first kernel's config is asked for, and keeps what it read: no call in the
middle of a run changes its config because a file did. `save` and `reload` are the two ways to read anew.
"""

from __future__ import annotations

import logging
import os
import stat
import tempfile
import threading
from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path

from .choice import Choice
from .key import Key
from .table import Entry, Table, parse, serialize

log = logging.getLogger("eca_triton")

MODES = ("user", "shipped", "off")
SHIPPED = Path(__file__).parent / "tables"
MAX_BYTES = 16 << 20  # of a table: thousands of networks
LOCK_SECONDS = 30.0  # others hold it for one write

_lock = threading.Lock()
_read: dict[tuple[str, Path], Table] = {}
_warned: set[Path] = set()
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
    return Path(root, "eca_triton", "tuned.json")


def tables(may_read: bool = True) -> Table:
    """All entries in force; the user's come before the shipped ones. Empty if they would have to be read."""
    state = mode(), user_table()
    table = _read.get(state)
    if table is None and may_read:
        with _lock:
            table = _read.get(state)
            if table is None:
                table = _read[state] = _read_all(*state)
        _tell()
    return table or {}


def lookup(key: Key | None, may_read: bool = True) -> Choice | None:
    """What was tuned for a key, or None.

    Args:
        key: As `Key.of` makes it; None has no entry.
        may_read: False in a graph capture: only what was read before counts.
    """
    if key is None:
        return None
    entry = tables(may_read).get(key)
    return None if entry is None else entry.choice


def save(entries: Mapping[Key, Entry], *, path: Path | None = None) -> Path:
    """Merge entries into a table, by default the user's; in force for every later call of this process.

    Under a lock, by a new file that takes the old one's place: readers and a crash see either, whole.

    Args:
        entries: Take the place of those that the table has for the same keys.
        path: Of another table.

    Returns:
        Path: where they were written.

    Raises:
        OSError: the table cannot be written, or another process holds its lock for long.
    """
    import filelock  # comes with torch

    path = user_table() if path is None else path
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with filelock.FileLock(f"{path}.lock", timeout=LOCK_SECONDS, mode=0o600):
        _replace(path, serialize(_kept(path) | dict(entries)))
    reload()
    return path


def reload() -> None:
    """Forget what was read, and the plans that were made with it: the next call reads the tables anew."""
    with _lock:
        _read.clear()
        _warned.clear()
    _tell()


def on_change(listener: Callable[[], None]) -> None:
    """Have a function called whenever other entries may be in force."""
    _listeners.append(listener)


def fingerprint() -> str:
    """Of all entries in force, for keys of caches of code that was generated with them."""
    table = tables()
    return sha256(serialize(table).encode()).hexdigest() if table else ""


def read(path: Path) -> Table:
    """The entries of one file; none, and one warning, if there is anything wrong with it."""
    try:
        table, problems = parse(_text(path))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        _warn_once(path, f"is ignored: {error}")
        return {}
    if problems:
        _warn_once(path, f"has {len(problems)} entries that are ignored; the first: {problems[0]}")
    return table


def _read_all(mode: str, user: Path) -> Table:
    table: Table = {}
    if mode != "off":
        for path in sorted(SHIPPED.glob("*.json")):
            table |= read(path)
    return table | read(user) if mode == "user" else table


def _text(path: Path) -> str:
    with open(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), encoding="utf-8") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("not a file")
        if status.st_size > MAX_BYTES:
            raise ValueError(f"larger than {MAX_BYTES} bytes")
        return file.read()


def _kept(path: Path) -> Table:
    """What a table holds before it is written; one that cannot be understood is put aside, not lost."""
    try:
        return parse(_text(path))[0]
    except FileNotFoundError:
        return {}
    except ValueError as error:
        aside = path.with_name(f"{path.name}.unreadable")
        os.replace(path, aside)
        log.warning("%s could not be merged (%s) and is now %s", path, error, aside)
        return {}


def _replace(path: Path, text: str) -> None:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # mode 0600
    try:
        with open(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def _tell() -> None:
    for listener in _listeners:
        listener()


def _warn_once(path: Path, problem: str) -> None:
    if path not in _warned:
        _warned.add(path)
        log.warning("%s %s", path, problem)
