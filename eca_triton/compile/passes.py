"""The pass behind both doors, the record of what it did, and its place in Inductor's hooks and cache keys."""

from __future__ import annotations

import functools
import hashlib
import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import fx

from .compat import CustomGraphPass, as_passes, inductor_config, makes_package
from .gather import facts_of, hints
from .graph import value
from .plan import Decision, decide, left_alone
from .reasons import UNEXPECTED, UNEXPLAINED_BY_COST, NotLoweredError
from .recognize import recognize
from .rewrite import rewrite
from .settings import Settings
from .site import Rejection, Site
from .where import owner, source_line

log = logging.getLogger("eca_triton")

PRE_GRAD_HOOK = "pre_grad_custom_pass"
POST_GRAD_HOOK = "post_grad_custom_post_pass"


@dataclass(frozen=True)
class SiteRecord:
    """What became of one ECA-like site; `shape` in numbers, symbolic sizes by the example that was traced.

    `map_bytes`: of a site's map, 0 for a rejected candidate. `owner`: path of the module that is this site
    and nothing else. `source`: the user's line of the rescaling, or of what stopped the match.
    """

    name: str
    shape: tuple[int, ...]
    k: int
    decision: Decision
    map_bytes: int = 0
    owner: str | None = None
    source: str = ""

    @property
    def lowered(self) -> bool:
        """Whether our ops run this site."""
        return self.decision.plan != "skip"


_records: ContextVar[list[SiteRecord] | None] = ContextVar("eca_triton_records", default=None)


@contextmanager
def recording() -> Iterator[list[SiteRecord]]:
    """Collect a record of every site and rejected candidate that is compiled inside the context."""
    records: list[SiteRecord] = []
    token = _records.set(records)
    try:
        yield records
    finally:
        _records.reset(token)


def plan_graph(gm: fx.GraphModule, settings: Settings) -> list[tuple[Site | None, SiteRecord]]:
    """Recognize and decide, the graph unchanged: a record per site and, with no site, per rejection."""
    found = recognize(gm)
    planned: list[tuple[Site | None, SiteRecord]] = []
    taken: set[fx.Node] = set()
    for site in found.sites:
        if site.end in taken:
            # A sum of two sites is the tail of either, and belongs to the first op that takes it in.
            site = replace(site, closing=None, tail=(), end=site.mul)
        decision = _decision(site, settings)
        if decision.plan not in ("skip", "pool", "gate"):
            taken.add(site.end)
        planned.append((site, _recorded(site, decision)))
    return planned + [(None, _rejected(rejection)) for rejection in found.rejected]


def _decision(site: Site, settings: Settings) -> Decision:
    try:
        return decide(facts_of(site, settings), settings)
    except Exception as error:  # a user's program compiles even where we are wrong
        return Decision("skip", UNEXPECTED, repr(error), math.nan, math.nan)


def lower_graph(gm: fx.GraphModule, settings: Settings) -> list[SiteRecord]:
    """Lower every site of a Dynamo graph and its sub-graphs, in place, where the plan says so.

    Raises:
        NotLoweredError: the settings are strict, and a site stays with Inductor for another reason than cost.
    """
    records: list[SiteRecord] = []
    for module in gm.modules():
        if not isinstance(module, fx.GraphModule):
            continue
        planned = plan_graph(module, settings)
        done = [_rewritten(site, record) for site, record in planned]
        if any(record.lowered for record in done):
            module.recompile()
        records += done
    for record in records:
        log.debug("%s %s k=%d: %s", record.name, record.shape, record.k, record.decision)
    collected = _records.get()
    if collected is not None:
        # Inductor runs its hook on a sub-graph, and again on the graph around it when its sites are gone.
        collected += [record for record in records if record.lowered or record not in collected]
    if settings.strict:
        _accept(records)
    return records


def _recorded(site: Site, decision: Decision) -> SiteRecord:
    """The record of a site, with where it is in the user's program."""
    shape = hints(site.shape)
    return SiteRecord(
        name=site.name,
        shape=shape,
        k=site.k,
        decision=decision,
        map_bytes=math.prod(shape) * value(site.x).dtype.itemsize,
        owner=owner(site),
        source=source_line(site.mul),
    )


def _accept(records: list[SiteRecord]) -> None:
    """Raise if a site was left alone for another reason than cost."""
    left = [
        (record.name, record.decision.reason, record.decision.detail)
        for record in records
        if record.decision.reason is not None and record.decision.reason in UNEXPLAINED_BY_COST
    ]
    if left:
        raise NotLoweredError(left)


def _rewritten(site: Site | None, record: SiteRecord) -> SiteRecord:
    """The record after rewriting; an error leaves the site as it was, with calls that nobody uses."""
    if site is None or not record.lowered:
        return record
    try:
        rewrite(site, record.decision.plan)
    except Exception as error:  # a user's program compiles even where we are wrong
        return replace(record, decision=left_alone(record.decision, UNEXPECTED, repr(error)))
    return record


def _rejected(rejection: Rejection) -> SiteRecord:
    nothing = Decision("skip", rejection.reason, rejection.detail, math.nan, math.nan)
    shape = hints(rejection.shape)
    return SiteRecord(rejection.name, shape, rejection.k, nothing, source=rejection.source)


@functools.cache
def package_hash() -> str:
    """Hash of our sources, in the key of every compiled graph: an upgrade never meets stale code."""
    root, digest = Path(__file__).parents[1], hashlib.sha256()
    for folder in (root, root / "kernels"):  # a symbolic link in a checkout, which rglob does not follow
        for path in sorted(folder.rglob("*.py")):
            digest.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()


class LoweringPass(CustomGraphPass):
    """Inductor's pre-grad hook: lowers the graph before autograd sees it."""

    def __init__(
        self,
        force: bool = False,
        plan: str | None = None,
        strict: bool | None = None,
        device: str | None = None,
    ) -> None:
        self.force, self.plan, self.strict, self.device = force, plan, strict, device
        _ = self.settings  # a wrong value is told here, and not by the first compilation

    def __call__(self, graph: fx.Graph) -> None:
        """Lower one of Dynamo's graphs in place."""
        if graph.owning_module is not None:
            lower_graph(graph.owning_module, replace(self.settings, packaged=makes_package()))

    @property
    def settings(self) -> Settings:
        """What was asked for; the environment is read anew at each compilation."""
        return Settings.from_environment(
            force=self.force, plan=self.plan, strict=self.strict, device=self.device
        )

    def uuid(self) -> Any:
        """Part of Inductor's cache key."""
        return package_hash(), repr(self.settings)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle by name: torch 2.11 pickles the hook's value into its cache key."""
        return type(self), (self.force, self.plan, self.strict, self.device)


class CacheKeyPass(LoweringPass):
    """Inductor's post-grad hook: only puts `uuid` into the cache key; torch 2.11 takes it from here alone."""

    def __call__(self, graph: fx.Graph) -> None:
        """Leave the graph alone."""


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


def is_strict() -> bool:
    """Whether the compilation that Inductor is at was asked to be strict: its cache key tells."""
    hooks = as_passes(getattr(inductor_config(), POST_GRAD_HOOK))
    inside = [each for hook in hooks for each in (hook.passes if isinstance(hook, Chain) else (hook,))]
    return any(isinstance(each, LoweringPass) and each.settings.strict for each in inside)


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
