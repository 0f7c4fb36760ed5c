"""Lets torch.compile find `backend="eca_triton"` in a checkout that is not installed.

For an installed package its entry point does this. Registering with `torch._dynamo` at import would do it
too, but importing that takes a second. torch.compile asks `importlib.metadata` for entry points when it meets
a name that it does not know, so a checkout that is not installed answers there, with the same entry point.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from importlib import import_module, metadata
from typing import Any

BACKEND = "eca_triton.compile.backend:eca_triton"


class Checkout(metadata.Distribution):
    """What `importlib.metadata` would read of this package if it were installed."""

    def __init__(self, version: str) -> None:
        self._texts = {
            "METADATA": f"Name: eca_triton\nVersion: {version}\n",
            "entry_points.txt": f"[torch_dynamo_backends]\neca_triton = {BACKEND}\n",
        }

    def read_text(self, filename: str) -> str | None:
        """A file of the metadata, or None where there is no such file."""
        return self._texts.get(filename)

    def locate_file(self, path: str | os.PathLike[str]) -> Any:
        """A checkout lists no files."""
        raise NotImplementedError(f"{os.fspath(path)} of a package that is not installed")


class CheckoutFinder(metadata.DistributionFinder):
    """Adds one distribution to those that `importlib.metadata` finds; finds no modules."""

    def __init__(self, distribution: Checkout) -> None:
        self._distribution = distribution

    def find_spec(self, fullname: str, path: object, target: object = None) -> None:
        """Leave modules to the other finders."""

    def find_distributions(
        self,
        context: metadata.DistributionFinder.Context = metadata.DistributionFinder.Context(),  # noqa: B008 (the base class's own default)
    ) -> Iterable[metadata.Distribution]:
        """The checkout, when every distribution or this one is asked for."""
        return [self._distribution] if context.name in (None, "eca_triton", "eca-triton") else []


def make_backend_visible(version: str) -> None:
    """Make the backend's name known, unless the package is installed and it is known already."""
    try:
        metadata.distribution("eca_triton")
    except metadata.PackageNotFoundError:
        if "torch._dynamo" in sys.modules:  # it asks once, and may have done so before this
            register()
        sys.meta_path.append(CheckoutFinder(Checkout(version)))


def register() -> None:
    """Register the backend with a `torch._dynamo` that is imported already."""
    module, _, name = BACKEND.partition(":")
    sys.modules["torch._dynamo"].register_backend(getattr(import_module(module), name), name=name)
