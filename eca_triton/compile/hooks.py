"""The pass in Inductor's hooks and cache keys: for one compilation, or for all that follow."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .chain import POST_GRAD_HOOK, PRE_GRAD_HOOK, Chain
from .compat import as_passes, inductor_config
from .passes import CacheKeyPass, LoweringPass


def with_pass(hook: Any, ours: LoweringPass) -> Any:
    """The hook's value with our pass last, whoever else's passes are in it; a pass of ours is replaced."""
    others = as_passes(without_pass(hook))
    return Chain(*others, ours) if others else ours


def without_pass(hook: Any) -> Any:
    """The hook's value as it was before `with_pass`."""
    if isinstance(hook, LoweringPass):
        return None
    if isinstance(hook, Chain) and isinstance(hook.passes[-1], LoweringPass):
        others = hook.passes[:-1]
        return others[0] if len(others) == 1 else list(others)
    if isinstance(hook, (list, tuple)):
        return [each for each in hook if not isinstance(each, LoweringPass)]
    return hook


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

    Example:
        >>> torch.compile(model, options=eca_triton.inductor_options() | {"max_autotune": True})
    """
    config = inductor_config()
    return {
        PRE_GRAD_HOOK: with_pass(getattr(config, PRE_GRAD_HOOK), LoweringPass(force, plan, strict)),
        POST_GRAD_HOOK: with_pass(getattr(config, POST_GRAD_HOOK), CacheKeyPass(force, plan, strict)),
    }


def enable(*, force: bool = False, plan: str | None = None, strict: bool | None = None) -> None:
    """Let every later `torch.compile` with Inductor lower ECA sites, without a word in the user's code.

    Arguments and errors are those of `inductor_options`.

    Example:
        >>> eca_triton.enable()
        >>> compiled = torch.compile(model)
    """
    config = inductor_config()
    for hook, chained in inductor_options(force=force, plan=plan, strict=strict).items():
        setattr(config, hook, chained)


def disable() -> None:
    """Undo `enable`; passes that others installed meanwhile stay."""
    config = inductor_config()
    for hook in (PRE_GRAD_HOOK, POST_GRAD_HOOK):
        setattr(config, hook, without_pass(getattr(config, hook)))


@contextmanager
def enabled(*, force: bool = False, plan: str | None = None, strict: bool | None = None) -> Iterator[None]:
    """`enable` inside a `with` block; compilation happens at a model's first call, so make that call inside.

    Example:
        >>> with eca_triton.enabled():
        ...     torch.compile(model)(x)
    """
    before = {hook: getattr(inductor_config(), hook) for hook in (PRE_GRAD_HOOK, POST_GRAD_HOOK)}
    enable(force=force, plan=plan, strict=strict)
    try:
        yield
    finally:
        for hook, passes in before.items():
            setattr(inductor_config(), hook, passes)
