"""Tuned tables as text: JSON of plain numbers and names, of which every part is checked before it is used.

{"schema": 1, "gpus": {"NVIDIA H200": {"<key>": {"kernel": "tile", "config": {"block_c": 8, ...},
"time_us": 41.2, "heuristic_us": 43.0, "versions": {"triton": "3.6.0", ...}}}}}
"""

from __future__ import annotations

import json
import math
import re
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from importlib import metadata
from typing import Any

from ..version import __version__
from .allowed import impossible
from .config import FIXED, Choice, flags
from .kernels import KERNELS
from .key import Key

SCHEMA = 1
MAX_INTEGER = 2**31 - 1  # what a kernel's constant may be
MAX_DIGITS = 20  # of an integer; with more it is as good as infinite
_VERSION = re.compile(r"[\w.+-]{1,64}", re.ASCII)


def versions() -> dict[str, str]:
    """Return what a measured time depends on besides the GPU, as it is here and now."""
    found = {"eca_triton": __version__}
    for package in ("torch", "triton"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "unknown"
    return found


@dataclass(frozen=True)
class Entry:
    """Tuned choice for a key.

    Attributes:
        choice: The fastest kernel and its config.
        time_us: It took so long.
        heuristic_us: And what it replaces so long, in the same run.
        versions: Of the packages that both were measured with.
    """

    choice: Choice
    time_us: float
    heuristic_us: float
    versions: Mapping[str, str] = field(default_factory=versions)


Table = dict[Key, Entry]


def parse(text: str) -> tuple[Table, list[str]]:
    """The entries of a table, and what was wrong with those that were left out.

    Raises:
        ValueError: the text is not a table, or one of another schema.
    """
    try:
        document = json.loads(text, parse_int=_integer)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON: {error}") from error
    if not isinstance(document, dict) or not isinstance(document.get("gpus"), dict):
        raise ValueError("not a table of tuned configs")
    if document.get("schema") != SCHEMA or isinstance(document["schema"], bool):
        raise ValueError(f"schema must be {SCHEMA}, got {reprlib.repr(document.get('schema'))}")
    table: Table = {}
    problems: list[str] = []
    for gpu, entries in document["gpus"].items():
        if not isinstance(entries, dict) or not gpu.isprintable() or len(gpu) > 200:
            problems.append(f"{gpu[:50]!r} is no GPU with entries")
            continue
        for text_of_key, value in entries.items():
            try:
                key = Key.parse(gpu, text_of_key)
                table[key] = _entry(key, value)
            except ValueError as error:
                problems.append(str(error))
            except Exception as error:  # whatever a file holds, one bad entry is one problem
                problems.append(f"{text_of_key[:200]!r}: {type(error).__name__}: {error}")
    return table, problems


def serialize(table: Mapping[Key, Entry]) -> str:
    """The table as text: sorted, one line per entry, so that two tables can be compared by line."""
    sections = [
        f"{json.dumps(gpu)}: {{\n"
        + ",\n".join(
            f"{json.dumps(key)}: {json.dumps(value, allow_nan=False)}" for key, value in values.items()
        )
        + "\n}"
        for gpu, values in by_gpu(table).items()
    ]
    return f'{{"schema": {SCHEMA}, "gpus": {{' + ",\n".join(sections) + "}}\n"


def by_gpu(table: Mapping[Key, Entry]) -> dict[str, dict[str, dict[str, Any]]]:
    """Return what a table says of each GPU: entries of plain values, by the text of their keys, sorted."""
    gpus: dict[str, dict[str, dict[str, Any]]] = {}
    for key, entry in sorted(table.items(), key=lambda item: (item[0].gpu, str(item[0]))):
        gpus.setdefault(key.gpu, {})[str(key)] = {
            "kernel": entry.choice.kernel,
            "config": entry.choice.integers(),
            "time_us": entry.time_us,
            "heuristic_us": entry.heuristic_us,
            "versions": dict(entry.versions),
        }
    return gpus


def choice_of(kind: str, kernel: object, config: object) -> Choice:
    """The choice, for a kind of problem, whose kernel and `integers` these are.

    Raises:
        ValueError: there is no such kernel, or its config has other names, or values that it cannot run with.
    """
    kernels = KERNELS[kind]
    if not isinstance(kernel, str) or kernel not in kernels:
        raise ValueError(f"kernel must be one of {', '.join(kernels)}, got {reprlib.repr(kernel)}")
    made_of = kernels[kernel].config
    if not isinstance(config, dict):
        raise ValueError(f"config must be an object, got {reprlib.repr(config)}")
    expected = set() if made_of is None else _names(made_of)
    if set(config) != expected:
        raise ValueError(f"config of {kernel} must have {sorted(expected)}, got {str(sorted(config))[:200]}")
    for name, value in config.items():
        if type(value) is not int or not 0 <= value <= MAX_INTEGER:
            raise ValueError(f"{name} must be an integer from 0 to {MAX_INTEGER}, got {reprlib.repr(value)}")
    made: Any = None if made_of is None else _config(made_of, config)
    choice = Choice(kernel, made)  # type: ignore[arg-type]
    if problem := impossible(choice):
        raise ValueError(problem)
    return choice


def _integer(digits: str) -> int | float:
    return int(digits) if len(digits) <= MAX_DIGITS else math.inf


def _names(made_of: Any) -> set[str]:
    return {each.name for each in fields(made_of)} - FIXED


def _config(made_of: Any, values: dict[str, int]) -> Any:
    either = {name: values[name] for name in flags(made_of)}
    if not set(either.values()) <= {0, 1}:
        raise ValueError(f"{' and '.join(either)} must be 0 or 1, got {either}")
    return made_of(**values | {name: bool(value) for name, value in either.items()})


def _entry(key: Key, value: object) -> Entry:
    expected = {"kernel", "config", "time_us", "heuristic_us", "versions"}
    if not isinstance(value, dict) or set(value) != expected:
        raise ValueError(f"{key}: an entry must have {sorted(expected)}")
    times = value["time_us"], value["heuristic_us"]
    if not all(type(time) in (int, float) and math.isfinite(time) and time > 0 for time in times):
        raise ValueError(f"{key}: times must be positive numbers, got {reprlib.repr(times)}")
    of_packages = value["versions"]
    if not isinstance(of_packages, dict) or not all(
        isinstance(each, str) and _VERSION.fullmatch(each) for item in of_packages.items() for each in item
    ):
        raise ValueError(f"{key}: versions must be texts by package, got {reprlib.repr(of_packages)}")
    try:
        choice = choice_of(key.kernel, value["kernel"], value["config"])
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from error
    return Entry(choice, *times, of_packages)
