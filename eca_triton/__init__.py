"""Fused Efficient Channel Attention (ECA) for PyTorch: Triton kernels and the compiler pass that uses them.

    model = torch.compile(model, backend="eca_triton")

Importing this package needs torch and einops. It registers the ops of ``torch.ops.eca_triton`` and imports
neither Triton nor the machinery of torch.compile, which load when they are first used.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING

from .version import __version__ as __version__

# `python -m eca_triton` imports this package to find __main__, which imports the ops as a command needs
# them: --help is there at once.
_arguments = getattr(sys, "argv", [])
if _arguments[:1] != ["-m"] or sys.orig_argv[-len(_arguments) :][:1] != ["eca_triton"]:
    from . import ops as ops  # registers torch.ops.eca_triton.*

if TYPE_CHECKING:
    from eca_triton import compile as compile
    from eca_triton import deviceless as deviceless
    from eca_triton import models as models
    from eca_triton import report as report
    from eca_triton import tuning as tuning
    from eca_triton.compile.export import aoti_compile_and_package, decompose, rewrite_exported
    from eca_triton.compile.hooks import disable, enable, enabled, inductor_options
    from eca_triton.compile.reasons import NotLoweredError
    from eca_triton.functional import BatchNormParameters, adaptive_kernel_size, eca, eca_gate
    from eca_triton.module import ECA, ECABlock
    from eca_triton.ops.decompositions import decomposition_table
    from eca_triton.report import assert_lowered, explain, last_report

_PACKAGES = {"compile", "deviceless", "models", "report", "tuning"}
_HOME_OF = {
    "BatchNormParameters": "eca_triton.functional",
    "ECA": "eca_triton.module",
    "ECABlock": "eca_triton.module",
    "NotLoweredError": "eca_triton.compile.reasons",
    "adaptive_kernel_size": "eca_triton.functional",
    "aoti_compile_and_package": "eca_triton.compile.export",
    "assert_lowered": "eca_triton.report",
    "decompose": "eca_triton.compile.export",
    "decomposition_table": "eca_triton.ops.decompositions",
    "disable": "eca_triton.compile.hooks",
    "eca": "eca_triton.functional",
    "eca_gate": "eca_triton.functional",
    "enable": "eca_triton.compile.hooks",
    "enabled": "eca_triton.compile.hooks",
    "explain": "eca_triton.report",
    "inductor_options": "eca_triton.compile.hooks",
    "last_report": "eca_triton.report",
    "rewrite_exported": "eca_triton.compile.export",
}

__all__ = [
    "ECA",
    "BatchNormParameters",
    "ECABlock",
    "NotLoweredError",
    "__version__",
    "adaptive_kernel_size",
    "aoti_compile_and_package",
    "assert_lowered",
    "decompose",
    "decomposition_table",
    "disable",
    "eca",
    "eca_gate",
    "enable",
    "enabled",
    "explain",
    "inductor_options",
    "last_report",
    "rewrite_exported",
]


def __getattr__(name: str) -> object:
    """Import a public name from its home, or a package, on first use."""
    if name in _PACKAGES:
        return import_module(f"{__name__}.{name}")
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
