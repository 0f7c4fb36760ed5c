"""What a check found, for JSON; convolutions without TF32; an error in one line."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Check:
    """Largest error against float64, and the largest that is allowed: twice eager's own, plus one ulp."""

    error: float
    allowed: float
    tensor: str = "out"

    @property
    def passed(self) -> bool:
        """False for NaN, too."""
        return self.error <= self.allowed

    def as_dict(self) -> dict[str, Any]:
        """For JSON, which has no NaN: as text, then."""
        error = self.error if math.isfinite(self.error) else str(self.error)
        return {"error": error, "allowed": self.allowed, "passed": self.passed, "tensor": self.tensor}


@contextmanager
def exact_convolutions() -> Iterator[None]:
    """Without TF32, whose error in eager fp32 would excuse anyone's."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def short(error: Exception) -> str:
    """One line for a record."""
    text = str(error).strip() or "no message"
    return f"{type(error).__name__}: {text.splitlines()[0][:200]}"
