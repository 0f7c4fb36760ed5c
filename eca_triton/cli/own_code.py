"""Errors of a user's own file, told by the user's lines."""

from __future__ import annotations

import ast
import traceback
from pathlib import Path

NO_GPU = ("Found no NVIDIA driver", "not compiled with CUDA enabled", "No CUDA GPUs are available")


class OwnCodeError(Exception):
    """The user's file ended with an error; the message says where, and what may help."""


def told(path: Path, error: BaseException, doing: str) -> OwnCodeError:
    """Tell an error by the user's file, whose frames are the only ones that the user can change.

    Args:
        path: The file.
        error: What it ended with.
        doing: What was done with it, "run" say.
    """
    place = place_of(path, error)
    lines = [f"{place or path} ended with an error when it was {doing}", f"  {summary(error)}"]
    if advice := _advice(error):
        lines.append(f"  {advice}")
    return OwnCodeError("\n".join(lines))


def place_of(path: Path, error: BaseException) -> str:
    """The line of a file that an error, or what caused it, comes from: "FILE, line 7 (code)"; "" if none."""
    if isinstance(error, SyntaxError) and error.filename and Path(error.filename).is_file():
        return f"{error.filename}, line {error.lineno} ({(error.text or '').strip()})"
    seen: BaseException | None = error
    while seen is not None:
        frames = traceback.extract_tb(seen.__traceback__)
        for frame in reversed(frames):
            if Path(frame.filename).resolve() == path.resolve():
                return f"{frame.filename}, line {frame.lineno} ({frame.line})"
        seen = seen.__cause__ or seen.__context__
    return ""


def summary(error: BaseException) -> str:
    """The error's class and the first paragraph of its message, without torch's hints and dumps."""
    message = str(error).strip().split("\n\n")[0]
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def _advice(error: BaseException) -> str:
    if isinstance(error, ModuleNotFoundError):
        return f"install {error.name} into this Python, or put its folder on PYTHONPATH"
    if any(words in str(error) for words in NO_GPU):
        return "leave the model on the CPU: no GPU is needed here"
    return ""


def functions_of(path: Path) -> list[str]:
    """The functions that a file defines at its top, without running it; none if it cannot be read."""
    try:
        tree = ast.parse(path.read_text())
    except (OSError, SyntaxError, ValueError):
        return []
    return [node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name[0] != "_"]
