"""Which attention stands in which block of a network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeAlias

from torch import nn

from .attention import ATTENTION

Attention: TypeAlias = "str | Callable[[int], nn.Module] | None"
"""A key of `ATTENTION`; what makes a module from a number of channels; or None, for none."""
KSize: TypeAlias = "int | Sequence[int] | None"
"""Taps of ECA: of all blocks, of the blocks of each stage, or None for the adaptive rule."""


def makers(attention: Attention, k_size: KSize, stages: int) -> list[Callable[[int], nn.Module]] | None:
    """What makes the module of each stage from its number of channels; None if there is to be none.

    Raises:
        ValueError: there is no such attention, it has no taps, or the taps do not match the stages.
    """
    if isinstance(attention, str) and attention not in ATTENTION:
        raise ValueError(f"unknown attention {attention!r}; choose {', '.join(ATTENTION)}")
    if k_size is not None and attention not in ("eca", "eca_ns"):
        raise ValueError(f"k_size is for eca and eca_ns, got {k_size} with attention {attention!r}")
    if attention is None:
        return None
    make: Any = ATTENTION[attention] if isinstance(attention, str) else attention
    if k_size is None:
        return [make] * stages
    each = [k_size] * stages if isinstance(k_size, int) else list(k_size)
    if len(each) != stages:
        raise ValueError(f"k_size must be one number or one per stage ({stages}), got {each}")
    return [partial(make, k_size=k) for k in each]
