"""FLOP formulas for `torch.utils.flop_counter`: 2 N C k for the convolution and for each gradient of it.

A multiply and an add per tap, as torch counts a convolution; 2 N C I more where a projection is before it.
Pooling, gate and rescale count nothing there: an operator counts what the eager spelling of the block counts.
"""

from __future__ import annotations

import importlib.util
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_FLOP_COUNTER = "torch.utils.flop_counter"


def convolution(x: Sequence[int], weight: Sequence[int], *_: object, **__: object) -> int:
    return 2 * x[0] * x[1] * weight[-1]


def convolution_backward(
    grad: Sequence[int], pooled: Sequence[int], weight: Sequence[int], *_: object, **__: object
) -> int:
    return 2 * convolution(pooled, weight)


def site_backward(
    grad: Sequence[int], x: Sequence[int], weight: Sequence[int], *_: object, wants_x: bool = True,
    wants_band: bool = True, **__: object,
) -> int:  # fmt: skip
    return (wants_x + wants_band) * convolution(x, weight)


def projection(
    pooled: Sequence[int], projection: Sequence[int], weight: Sequence[int], *_: object, **__: object
) -> int:
    return 2 * pooled[0] * projection[0] * (projection[1] + weight[-1])


def rescaled(x: Sequence[int], projection: Sequence[int], *_: object, **__: object) -> int:
    return 2 * math.prod(x) * projection[0]


class _OnImport(MetaPathFinder):
    """Registers the formulas when somebody imports the flop counter.

    Importing it ourselves would import Triton, and the first call of an operator is too late: a
    `FlopCounterMode` copies the registry when it is made.
    """

    def __init__(self, formulas: Mapping[Any, Callable[..., int]]) -> None:
        self._formulas = formulas

    def find_spec(self, name: str, path: object, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != _FLOP_COUNTER:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_register(module: ModuleType) -> None:
            execute(module)
            _register(self._formulas)

        spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]  # this spec's own loader
        return spec


def register(formulas: Mapping[Any, Callable[..., int]]) -> None:
    """Let the flop counter know operators by their formulas, now or as soon as somebody imports it."""
    if _FLOP_COUNTER in sys.modules:
        _register(formulas)
    else:
        sys.meta_path.insert(0, _OnImport(formulas))


def _register(formulas: Mapping[Any, Callable[..., int]]) -> None:
    from torch.utils.flop_counter import register_flop_formula

    for op, formula in formulas.items():
        register_flop_formula(op.overloadpacket)(formula)
