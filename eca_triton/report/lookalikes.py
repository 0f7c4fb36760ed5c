"""Modules that look like ECA and that no graph showed as such: by their class's name, or by a convolution."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from ..compile.backend import Trace
    from ..compile.record import SiteRecord

# EcaModule, CecaModule, ECA, ECABlock, eca_layer, C3ECA, EfficientChannelAttention; not Decay, not MECANISM.
NAMES = re.compile(
    r"(?<![A-Za-z])C?[Ee]ca(?![a-z])|(?<![A-Z])C?ECA(?![A-Z]{2,}|[a-z])|[Ee]fficient_?[Cc]hannel_?[Aa]ttention"
)
UNREACHED = "not reached in this trace"
OTHER_LAYER = "traced, but it holds no convolution of one channel along the channels"


@dataclass(frozen=True)
class Unmatched:
    """A module that looks like ECA and of which the compiler saw no site.

    Attributes:
        name: Path of the module.
        kind: Name of its class.
        reason: `UNREACHED` or `OTHER_LAYER`.
        detail: Where Dynamo broke the graph, or "".
    """

    name: str
    kind: str
    reason: str
    detail: str


def lookalikes(model: nn.Module) -> dict[str, nn.Module]:
    """The innermost modules that look like ECA, by path."""
    found: dict[str, nn.Module] = {}
    for path, module in reversed(list(model.named_modules())):  # children before their parents
        holds_one = any(inner.startswith(f"{path}." if path else "") for inner in found)
        if not holds_one and (NAMES.search(type(module).__name__) or _has_anchor(module)):
            found[path] = module
    return dict(reversed(found.items()))


def unrecorded(found: dict[str, nn.Module], records: Iterable[SiteRecord]) -> dict[str, nn.Module]:
    """Return those of the modules that no record names."""
    names = [record.name for record in records]
    return {path: module for path, module in found.items() if not any(_within(name, path) for name in names)}


def unmatched(unrecorded: dict[str, nn.Module], trace: Trace) -> tuple[Unmatched, ...]:
    """Return why the trace had no record of a module; one that runs a recorded layer's code is left out."""
    breaks = "; ".join(trace.graph_breaks)
    return tuple(
        Unmatched(path, type(module).__name__, OTHER_LAYER, "")
        if path in trace.modules
        else Unmatched(path, type(module).__name__, UNREACHED, breaks and f"graph break: {breaks}")
        for path, module in unrecorded.items()
        if not any(_within(weight, path) for weight in trace.weights)
    )


def _within(name: str, path: str) -> bool:
    return f"{name}.".startswith(f"{path}." if path else "")


def _has_anchor(module: nn.Module) -> bool:
    """Return whether a child is a convolution from one channel to one, along one axis."""
    children = [child for child in module.children() if isinstance(child, (nn.Conv1d, nn.Conv2d))]
    return any(
        tuple(child.weight.shape[:2]) == (1, 1) and child.weight.numel() == max(child.weight.shape)
        for child in children
    )
