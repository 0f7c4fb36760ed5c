"""What became of each ECA-like site that was compiled: collected, said in a line, kept for `last_report`."""

from __future__ import annotations

import logging
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from .compat import compilation, when_compiled
from .plan.decide import Decision
from .settings import verbose

log = logging.getLogger("eca_triton")


@dataclass(frozen=True)
class SiteRecord:
    """Outcome of one ECA-like site; `shape` in numbers, symbolic sizes by the example that was traced.

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
        """Return whether our ops run this site."""
        return self.decision.plan != "skip"


_collected: ContextVar[list[SiteRecord] | None] = ContextVar("eca_triton_records", default=None)


@contextmanager
def recording() -> Iterator[list[SiteRecord]]:
    """Collect a record of every site and rejected candidate that is compiled inside the context."""
    records: list[SiteRecord] = []
    token = _collected.set(records)
    try:
        yield records
    finally:
        _collected.reset(token)


@dataclass(eq=False)
class Compilation:
    """One compilation of Dynamo's: a frame of the user's program, for some sizes.

    `context`: Dynamo's own object of it, which a backward that is compiled later has, too. `attempt`: how
    often Dynamo has begun it anew. `frame`: number of the code object. `records`: of its graphs, in order.
    `keyed`: Inductor asked for our part of its cache's key. `looked`: our pass saw a graph. `told`: the line
    is written.
    """

    context: object
    attempt: int
    frame: int
    records: list[SiteRecord] = field(default_factory=list)
    keyed: bool = False
    looked: bool = False
    told: bool = False

    @property
    def cached(self) -> bool:
        """Return whether its code comes from Inductor's cache, as an earlier compilation lowered it."""
        return self.keyed and not self.looked

    @property
    def kind(self) -> tuple[Any, ...]:
        """What it has in common with the same code compiled anew, for other batch or image sizes."""
        sites = ((site.name, site.k, site.shape[1:2], site.owner, site.source) for site in self.records)
        return self.frame, self.cached, *sites

    def __str__(self) -> str:
        if self.cached:
            return "a graph came from Inductor's cache, lowered as it was when it was stored"
        left = Counter(record.decision.reason for record in self.records if not record.lowered)
        codes = ", ".join(f"{code} x {times}" if times > 1 else f"{code}" for code, times in left.items())
        lowered = len(self.records) - left.total()
        return f"{lowered} of {len(self.records)} channel attentions lowered" + f" ({codes})" * bool(codes)


_compilations: list[Compilation] = []
"""Since the process began, or since torch.compiler.reset()."""


def compilations() -> list[Compilation]:
    """Return what was compiled, since Dynamo was reset last; each frame as it was compiled last."""
    return list({each.kind: each for each in _compilations}.values())


def _current() -> Compilation | None:
    """Return the compilation of Dynamo's that is under way, noted from now on; None where there is none."""
    try:
        return _noted()
    except Exception:  # what is lowered does not depend on whether it can be told
        log.debug("a compilation is not noted", exc_info=True)
        return None


def _noted() -> Compilation | None:
    now = compilation()
    if now is None:
        return None
    if when_compiled(_tell):
        _compilations.clear()  # Dynamo has forgotten them, too
    context, attempt, frame = now
    found = next((each for each in _compilations if each.context is context), None)
    if found is not None and found.attempt == attempt:
        return found
    if found is not None:
        _compilations.remove(found)
    _compilations.append(Compilation(context, attempt, frame))
    return _compilations[-1]


def note_key() -> None:
    """Note that Inductor looks into its cache for what is being compiled."""
    if _collected.get() is None and (current := _current()) is not None:
        current.keyed = True


def collect(records: list[SiteRecord]) -> None:
    """Add the records of one graph to those of the `recording` around it, else to its compilation's."""
    collected = _collected.get()
    if collected is None and (current := _current()) is not None:
        current.looked, collected = True, current.records
    if collected is not None:
        # Inductor runs its hook on a sub-graph, and again on the graph around it when its sites are gone.
        collected += [record for record in records if record.lowered or record not in collected]


def _tell() -> None:
    """Say in one line each what became of the channel attentions of the compilations that have ended."""
    for each in _compilations:
        if not each.told and (each.records or each.cached):
            line = f"eca_triton: {each}; eca_triton.last_report()"
            if log.isEnabledFor(logging.INFO) and log.hasHandlers():
                log.info(line)
            elif verbose():
                print(line, file=sys.stderr)
        each.told = True
