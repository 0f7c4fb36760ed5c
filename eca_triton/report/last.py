"""What became of the channel attentions that torch.compile has just met, without a second trace."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..util.tables import write_table
from .result import site_as_dict
from .text import COLUMNS, NUMERIC, TRAFFIC, left_alone, row

if TYPE_CHECKING:
    from ..compile.record import SiteRecord

NOTHING = """\
nothing with a channel attention was compiled in this process
    torch.compile compiles at the first call: call the model, then ask again.
    And see that it was compiled with this package:
      model = torch.compile(model, backend="eca_triton")"""
CACHED = """\
{times} came from Inductor's cache, lowered as when stored there; what is in it is not known here
    to list them, compile anew: TORCHINDUCTOR_FORCE_DISABLE_CACHES=1, or backend="eca_triton" """.rstrip()


@dataclass(frozen=True)
class LastReport:
    """The channel attentions that were compiled; `print` it for a table, and for why some were left alone.

    Attributes:
        sites: A record of each, in the order in which they were compiled.
        cached: Number of compilations whose code came from Inductor's cache, so that no pass saw their sites.
    """

    sites: tuple[SiteRecord, ...]
    cached: int = 0

    @property
    def lowered(self) -> int:
        """Number of sites that our ops run."""
        return sum(record.lowered for record in self.sites)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values: `sites`, as in the JSON of `explain`, `lowered` and `cached`."""
        sites = [site_as_dict(record, None) for record in self.sites]
        return {"sites": sites, "lowered": self.lowered, "cached": self.cached}

    def __str__(self) -> str:
        if not self.sites and not self.cached:
            return NOTHING
        out = io.StringIO()
        if self.sites:
            write_table(COLUMNS, [row(record) for record in self.sites], out, NUMERIC)
            out.write(f"\n{TRAFFIC}\n")
            for line in left_alone(self.sites):
                out.write(line + "\n")
            out.write(f"{self.lowered} of {len(self.sites)} channel attentions lowered\n")
        if self.cached:
            out.write(CACHED.format(times="1 graph" if self.cached == 1 else f"{self.cached} graphs") + "\n")
        return out.getvalue().rstrip("\n")

    def __repr__(self) -> str:
        return f"<LastReport: {self.lowered} of {len(self.sites)} channel attentions lowered>"


def last_report() -> LastReport:
    """Report the channel attentions that torch.compile has met in this process; nothing is traced again.

    They are those of all graphs since the process began or `torch.compiler.reset()` was called, whichever way
    this package was switched on. Where the same code was compiled anew, for another batch or image size, its
    last compilation counts. Layers that are alike, and are compiled one by one, share one graph and one line.

    Returns:
        The report; `print` it. One without sites says so, and what to do.

    Examples:
        >>> model = torch.compile(model, backend="eca_triton")
        >>> model(images)
        >>> print(eca_triton.last_report())
    """
    from ..compile.record import compilations

    found = compilations()
    sites = tuple(record for each in found for record in each.records)
    return LastReport(sites, sum(each.cached for each in found))
