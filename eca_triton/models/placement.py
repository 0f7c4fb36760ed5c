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
Makers: TypeAlias = "Mapping[str, Callable[..., nn.Module]]"
"""Attentions by name, as `ATTENTION`."""
KSize: TypeAlias = "int | Sequence[int] | None"
"""Taps of ECA: of all units, of the units of each stage, or None for the adaptive rule."""

BEHIND = "_attention"
"""Ends the name of a module that stands behind the unit of that name."""


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

    @property
    def end(self) -> str:
        """The name in the sequence of what stands behind the unit, or of the unit itself."""
        behind = self.name + BEHIND
        return behind if hasattr(self.sequence, behind) else self.name


def place(
    attention: Attention,
    k_size: KSize,
    units: Sequence[Unit],
    inside: Callable[[Any, nn.Module], None],
    known: Makers = ATTENTION,
) -> None:
    """Put modules into a network, on the device and in the dtype of their units.

    Each unit gets one by `inside`, unless the attention has an attribute `behind`, {stride: number}: then so
    many of the units at that stride, evenly spread, are each followed by one.

    Args:
        attention: as `Attention` says.
        k_size: as `KSize` says.
        units: all of the network, in order.
        inside: puts a module into a unit.
        known: the attentions that have names.

    Raises:
        TypeError: attention is a function that returns no module.
        ValueError: there is no such attention, it has no taps, or the taps do not match the stages.
    """
    if attention is None and k_size is None:
        return
    make = _makers(attention, k_size, 1 + units[-1].stage, known)
    behind: Mapping[int, int] | None = getattr(getattr(make[0], "func", make[0]), "behind", None)
    for unit in units if behind is None else _followed(units, behind):
        module = make[unit.stage](unit.channels)
        if not isinstance(module, nn.Module):
            raise TypeError(f"attention must return an nn.Module, got {type(module).__name__}")
        like = next(unit.module.parameters())
        module.to(like.device, like.dtype)
        if behind is None:
            inside(unit.module, module)
        else:
            _insert_behind(unit, module)


def _makers(
    attention: Attention, k_size: KSize, stages: int, known: Makers
) -> list[Callable[[int], nn.Module]]:
    """Return for each stage the function from its number of channels to a module."""
    if isinstance(attention, str) and attention not in known:
        raise ValueError(f"unknown attention {attention!r}; choose {', '.join(known)}")
    if k_size is not None and attention not in ("eca", "eca_ns"):
        raise ValueError(f"k_size is for eca and eca_ns, got {k_size} with attention {attention!r}")
    make: Any = known[attention] if isinstance(attention, str) else attention
    if k_size is None:
        return [make] * stages
    each = [k_size] * stages if isinstance(k_size, int) else list(k_size)
    if len(each) != stages:
        raise ValueError(f"k_size must be one number or one per stage ({stages}), got {each}")
    return [partial(make, k_size=k) for k in each]


def _followed(units: Sequence[Unit], behind: Mapping[int, int]) -> list[Unit]:
    """Choose so many units of each stride, or all if there are fewer: evenly, the last among them.

    2 of 4 and 3 of 6 are every other one, as in Non-local nets.
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
    for name, member in [(unit.name + BEHIND, module), *followers]:
        unit.sequence.add_module(name, member)
