"""What the operators do on every device: Triton kernels where they can run, else the plain formula."""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..launch.replay import Calls
from ..util.private import untraced
from .operators import OPERATORS, checked, name_of
from .schema import LIBRARY

CALLS: dict[Callable[..., Any], Calls] = {op: Calls() for op in OPERATORS}
"""Per operator the calls that were launched before."""


def _kernel(op: Any) -> Callable[..., Any]:
    """Make an operator's kernel below autograd, for any device: it asks the map where to go."""
    row, calls = OPERATORS[op], CALLS[op]
    again = calls.again

    @untraced
    def kernel(*args: Any, **kwargs: Any) -> Any:
        outs = again(args, kwargs)
        if outs is not None:
            return outs
        a, outs = checked(op, *args, **kwargs)
        if have_kernels(a.x if "x" in a._fields else a.pooled) and row.takes(a):
            with calls.first(args, kwargs, _several(outs)):
                row.launch(a, outs)
        else:
            for out, result in zip(_several(outs), _several(row.formula(a)), strict=True):
                out.copy_(result)
        return outs

    return kernel


def _fake(op: Any) -> Callable[..., Any]:
    return lambda *args, **kwargs: checked(op, *args, **kwargs)[1]


def _several(outs: Any) -> tuple[Tensor, ...]:
    return outs if isinstance(outs, tuple) else (outs,)


def have_kernels(x: Tensor) -> bool:
    """Return whether our kernels run for x; else the plain formula computes."""
    if x.device.type != "cuda" and not (x.device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"):
        return False
    supports = _supports()
    return supports is not None and supports(x)


@functools.cache
def _supports() -> Callable[[Tensor], bool] | None:
    """Return the test of what kernels take; None without Triton, which launchers are the first to import."""
    if importlib.util.find_spec("triton") is None:
        return None
    from ..launch.devices import supports

    return supports


for _op in OPERATORS:
    LIBRARY.impl(name_of(_op), _kernel(_op), "CompositeExplicitAutograd")
    torch.library.register_fake(_op.name(), _fake(_op), lib=LIBRARY)
