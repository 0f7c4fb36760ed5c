"""How the file of a table changes: under a lock, and whole or not at all."""

from __future__ import annotations

import errno
import glob
import os
import secrets
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from functools import partial
from itertools import count
from pathlib import Path
from typing import BinaryIO

LOCK_SECONDS = 30.0  # others hold it for one write


def target(path: Path) -> Path:
    """Return the file that is to be written: what a symbolic link leads to, so that the link stays one.

    Raises:
        OSError: the link leads in a circle or into no directory, or what is there is not a file that may be
            written.
    """
    real = Path(os.path.realpath(path))
    if real.is_symlink():
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
    if real.exists() and not real.is_file():
        raise OSError(errno.EINVAL, "not a file", str(real))
    if real.exists() and not os.access(real, os.W_OK):  # a new file would take its place all the same
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(real))
    if not real.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(real.parent))
    return real


def locked(path: Path) -> AbstractContextManager[object]:
    """Hold the lock by which writers of a file take turns; raise OSError after LOCK_SECONDS."""
    import filelock  # comes with torch

    return filelock.FileLock(path.with_name(f".{path.name}.lock"), timeout=LOCK_SECONDS, mode=0o600)


def replace(path: Path, text: str, *, mode: int = 0o600, keep_old: bool = False) -> Path | None:
    """Give a file other contents; readers, a full disk and a kill leave the old ones or the new ones, whole.

    Call it under the file's lock: it deletes what writers that were killed left behind.

    Args:
        path: As `target` returns it.
        text: The new contents.
        mode: Of a new file, less the umask; an old one keeps its own.
        keep_old: Whether the old contents stay in a file beside it.

    Returns:
        Path | None: that file.

    Raises:
        OSError: the file could not be written, and is as it was.
    """
    for left in path.parent.glob(_unfinished(glob.escape(path.name), "?" * 8)):
        with suppress(OSError):  # another user's
            left.unlink()
    aside = _copy_aside(path) if keep_old else None
    try:
        _write(path, path, mode, lambda file: file.write(text.encode()))
    except BaseException:
        if aside is not None:
            aside.unlink()
        raise
    return aside


def _copy_aside(path: Path) -> Path:
    """Copy a file beside itself, under a name that is free."""
    for number in count(1):
        aside = path.with_name(f"{path.name}.unreadable{f'-{number}' if number > 1 else ''}")
        if not os.path.lexists(aside):
            break
    with open(path, "rb") as old:
        _write(aside, path, 0o600, partial(shutil.copyfileobj, old))
    return aside


def _write(path: Path, table: Path, mode: int, fill: Callable[[BinaryIO], object]) -> None:
    new = table.with_name(_unfinished(table.name, secrets.token_hex(4)))
    try:
        with open(new, "xb", opener=partial(os.open, mode=mode)) as file:
            fill(file)
            file.flush()
            with suppress(OSError):  # no old file, or a file system without modes
                shutil.copymode(path, new)
            os.fsync(file.fileno())
        os.replace(new, path)
    except BaseException:
        with suppress(OSError):
            new.unlink()
        raise


def _unfinished(table: str, of_one_writer: str) -> str:
    return f".{table}.{of_one_writer}.unfinished"
