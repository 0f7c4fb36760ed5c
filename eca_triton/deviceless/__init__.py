"""See what torch.compile makes of a model for a GPU that is not there: kernels, external calls and bytes."""

from __future__ import annotations

from ..tuning.targets import TARGETS, Target
from .lowering import compare, lower
from .result import Buffer, Comparison, Kernel, Lowering
from .stand_in import NoDataError

__all__ = [
    "TARGETS",
    "Buffer",
    "Comparison",
    "Kernel",
    "Lowering",
    "NoDataError",
    "Target",
    "compare",
    "lower",
]
