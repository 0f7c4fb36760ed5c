"""The pass in Inductor's hooks and cache keys: for one compilation, or for all that follow.

Inductor's options are a thread's own from when it first reads them. So what `enable` installs looks up, each
time that it is called, which pass the process asked for last.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import fx

from .chain import POST_GRAD_HOOK, PRE_GRAD_HOOK, Chain
from .compat import CustomGraphPass, as_passes, change_default, inductor_config, set_option
from .passes import CacheKeyPass, LoweringPass
from .settings import Settings

_enabled: dict[str, LoweringPass] = {}
"""What `enable` was asked for last, by hook; nothing after `disable`."""


class Enabled(CustomGraphPass):
    """Stand in a hook for what `enable` was asked for last, in whatever thread."""

    def __init__(self, hook: str) -> None:
        self.hook = hook

    @property
    def asked(self) -> LoweringPass | None:
        """The pass, or None after `disable`."""
        return _enabled.get(self.hook)

    @property
    def settings(self) -> Settings | None:
        """The pass's settings."""
        return None if self.asked is None else self.asked.settings

    def __call__(self, graph: fx.Graph) -> None:
        """Run the pass."""
        if (asked := self.asked) is not None:
            asked(graph)

    def uuid(self) -> Any:
        """The pass's; after `disable` a constant, for graphs are cached then too."""
        return "disabled" if self.asked is None else self.asked.uuid()

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle, and copy, by name."""
        return type(self), (self.hook,)


def with_pass(hook: Any, ours: LoweringPass | Enabled) -> Any:
    """The hook's value with our pass last, whoever else's passes are in it; a pass of ours is replaced."""
    others = as_passes(without_pass(hook))
    return Chain(*others, ours) if others else ours


def without_pass(hook: Any) -> Any:
    """The hook's value without passes of ours, wherever they stand in it."""
    if not isinstance(hook, (Chain, list, tuple)):
        return None if isinstance(hook, (LoweringPass, Enabled)) else hook
    passes = hook.passes if isinstance(hook, Chain) else hook
    others = [each for each in map(without_pass, passes) if each is not None]
    if len(others) == len(passes) and all(map(operator.is_, others, passes)):
        return hook
    if isinstance(hook, Chain) and len(others) < 2:
        return others[0] if others else None
    return Chain(*others) if isinstance(hook, Chain) else others


def our_pass(hook: Any) -> LoweringPass | None:
    """The pass of ours that a hook's value runs, or None."""
    found = _installed(hook)
    return found.asked if isinstance(found, Enabled) else found


def _installed(hook: Any) -> LoweringPass | Enabled | None:
    if isinstance(hook, (LoweringPass, Enabled)):
        return hook
    passes = hook.passes if isinstance(hook, Chain) else hook if isinstance(hook, (list, tuple)) else ()
    return next((found for found in map(_installed, passes) if found is not None), None)


@contextmanager
def stock_inductor() -> Iterator[None]:
    """Within it, Inductor compiles without our pass, also where `enable()` has installed it."""
    config = inductor_config()
    with config.patch(
        {hook: without_pass(getattr(config, hook)) for hook in (PRE_GRAD_HOOK, POST_GRAD_HOOK)}
    ):
        yield


def inductor_options(
    *, force: bool = False, plan: str | None = None, strict: bool | None = None
) -> dict[str, Any]:
    """Options for `torch.compile(model, options=...)` that lower ECA in this compilation only.

    Args:
        force: lower on any device and size, as ECA_TRITON_FORCE=1 does.
        plan: one of `eca_triton.compile.settings.PLANS`; None asks ECA_TRITON_PLAN, else is "auto".
        strict: raise `NotLoweredError` where a site stays with Inductor for another reason than cost; None
            asks ECA_TRITON_STRICT.

    Returns:
        dict of Inductor options; passes that Inductor's configuration holds already stay in front of ours.

    Raises:
        ValueError: an option has a value that it cannot have.

    Examples:
        >>> torch.compile(model, options=eca_triton.inductor_options() | {"max_autotune": True})
    """
    config = inductor_config()
    passes = _passes(force, plan, strict)
    return {hook: with_pass(getattr(config, hook), ours) for hook, ours in passes.items()}


def _passes(force: bool, plan: str | None, strict: bool | None) -> dict[str, LoweringPass]:
    return {
        PRE_GRAD_HOOK: LoweringPass(force, plan, strict),
        POST_GRAD_HOOK: CacheKeyPass(force, plan, strict),
    }


def enable(*, force: bool = False, plan: str | None = None, strict: bool | None = None) -> None:
    """Let every later `torch.compile` with Inductor lower ECA sites, without a word in the user's code.

    In all threads, those that run already included; a thread that sets Inductor's hooks itself keeps its own.
    Arguments and errors are those of `inductor_options`.

    Examples:
        >>> eca_triton.enable()
        >>> compiled = torch.compile(model)
    """
    config = inductor_config()
    _enabled.update(_passes(force, plan, strict))
    for hook in (PRE_GRAD_HOOK, POST_GRAD_HOOK):
        asking = Enabled(hook)
        setattr(config, hook, with_pass(getattr(config, hook), asking))
        change_default(hook, functools.partial(with_pass, ours=asking))


def disable() -> None:
    """Undo `enable`, in all threads; passes that others installed meanwhile stay."""
    config = inductor_config()
    _enabled.clear()
    for hook in (PRE_GRAD_HOOK, POST_GRAD_HOOK):
        change_default(hook, without_pass)
        set_option(hook, without_pass(getattr(config, hook)))


@contextmanager
def enabled(*, force: bool = False, plan: str | None = None, strict: bool | None = None) -> Iterator[None]:
    """`enable` inside a `with` block, in its thread; make a model's first call, which compiles it, inside.

    Passes that others install inside stay.

    Examples:
        >>> with eca_triton.enabled():
        ...     torch.compile(model)(x)
    """
    config = inductor_config()
    ours = inductor_options(force=force, plan=plan, strict=strict)
    inside = ours
    try:
        with config.patch(ours):
            try:
                yield
            finally:
                inside = {hook: getattr(config, hook) for hook in ours}
    finally:
        for hook, passes in inside.items():
            if passes is not ours[hook]:
                before = _installed(getattr(config, hook))
                setattr(config, hook, with_pass(passes, before) if before else without_pass(passes))
