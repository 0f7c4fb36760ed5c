"""The rows of tables 2 and 3 of the ECA-Net paper (https://arxiv.org/abs/1910.03151v4), counted anew.

Beside them stand the rows of the official README (https://github.com/BangguWu/ECANet) that the paper has not,
or has otherwise. A row agrees if its count, rounded to the published digits, is the published number. One
that does not has a reason, which docs/paper.md explains; there is no tolerance.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache, partial
from typing import NamedTuple

from torch import nn

from eca_triton.models.attention import SEVar3
from eca_triton.models.resnet import resnet50

from ..shared.networks import of_paper
from .counts import Counts, count
from .facts import SITES

UNITS = {"M": 1e6, "G": 1e9, "Mi": 2.0**20, "Gi": 2.0**30}

QUOTED = "quoted"
SE_MOBILE = "se-mobilenetv2"
README = "readme"
NOT_BUILT = "not built"
REASONS = {
    QUOTED: "from the network's own paper, in units of 1000; what its modules are made of is partly open",
    SE_MOBILE: "no SE module of that many parameters counts so many FLOPs",
    README: "the paper's own table has 57.40",
}
"""Why a count differs from what was published."""


class Published(NamedTuple):
    """A number with its digits, and the unit that it is in: of 1000, or, with an i, of 1024."""

    digits: str
    unit: str

    def rounded(self, counted: int) -> str:
        """A count in this unit, with as many decimals."""
        return f"{counted / UNITS[self.unit]:.{len(self.digits.partition('.')[2])}f}"

    def difference(self, counted: int) -> float:
        """A count less this, in this unit."""
        return counted / UNITS[self.unit] - float(self.digits)


@dataclass(frozen=True)
class Row:
    """A line of a table.

    Attributes:
        table: "2", "3" or "README".
        label: as the paper has it.
        build: makes the network; None: this project has none.
        parameters: of the whole network, as published.
        flops: as published; those in units of 1024 as thop counts, others as multiply-adds.
        each: parameters of one module by its channels, in table 2, which publishes formulas.
        formula: that, as the paper has it.
        reasons: keys of `REASONS`, of "parameters" and "flops" that differ.
    """

    table: str
    label: str
    build: Callable[[], nn.Module] | None
    parameters: Published | None = None
    flops: Published | None = None
    each: Callable[[int], int] | None = None
    formula: str = ""
    reasons: tuple[tuple[str, str], ...] = ()


@cache
def _network(name: str) -> Callable[[], nn.Module]:
    """ECA has the taps of the official checkpoints, which the published numbers belong to."""
    return partial(of_paper, name)


def _variant(label: str, formula: str, each: Callable[[int], int], build: Callable[[], nn.Module]) -> Row:
    return Row("2", label, build, each=each, formula=formula)


def _large(table: str, label: str, name: str | None, million: str, giga: str, **reasons: str) -> Row:
    """Format in units of 1024, but for what is quoted from elsewhere."""
    binary = "" if name is None or QUOTED in reasons.values() else "i"
    parameters, flops = Published(million, f"M{binary}"), Published(giga, f"G{binary}")
    build = None if name is None else _network(name)
    return Row(table, label, build, parameters, flops, reasons=tuple(reasons.items()))


def _mobile(label: str, name: str, million: str, mega: str, **reasons: str) -> Row:
    build, why = _network(name), tuple(reasons.items())
    return Row("3", label, build, Published(million, "Mi"), Published(mega, "Mi"), reasons=why)


ROWS = (
    _variant("ResNet-50", "0", lambda channels: 0, _network("resnet50")),
    _variant("SE", "2 C^2 / 16", lambda channels: 2 * channels**2 // 16, _network("se_resnet50")),
    _variant("SE-Var1", "0", lambda channels: 0, _network("se_var1_resnet50")),
    _variant("SE-Var2", "C", lambda channels: channels, _network("se_var2_resnet50")),
    _variant("SE-Var3", "C^2", lambda channels: channels**2, _network("se_var3_resnet50")),
    _variant(
        "SE-GC16", "C^2 / 16", lambda channels: channels**2 // 16,
        partial(resnet50, partial(SEVar3, groups=16)),
    ),
    _variant(
        "SE-GC C/16", "16 C", lambda channels: 16 * channels,
        partial(resnet50, lambda channels: SEVar3(channels, groups=channels // 16)),
    ),
    _variant(
        "SE-GC C/8", "8 C", lambda channels: 8 * channels,
        partial(resnet50, lambda channels: SEVar3(channels, groups=channels // 8)),
    ),
    _variant("ECA-NS", "k C, k = 3", lambda channels: 3 * channels, partial(resnet50, "eca_ns", k_size=3)),
    _variant("ECA", "k = 3", lambda channels: 3, partial(resnet50, "eca", k_size=3)),
    _large("3", "ResNet-50", "resnet50", "24.37", "3.86"),
    _large("3", "SENet-50", "se_resnet50", "26.77", "3.87"),
    _large("3", "CBAM-50", "cbam_resnet50", "26.77", "3.87"),
    _large("3", "A2-Net-50", "a2_resnet50", "33.00", "6.50", parameters=QUOTED, flops=QUOTED),
    _large("3", "GCNet-50", None, "28.08", "3.87"),
    _large("3", "GSoP-Net1-50", None, "28.05", "6.18"),
    _large("3", "AA-Net-50", None, "25.80", "4.15"),
    _large("3", "ECA-Net-50", "eca_resnet50", "24.37", "3.86"),
    _large("3", "ResNet-101", "resnet101", "42.49", "7.34"),
    _large("3", "SENet-101", "se_resnet101", "47.01", "7.35"),
    _large("3", "CBAM-101", "cbam_resnet101", "47.01", "7.35"),
    _large("3", "ECA-Net-101", "eca_resnet101", "42.49", "7.35"),
    _large("3", "ResNet-152", "resnet152", "57.40", "10.82"),
    _large("3", "SENet-152", "se_resnet152", "63.68", "10.85"),
    _large("3", "ECA-Net-152", "eca_resnet152", "57.40", "10.83"),
    _mobile("MobileNetV2", "mobilenet_v2", "3.34", "319.4"),
    _mobile("SE-MobileNetV2", "se_mobilenet_v2", "3.40", "320.1", flops=SE_MOBILE),
    _mobile("ECA-MobileNetV2", "eca_mobilenet_v2", "3.34", "319.9"),
    _large("README", "ECA-Net-18", "eca_resnet18", "11.15", "1.70"),
    _large("README", "ECA-Net-34", "eca_resnet34", "20.79", "3.43"),
    _large("README", "ECA-Net-152", "eca_resnet152", "57.41", "10.83", parameters=README),
)  # fmt: skip


@dataclass(frozen=True)
class Line:
    """A row with what was counted, if there is a network."""

    row: Row
    counts: Counts | None

    @property
    def flops(self) -> int | None:
        """The count that the published FLOPs are compared with."""
        if self.counts is None or self.row.flops is None:
            return None
        return self.counts.thop if self.row.flops.unit.endswith("i") else self.counts.multiply_adds

    @property
    def attention(self) -> int | None:
        """Parameters that attention adds to ResNet-50, in table 2."""
        if self.counts is None or self.row.each is None:
            return None
        return self.counts.parameters - _counted(_network("resnet50")).parameters

    @property
    def by_formula(self) -> int | None:
        """Return what the paper's formula of a module makes of ResNet-50."""
        if self.row.each is None:
            return None
        return sum(number * self.row.each(channels) for channels, _, number in SITES)

    def differing(self) -> set[str]:
        """Return which published numbers are not what was counted, rounded."""
        if self.counts is None:
            return set()
        compared = (
            ("parameters", self.row.parameters, self.counts.parameters),
            ("flops", self.row.flops, self.flops),
        )
        found = {name for name, published, counted in compared if _differs(published, counted)}
        return found | ({"formula"} if self.attention != self.by_formula else set())

    def note(self) -> str:
        """Return what to say of the row: that it agrees, why not, or that nobody knows why."""
        if self.counts is None:
            return NOT_BUILT
        if self.off():
            return "OFF"
        return ", ".join(dict.fromkeys(reason for _, reason in self.row.reasons)) or "agrees"

    def off(self) -> bool:
        """A number differs without a reason, or has a reason and does not differ."""
        return self.counts is not None and self.differing() != {name for name, _ in self.row.reasons}


def lines(rows: Iterable[Row] = ROWS) -> list[Line]:
    """Count every network once."""
    return [Line(row, None if row.build is None else _counted(row.build)) for row in rows]


@cache
def _counted(build: Callable[[], nn.Module]) -> Counts:
    return count(build)


def _differs(published: Published | None, counted: int | None) -> bool:
    return published is not None and counted is not None and published.rounded(counted) != published.digits
