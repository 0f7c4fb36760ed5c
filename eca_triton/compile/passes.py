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

from .compat import CustomGraphPass, as_passes, inductor_config
from .fold import becomes_product, folds
from .graph import op_name, value
from .neighbours import IN_PLACE_MULTIPLICATIONS
from .plan import PACKED_MASK, STORED_MASK, Decision, Facts, Settings, decide
from .reasons import UNEXPECTED
from .recognize import recognize
from .rewrite import packs_mask, rewrite, stays_one_kernel, stays_whole
from .site import Rejection, Site
from .trial import templates_work

log = logging.getLogger("eca_triton")

PRE_GRAD_HOOK = "pre_grad_custom_pass"
POST_GRAD_HOOK = "post_grad_custom_post_pass"


@dataclass(frozen=True)
class SiteRecord:
    """What became of one ECA-like site; `shape` in numbers, symbolic sizes by the example that was traced."""

    name: str
    shape: tuple[int, ...]
    k: int
    decision: Decision

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
    planned: list[tuple[Site | None, SiteRecord]] = [
        (site, SiteRecord(site.name, _hints(site.shape), site.k, decide(_facts(site, settings), settings)))
        for site in found.sites
    ]
    return planned + [(None, _rejected(rejection)) for rejection in found.rejected]


def lower_graph(gm: fx.GraphModule, settings: Settings) -> list[SiteRecord]:
    """Lower every site of a Dynamo graph and its sub-graphs, in place, where the plan says so."""
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
    return records


def _rewritten(site: Site | None, record: SiteRecord) -> SiteRecord:
    """The record after rewriting; an error of ours leaves the site as it was, with calls that nobody uses."""
    if site is None or not record.lowered:
        return record
    try:
        rewrite(site, record.decision.plan)
    except Exception as error:  # a user's program compiles even where we are wrong
        before = record.decision.traffic_before
        return replace(record, decision=Decision("skip", UNEXPECTED, repr(error), before, before, ()))
    return record


def _facts(site: Site, settings: Settings) -> Facts:
    x, norm = value(site.x), site.batch_norm
    shape = _hints(site.shape)
    grad = value(site.mul).requires_grad
    # Asked only where the answer counts: it takes a moment, and a device, or the wish to plan for one.
    asked = not grad and x.device.type == "cuda"
    return Facts(
        numel=math.prod(shape),
        positions=math.prod(shape) // max(1, shape[0] * shape[site.channel_dim]),
        dtype=x.dtype,
        device=x.device.type,
        grad=grad,
        batch_norm=None if norm is None else "train" if norm.training else "eval",
        folds=site.folds,
        source_is_stored=site.source_is_stored,
        activation=site.activation,
        tail=site.tail,
        in_place=op_name(site.mul) in IN_PLACE_MULTIPLICATIONS,
        takes_over=site.takes_over,
        whole=grad and stays_whole(site),
        mask=PACKED_MASK if packs_mask(site) else STORED_MASK,
        templates=templates_work(x.device) if asked else settings.device == "cuda",
        expansion=site.projection.expansion if site.projection is not None and folds(site) else None,
        epilogues=becomes_product(site),
        one_kernel=stays_one_kernel(site),
    )


def _rejected(rejection: Rejection) -> SiteRecord:
    nothing = Decision("skip", rejection.reason, rejection.detail, math.nan, math.nan, ())
    return SiteRecord(rejection.name, _hints(rejection.shape), rejection.k, nothing)


def _hints(shape: tuple[Any, ...]) -> tuple[int, ...]:
    unknown = 64
    return tuple(size if isinstance(size, int) else size.node.hint or unknown for size in shape)


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

    def __init__(self, force: bool = False) -> None:
        self.force = force

    def __call__(self, graph: fx.Graph) -> None:
        """Lower one of Dynamo's graphs in place."""
        if graph.owning_module is not None:
            lower_graph(graph.owning_module, self.settings)

    @property
    def settings(self) -> Settings:
        """The environment's settings, read anew at each compilation."""
        return Settings.from_environment(force=self.force)

    def uuid(self) -> Any:
        """Part of Inductor's cache key."""
        return package_hash(), repr(self.settings)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle by name: torch 2.11 pickles the hook's value into its cache key."""
        return type(self), (self.force,)


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


def inductor_options(*, force: bool = False) -> dict[str, Any]:
    """Options for `torch.compile(model, options=...)` that lower ECA in this compilation only.

    Args:
        force: lower on any device and size, as ECA_TRITON_FORCE=1 does.

    Returns:
        dict of Inductor options; passes that Inductor's configuration holds already stay in front of ours.

    Example:
        >>> torch.compile(model, options=eca_triton.inductor_options() | {"max_autotune": True})
    """
    config = inductor_config()
    return {
        PRE_GRAD_HOOK: with_pass(getattr(config, PRE_GRAD_HOOK), LoweringPass(force)),
        POST_GRAD_HOOK: with_pass(getattr(config, POST_GRAD_HOOK), CacheKeyPass(force)),
    }


def enable(*, force: bool = False) -> None:
    """Let every later `torch.compile` with Inductor lower ECA sites, without a word in the user's code.

    Args:
        force: lower on any device and size, as ECA_TRITON_FORCE=1 does.

    Example:
        >>> eca_triton.enable()
        >>> compiled = torch.compile(model)
    """
    config = inductor_config()
    for hook, chained in inductor_options(force=force).items():
        setattr(config, hook, chained)


def disable() -> None:
    """Undo `enable`; passes that others installed meanwhile stay."""
    config = inductor_config()
    for hook in (PRE_GRAD_HOOK, POST_GRAD_HOOK):
        setattr(config, hook, without_pass(getattr(config, hook)))


@contextmanager
def enabled(*, force: bool = False) -> Iterator[None]:
    """`enable` inside a `with` block; compilation happens at a model's first call, so make that call inside.

    Example:
        >>> with eca_triton.enabled():
        ...     torch.compile(model)(x)
    """
    before = {hook: getattr(inductor_config(), hook) for hook in (PRE_GRAD_HOOK, POST_GRAD_HOOK)}
    enable(force=force)
    try:
        yield
    finally:
        for hook, passes in before.items():
            setattr(inductor_config(), hook, passes)
