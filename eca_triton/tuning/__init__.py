"""Choosing how a kernel cuts its work: pure functions, testable without a GPU and without Triton."""

from __future__ import annotations

from importlib import import_module


def __getattr__(name: str) -> object:
    """Import the store of tuned tables on first use: `eca_triton.tuning.store.reload()`."""
    if name == "store":
        return import_module(f"{__name__}.store")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
