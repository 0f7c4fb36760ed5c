"""Which attention stands where in a network: inside residual units, or behind some of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any, TypeAlias

from torch import nn

from .attention import ATTENTION

Attention: TypeAlias = "str | Callable[[int], nn.Module] | None"
"""A key of `ATTENTION`; what makes a module from a number of channels; or None, for none."""
KSize: TypeAlias = "int | Sequence[int] | None"
"""Taps of ECA: of all units, of the units of each stage, or None for the adaptive rule."""


@dataclass(frozen=True)
class Unit:
    """A residual unit of a network.

    Attributes:
        sequence: the units that it stands among.
        name: its own there.
        channels: of its result.
        stage: from 0, those that `k_size` counts.
        stride: of its result against the image, where nothing is dilated.
    """

    sequence: nn.Sequential
    name: str
    channels: int
    stage: int
    stride: int

    @property
    def module(self) -> Any:
        """The unit itself."""
        return self.sequence.get_submodule(self.name)


def place(
    attention: Attention, k_size: KSize, units: Sequence[Unit], inside: Callable[[Any, nn.Module], None]
) -> None:
    """Put modules into a network, on the device and in the dtype of their units.

    Each unit gets one by `inside`, unless the attention has an attribute `behind`, {stride: number}: then so
    many of the units at that stride, evenly spread, are each followed by one.

    Args:
        attention: as `Attention` says.
        k_size: as `KSize` says.
        units: all of the network, in order.
        inside: puts a module into a unit.

    Raises:
        ValueError: there is no such attention, it has no taps, or the taps do not match the stages.
    """
    make = _makers(attention, k_size, len({unit.stage for unit in units}))
    if make is None:
        return
    behind: Mapping[int, int] | None = getattr(getattr(make[0], "func", make[0]), "behind", None)
    for unit in units if behind is None else _followed(units, behind):
        like = next(unit.module.parameters())
        module = make[unit.stage](unit.channels).to(like.device, like.dtype)
        if behind is None:
            inside(unit.module, module)
        else:
            _insert_behind(unit, module)


def _makers(attention: Attention, k_size: KSize, stages: int) -> list[Callable[[int], nn.Module]] | None:
    """What makes the module of each stage from its number of channels; None if there is to be none."""
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


def _followed(units: Sequence[Unit], behind: Mapping[int, int]) -> list[Unit]:
    """Of the units at each stride so many, or all if there are fewer: evenly, the last among them.

    2 of 4 and 3 of 6 are every other one, as in the code of Non-local nets
    (https://github.com/facebookresearch/video-nonlocal-net).
    """
    found = []
    for stride, same in groupby(units, key=lambda unit: unit.stride):
        alike = list(same)
        number = min(behind.get(stride, 0), len(alike))
        found += [alike[(i + 1) * len(alike) // number - 1] for i in range(number)]
    return found


def _insert_behind(unit: Unit, module: nn.Module) -> None:
    """`nn.Sequential.insert` would rename all units that follow, and their weights with them."""
    members = list(unit.sequence.named_children())
    followers = members[[name for name, _ in members].index(unit.name) + 1 :]
    for name, _ in followers:
        delattr(unit.sequence, name)
    for name, member in [(f"{unit.name}_attention", module), *followers]:
        unit.sequence.add_module(name, member)
