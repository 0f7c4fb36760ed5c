"""Where things stand in the pictures of the page: pure geometry, in the units of each SVG's viewBox."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..activations import ACTIVATIONS
from ..tuning.targets import Target
from .predict import Band, kernel_us, peak_flops_per_s, site_us

if TYPE_CHECKING:
    from ..compile.record import SiteRecord
    from ..deviceless import Lowering

STRIP_WIDTH = 1000.0
NARROWEST = 10.0  # a candidate that is no site has no map, and must be seen all the same
WIDTH, HEIGHT = 720.0, 420.0  # of the roofline plot, and the margins for its labels
LEFT, RIGHT, TOP, BOTTOM = 76.0, 34.0, 12.0, 44.0
LEAST_SHARE = 1e-3  # of the network's flops; lighter products would only stretch the plot
# Multiplications and additions per element of a map: mean and rescaling, and what is fused with them.
ATTENTION_FLOPS = 2
FUSED_FLOPS = {"batch_norm": 2, **{name: each.flops for name, each in ACTIVATIONS.items()}}  # else 1


@dataclass(frozen=True)
class Block:
    """A site on the strip."""

    x: float
    width: float
    plan: str
    title: str


@dataclass(frozen=True)
class Bar:
    """A network's bar, in percent of the longest; `low` and `high` are the ends of its error band, if any."""

    network: str
    length: float
    low: float | None
    high: float | None
    text: str
    band_text: str


@dataclass(frozen=True)
class Tick:
    """A labelled position on an axis."""

    at: float
    label: str


@dataclass(frozen=True)
class Dot:
    """A site on the roofline plot, before and after."""

    before: tuple[float, float]
    after: tuple[float, float]
    plan: str
    title: str


@dataclass(frozen=True)
class Roofline:
    """Throughput against arithmetic intensity, both on logarithmic axes.

    `roof` is what the target allows; `kernels` are convolutions and matrix products.
    """

    roof: tuple[tuple[float, float], ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    dots: tuple[Dot, ...]
    kernels: tuple[tuple[float, float], ...]


def strip(records: Sequence[SiteRecord], titles: Sequence[str]) -> list[Block]:
    """Sites side by side in the network's order, as wide as their maps are large."""
    total = sum(record.map_bytes for record in records) or 1
    narrowest = min(NARROWEST, STRIP_WIDTH / (2 * len(records) or 1))
    room = STRIP_WIDTH - narrowest * len(records)
    blocks, x = [], 0.0
    for record, title in zip(records, titles, strict=True):
        width = narrowest + room * record.map_bytes / total
        blocks.append(Block(x, width, record.decision.plan, title))
        x += width
    return blocks


def bars(rows: Sequence[tuple[str, Band, str, str]], *, with_band: bool) -> list[Bar]:
    """Bars of (network, figure, its text, its band in words), the longest end at 100."""
    longest = max((band.high if with_band else band.likely for _, band, _, _ in rows), default=0.0) or 1.0
    return [
        Bar(
            network=network,
            length=100 * band.likely / longest,
            low=100 * band.low / longest if with_band else None,
            high=100 * band.high / longest if with_band else None,
            text=text,
            band_text=band_text,
        )
        for network, band, text, band_text in rows
    ]


def roofline(
    records: Sequence[SiteRecord], titles: Sequence[str], ours: Lowering, target: Target
) -> Roofline:
    """The sites under the target's roof, with the network's heavier work for scale."""
    heavy = [kernel for kernel in ours.kernels if kernel.flops > LEAST_SHARE * ours.flops]
    peak = max((peak_flops_per_s(kernel, target) for kernel in heavy), default=target.tensor_flops_per_s)
    ridge = peak / target.copy_bytes_per_s
    kernels = [
        (k.flops / k.bytes_moved, 1e6 * k.flops / kernel_us(k, target)) for k in heavy if k.bytes_moved
    ]
    sites = [
        (*_points(record, times), record.decision.plan, title)
        for record, title in zip(records, titles, strict=True)
        if (times := site_us(record, target)) is not None
    ]
    points = [point for before, after, _, _ in sites for point in (before, after)] + kernels
    x_axis = _decades([x for x, _ in points] + [ridge / 2, 2 * ridge])
    y_axis = _decades([y for _, y in points] + [peak])

    def across(intensity: float) -> float:
        share = (math.log10(intensity) - x_axis[0]) / (x_axis[1] - x_axis[0])
        return round(LEFT + share * (WIDTH - LEFT - RIGHT), 1)

    def down(flops_per_s: float) -> float:
        share = (math.log10(flops_per_s) - y_axis[0]) / (y_axis[1] - y_axis[0])
        return round(TOP + (1 - share) * (HEIGHT - BOTTOM - TOP), 1)

    # Where the slope enters the plot: at its left edge, or at its lower one.
    start = max(10.0 ** x_axis[0], 10.0 ** y_axis[0] / target.copy_bytes_per_s)
    roof = [(start, start * target.copy_bytes_per_s), (ridge, peak), (10.0 ** x_axis[1], peak)]
    return Roofline(
        roof=tuple((across(x), down(y)) for x, y in roof),
        x_ticks=tuple(Tick(across(10.0**power), f"{10.0**power:,g}") for power in _each(x_axis)),
        y_ticks=tuple(Tick(down(10.0**power), f"{10.0 ** (power - 12):,g}") for power in _each(y_axis)),
        dots=tuple(
            Dot((across(x), down(y)), (across(x_after), down(y_after)), plan, title)
            for (x, y), (x_after, y_after), plan, title in sites
        ),
        kernels=tuple(dict.fromkeys((across(x), down(y)) for x, y in kernels)),
    )


def _points(
    record: SiteRecord, times_us: tuple[float, float]
) -> tuple[tuple[float, float], tuple[float, float]]:
    """(flops per byte, flops per second) of a site before and after: the same work with less traffic."""
    decision = record.decision
    each = ATTENTION_FLOPS + sum(FUSED_FLOPS.get(name, 1) for name in decision.fused)
    flops = each * math.prod(record.shape)
    return (
        (flops / (decision.traffic_before * record.map_bytes), 1e6 * flops / times_us[0]),
        (flops / (decision.traffic_after * record.map_bytes), 1e6 * flops / times_us[1]),
    )


def _decades(values: Sequence[float]) -> tuple[int, int]:
    """Powers of ten around positive values."""
    logs = [math.log10(value) for value in values if value > 0]
    return math.floor(min(logs)), math.ceil(max(logs))


def _each(axis: tuple[int, int]) -> range:
    return range(axis[0], axis[1] + 1)
