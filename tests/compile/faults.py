"""Let any function of `eca_triton.compile` fail, at one of its calls or at all of them."""

from __future__ import annotations

import functools
import importlib
import pkgutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import CodeType, FunctionType
from typing import Any

import eca_triton.compile


class InjectedError(Exception):
    """What a function raises here."""


def functions() -> dict[CodeType, tuple[str, FunctionType]]:
    """All functions and methods of the compiler's files, by their code, with their names."""
    found: dict[CodeType, tuple[str, FunctionType]] = {}
    for info in pkgutil.walk_packages(eca_triton.compile.__path__, "eca_triton.compile."):
        module = importlib.import_module(info.name)
        for owner in (module, *(item for item in vars(module).values() if isinstance(item, type))):
            if getattr(owner, "__module__", owner.__name__) != module.__name__ and owner is not module:
                continue
            for item in vars(owner).values():
                for function in _functions_in(item):
                    here = function.__code__.co_filename == module.__file__
                    if here and not function.__code__.co_freevars:  # cells cannot be given to another code
                        name = f"{info.name.rpartition('.')[2]}.{function.__qualname__}"
                        found.setdefault(function.__code__, (name, function))
    return found


def _functions_in(item: Any) -> Iterator[FunctionType]:
    """A function, what it is a wrapper of, or those of a property."""
    kinds = FunctionType, property, classmethod, staticmethod, functools._lru_cache_wrapper
    if not isinstance(item, kinds):
        return
    for each in (item, getattr(item, "fget", None), getattr(item, "__func__", None)):
        while each is not None:
            if isinstance(each, FunctionType):
                yield each
            each = getattr(each, "__wrapped__", None)


@contextmanager
def watched() -> Iterator[set[str]]:
    """Collect the names of the functions that are called inside."""
    known, called = functions(), set()

    def note(frame: Any, event: str, _: object) -> None:
        if event == "call" and frame.f_code in known:
            called.add(known[frame.f_code][0])

    sys.setprofile(note)
    try:
        yield called
    finally:
        sys.setprofile(None)


@contextmanager
def failing(name: str, at: int | None = None) -> Iterator[list[int]]:
    """Within it the function of that name raises: at its call number `at`, or at each; counts its calls."""
    (function,) = (function for each, function in functions().values() if each == name)
    original = function.__code__
    # As it was, for the calls that do not fail.
    right = FunctionType(
        original, function.__globals__, function.__name__, function.__defaults__, function.__closure__
    )
    right.__kwdefaults__ = function.__kwdefaults__
    calls = [0]

    def call(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        calls[0] += 1
        if at is None or calls[0] == at:
            raise InjectedError(name)
        return right(*args, **kwargs)

    _current.append(call)
    function.__code__ = _code(len(original.co_freevars))
    cleared = getattr(sys.modules[function.__module__], function.__name__, None)
    getattr(cleared, "cache_clear", lambda: None)()
    try:
        yield calls
    finally:
        function.__code__ = original
        _current.pop()
        getattr(cleared, "cache_clear", lambda: None)()


_current: list[Callable[[tuple[Any, ...], dict[str, Any]], Any]] = []


def _code(free: int) -> CodeType:
    """The code of a function that hands its arguments to the last of `_current`; it has so many cells."""
    if free:
        raise ValueError("a function with cells cannot be replaced")

    def handed_on(*args: Any, **kwargs: Any) -> Any:
        return __import__("faults")._current[-1](args, kwargs)

    return handed_on.__code__
