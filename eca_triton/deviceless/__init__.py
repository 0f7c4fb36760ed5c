"""See what torch.compile makes of a model for a GPU that is not there: kernels, external calls and bytes."""

from __future__ import annotations

from .lowering import compare, lower
from .result import Buffer, Comparison, Kernel, Lowering
from .targets import TARGETS, Target

__all__ = ["TARGETS", "Buffer", "Comparison", "Kernel", "Lowering", "Target", "compare", "lower"]
