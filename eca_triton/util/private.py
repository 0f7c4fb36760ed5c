"""Private names of torch with which eager calls cost little, and what stands in where a release lacks one.

The stand-ins say that somebody listens in, so that every call goes the long way, which is as right.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

__all__ = [
    "function_modes_are_active",
    "is_exporting",
    "number_of_dispatch_modes",
    "profiler_is_active",
    "untraced",
]

try:
    from torch._C import _is_torch_function_mode_enabled as function_modes_are_active
    from torch._C import _len_torch_dispatch_stack as number_of_dispatch_modes
    from torch._C._autograd import _profiler_enabled as profiler_is_active
except ImportError:

    def number_of_dispatch_modes() -> int:
        """Return how many modes see every operator."""
        return 1

    def function_modes_are_active() -> bool:
        """Return whether a mode sees every function of torch."""
        return True

    def profiler_is_active() -> bool:
        """Return whether a profiler records operators."""
        return True


def is_exporting() -> bool:
    """Return whether torch.export traces: 2.11's `torch.compiler.is_exporting` also knows torch.compile."""
    return bool(getattr(torch.compiler, "_is_exporting_flag", False))


Function = TypeVar("Function", bound=Callable[..., Any])


def untraced(function: Function) -> Function:
    """Keeps Dynamo from tracing its frames and those below, which it tries where a graph is broken."""
    try:
        from torch._C._dynamo.eval_frame import _FrameAction, _FrameExecStrategy, set_code_exec_strategy
    except ImportError:
        return function
    set_code_exec_strategy(function.__code__, _FrameExecStrategy(_FrameAction.SKIP, _FrameAction.SKIP))
    return function
