"""What became of each ECA-like site that was compiled, and collecting it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from .plan.decide import Decision


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


def collect(records: list[SiteRecord]) -> None:
    """Add the records of one graph to those of the `recording` around it, if there is one."""
    collected = _collected.get()
    if collected is not None:
        # Inductor runs its hook on a sub-graph, and again on the graph around it when its sites are gone.
        collected += [record for record in records if record.lowered or record not in collected]
