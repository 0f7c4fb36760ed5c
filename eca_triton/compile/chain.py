"""Inductor's hooks for passes: several passes in one, and what ours in them was asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import fx

from .compat import CustomGraphPass, as_passes, inductor_config
from .settings import Settings

PRE_GRAD_HOOK = "pre_grad_custom_pass"
POST_GRAD_HOOK = "post_grad_custom_post_pass"


class Chain(CustomGraphPass):
    """Several passes in a hook that torch 2.11 and 2.12 give room for one."""

    def __init__(self, *passes: Callable[[fx.Graph], None]) -> None:
        self.passes = passes

    def __call__(self, graph: fx.Graph) -> None:
        """Run the passes in order."""
        for each in self.passes:
            each(graph)

    def uuid(self) -> Any:
        """All passes' uuids; None, which keeps the graph out of the cache, if one has none."""
        uuids = [each.uuid() if isinstance(each, CustomGraphPass) else None for each in self.passes]
        return None if None in uuids else tuple(uuids)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as the passes do."""
        return type(self), self.passes


def is_strict() -> bool:
    """Return whether the current compilation was asked to be strict: Inductor's cache key tells."""
    hooks = as_passes(getattr(inductor_config(), POST_GRAD_HOOK))
    inside = [each for hook in hooks for each in (hook.passes if isinstance(hook, Chain) else (hook,))]
    found = [getattr(each, "settings", None) for each in inside]
    return any(isinstance(settings, Settings) and settings.strict for settings in found)
