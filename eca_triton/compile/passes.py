"""The pass behind both doors: recognize, plan and rewrite the sites of a graph."""

from __future__ import annotations

import functools
import hashlib
import logging
import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import fx

from ..tuning.store import fingerprint
from .compat import CustomGraphPass, makes_package
from .emit.rewrite import rewrite
from .match.graph import copy_of, hints, value
from .match.recognize import recognize
from .match.site import Rejection, Site
from .match.where import owner, root_path, source_line
from .plan.decide import Decision, decide, left_alone
from .plan.gather import facts_of
from .reasons import UNEXPECTED, UNEXPLAINED_BY_COST, NotLoweredError
from .record import SiteRecord, collect, note_key
from .settings import Settings, SettingsError

log = logging.getLogger("eca_triton")


def plan_graph(gm: fx.GraphModule, settings: Settings) -> list[tuple[Site | None, SiteRecord]]:
    """Recognize and decide, the graph unchanged: a record per site and, with no site, per rejection."""
    root = root_path(gm.graph)
    sites, rejected = recognize(gm, root)
    planned: list[tuple[Site | None, SiteRecord]] = []
    taken: set[fx.Node] = set()
    for site in sites:
        if site.end in taken:
            # A sum of two sites is the tail of either, and belongs to the first op that takes it in.
            site = replace(site, closing=None, tail=(), end=site.mul)
        decision = _decision(site, settings)
        if decision.plan not in ("skip", "pool", "gate"):
            taken.add(site.end)
        planned.append((site, _recorded(site, decision, root)))
    return planned + [(None, _rejected(rejection)) for rejection in rejected]


def _decision(site: Site, settings: Settings) -> Decision:
    try:
        return decide(facts_of(site, settings), settings)
    except Exception as error:  # a user's program compiles even where we are wrong
        log.debug("%s is left alone", site.name, exc_info=True)
        return Decision("skip", UNEXPECTED, repr(error), math.nan, math.nan)


def lower_graph(gm: fx.GraphModule, settings: Settings) -> list[SiteRecord]:
    """Lower every site of a Dynamo graph and its sub-graphs, in place, where the plan says so.

    Whatever goes wrong in it, the graph stays as it came, and a record says so.

    Raises:
        NotLoweredError: the settings are strict, and a site stays with Inductor for another reason than cost.
    """
    before: list[tuple[fx.GraphModule, fx.Graph]] = []
    try:
        records = [
            record
            for module in list(gm.modules())
            if isinstance(module, fx.GraphModule)
            for record in _lower_module(module, settings, before)
        ]
        for record in records:
            log.debug("%s %s k=%d: %s", record.name, record.shape, record.k, record.decision)
        collect(records)
    except Exception as error:  # a user's program compiles even where we are wrong
        log.debug("the graph is left alone", exc_info=True)
        for module, graph in before:
            module.graph = graph
        nothing = Decision("skip", UNEXPECTED, repr(error), math.nan, math.nan)
        records = [SiteRecord("the whole graph", (), 0, nothing)]
        with suppress(Exception):
            collect(records)
    if settings.strict:
        _accept(records)
    return records


def _lower_module(
    module: fx.GraphModule, settings: Settings, before: list[tuple[fx.GraphModule, fx.Graph]]
) -> list[SiteRecord]:
    """Lower the sites of one graph; the graph as it was is noted in `before` if it changes.

    A site that cannot be rewritten leaves no trace: all is done again without it.
    """
    failed: dict[str, str] = {}
    while True:
        planned = [_without(failed, site, record) for site, record in plan_graph(module, settings)]
        if not any(record.lowered for _, record in planned):
            break
        original = copy_of(module.graph)
        before.append((module, original))
        for site, record in planned:
            if site is None or not record.lowered:
                continue
            try:
                rewrite(site, record.decision.plan)
            except Exception as error:
                log.debug("%s is left alone", site.name, exc_info=True)
                failed[site.conv.name] = repr(error)
                module.graph = original
                break
        else:
            module.recompile()
            break
    return [record for _, record in planned]


def _without(
    failed: Mapping[str, str], site: Site | None, record: SiteRecord
) -> tuple[Site | None, SiteRecord]:
    """The site and its record, which leaves it alone if it has failed before."""
    if site is None or site.conv.name not in failed:
        return site, record
    return site, replace(record, decision=left_alone(record.decision, UNEXPECTED, failed[site.conv.name]))


def _recorded(site: Site, decision: Decision, root: str) -> SiteRecord:
    """The record of a site, with where it is in the user's program."""
    shape = hints(site.shape)
    return SiteRecord(
        name=site.name,
        shape=shape,
        k=site.k,
        decision=decision,
        map_bytes=math.prod(shape) * value(site.x).dtype.itemsize,
        owner=owner(site, root),
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


def _rejected(rejection: Rejection) -> SiteRecord:
    nothing = Decision("skip", rejection.reason, rejection.detail, math.nan, math.nan)
    shape = hints(rejection.shape)
    return SiteRecord(rejection.name, shape, rejection.k, nothing, source=rejection.source)


@functools.cache
def package_hash(*parts: str) -> str:
    """Hash of our sources, in the key of every compiled graph: an upgrade never meets stale code.

    Args:
        parts: Folders of the package, to hash these alone.
    """
    root, digest = Path(__file__).parents[1], hashlib.sha256()
    # kernels is a symbolic link in a checkout, which rglob does not follow.
    for folder in (root / part for part in parts or ("", "kernels")):
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
        if graph.owning_module is None:
            return
        try:
            lower_graph(graph.owning_module, replace(self.settings, packaged=makes_package()))
        except (SettingsError, NotLoweredError):
            raise
        except Exception:  # a user's program compiles even where we are wrong
            log.debug("the graph is left alone", exc_info=True)

    @property
    def settings(self) -> Settings:
        """Return what was asked for; the environment is read anew at each compilation."""
        return Settings.from_environment(
            force=self.force, plan=self.plan, strict=self.strict, device=self.device
        )

    def uuid(self) -> Any:
        """Part of Inductor's cache key: what else our code is generated from. None: nothing is cached."""
        try:
            note_key()
            return package_hash(), repr(self.settings), fingerprint()
        except SettingsError:
            raise
        except Exception:  # our files cannot be read, say
            log.debug("no key for Inductor's cache", exc_info=True)
            return None

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle by name: torch 2.11 pickles the hook's value into its cache key."""
        return type(self), (self.force, self.plan, self.strict, self.device)


class CacheKeyPass(LoweringPass):
    """Inductor's post-grad hook: only puts `uuid` into the cache key; torch 2.11 takes it from here alone."""

    def __call__(self, graph: fx.Graph) -> None:
        """Leave the graph alone."""
