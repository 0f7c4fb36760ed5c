"""What the report draws, as data: pure functions of committed results."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from typing import Any

from ..counted import page as tax_page
from ..counted import tax
from ..op.figures import COPY_SHARE
from ..op.sites import DIRECTIONS
from ..op.tails import HEADLINE
from ..shared.tensors import LAYOUTS, shape_name

Document = Mapping[str, Any]
OP_BATCH = 128
# Of timm's networks one or two of each family, for a figure that is understood at a glance.
GLANCE = (
    "ecaresnet26t", "ecaresnet50d", "ecaresnet50t", "ecaresnet101d", "ecaresnetlight", "ecaresnext50t_32x4d",
    "eca_nfnet_l0", "eca_resnet33ts",
)  # fmt: skip


@dataclass(frozen=True)
class Panel:
    """A line for each label, and on it a dot for each series; None where there is no figure."""

    title: str
    labels: list[str]
    series: dict[str, list[float | None]]


@dataclass(frozen=True)
class Chart:
    """Panels in rows, of one scale.

    Attributes:
        name: Of its files.
        title: What is drawn.
        alt: The same for those who do not see it, with the figures that matter.
        axis: What a dot's place means.
        percent: Whether it is a share.
        bound: A line to read dots against.
        panels: Rows of panels.
        figures: Whether each dot has its figure beside it.
    """

    name: str
    title: str
    alt: str
    axis: str
    percent: bool
    bound: float
    panels: list[list[Panel]]
    figures: bool = False

    def digest(self) -> str:
        """Hash all that is drawn: a file that bears another hash is out of date."""
        return sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]


def tax_at_a_glance(document: Document) -> Chart | None:
    """Return what ECA adds to the bytes of eight of timm's networks, with figures; None for another set."""
    whole = tax_in_bytes(document)
    if whole is None or tax.set_of(document) is not tax.SETS["timm"]:
        return None
    panels = []
    for panel in whole.panels[0]:
        places = [panel.labels.index(name) for name in GLANCE if name in panel.labels]
        series = {who: [dots[place] for place in places] for who, dots in panel.series.items()}
        panels.append(Panel(panel.title, [panel.labels[place] for place in places], series))
    if not all(panel.labels for panel in panels):
        return None
    return replace(
        whole,
        name="tax-bytes",
        title="Bytes that ECA adds to a network: with stock torch.compile, and with eca_triton",
        axis=f"0 % is the network without attention; a step in {whole.axis.partition('; ')[2]}; counted",
        panels=[panels],
        figures=True,
    )


def tax_in_bytes(document: Document) -> Chart | None:
    """Return what attention adds to the bytes of a set's networks, in channels-last."""
    counted = tax.set_of(document)
    what = "attention" if "se" in counted.contenders else "ECA"
    panels, said = [], []
    for training in (False, True):
        lines = list(tax_page.lines(document, training, channels_last=True, mode="default"))
        if lines:
            title = "a training step" if training else "inference"
            taxes = {
                label: [line.taxes[who] for line in lines]
                for who, label in counted.contenders.items()
                if who != "plain"
            }
            series: dict[str, list[float | None]] = {label: [*each] for label, each in taxes.items()}
            panels.append(Panel(title, [line.network for line in lines], series))
            medians = ", ".join(f"{label} {_median(each)}" for label, each in taxes.items())
            said.append(f"{title}, median of {len(lines)}: {medians}")
    if not panels:
        return None
    return Chart(
        f"{counted.stem}-bytes" + "-all" * (counted is tax.SETS["timm"]),
        f"The {what} tax in bytes, counted",
        f"{what} tax in bytes by network; {'; '.join(said)}",
        f"bytes that {what} adds to a step; bf16, batch {document['batch']}, channels-last",
        True,
        0.0,
        [panels],
    )


def tax_in_time(document: Document) -> Chart | None:
    """Return what ECA adds to the time of networks, stock and ours, measured."""
    grid, said = [], []
    for layout in LAYOUTS:
        panels = []
        for direction in ("inference", "training"):
            rows = [
                row
                for row in document["rows"]
                if (row["layout"], row["direction"]) == (layout, direction) and row.get("tax")
            ]
            if rows:
                series = {
                    name: [row["tax"][who]["median"] if who in row["tax"] else None for row in rows]
                    for who, name in (("inductor", "stock"), ("ours", "ours"))
                }
                title = f"{direction}, {layout.replace('_', '-')}"
                panels.append(Panel(title, [row["family"] for row in rows], series))
                said += [f"{title}, {row['family']}: {_taxes(row)}" for row in rows]
        if panels:
            grid.append(panels)
    if not grid:
        return None
    return Chart(
        f"tax-time-{slug(document)}",
        f"The ECA tax in time on {document['machine']['gpu']}",
        f"ECA tax in time; {'; '.join(said)}",
        "time that ECA adds to a step",
        True,
        0.0,
        grid,
    )


def share_of_copy(document: Document) -> Chart | None:
    """Share of copy bandwidth by shape."""
    who = ("inductor", "op", "compiled")
    panels = _by_shape(document, "share_of_copy", who)
    title = f"Share of copy bandwidth on {document['machine']['gpu']}, batch {OP_BATCH}"
    axis = "least bytes over time, as a share of a copy's bandwidth at this size"
    name = f"bandwidth-{slug(document)}"
    return Chart(name, title, title, axis, True, COPY_SHARE, panels) if panels else None


def ratio_to_inductor(document: Document) -> Chart | None:
    """Time of stock Inductor over that of others, by shape."""
    panels = _by_shape(document, "speedup", ("max-autotune", "op", "compiled"))
    title = f"Speed, stock torch.compile = 1, on {document['machine']['gpu']}, batch {OP_BATCH}"
    axis = "times as fast as stock torch.compile"
    return Chart(f"ratio-{slug(document)}", title, title, axis, False, 1.0, panels) if panels else None


def slug(document: Document) -> str:
    """Name a chart's files after the GPU, and after training where `op` was in training."""
    backward = document["command"] == "op" and any(row["direction"] != "forward" for row in document["rows"])
    return "-".join([*document["machine"]["gpu"].lower().split(), *(["training"] if backward else [])])


def _by_shape(document: Document, figure: str, who: Sequence[str]) -> list[list[Panel]]:
    """A row of panels for each layout and direction, a panel for each headline tail, a line for each map."""
    grid = []
    for direction in DIRECTIONS:
        for layout in LAYOUTS:
            panels = []
            for variant, kind in HEADLINE.items():
                key = (layout, variant, direction)
                rows = [row for row in _measured(document) if _key(row) == key]
                if rows:
                    series = {
                        name: [row["results"].get(name, {}).get(figure) for row in rows] for name in who
                    }
                    labels = [shape_name(row["shape"][1:]) for row in rows]
                    heading = f"{kind.label}{DIRECTIONS[direction]}, {layout.replace('_', '-')}"
                    panels.append(
                        Panel(heading, labels, {name: dots for name, dots in series.items() if any(dots)})
                    )
            if panels:
                grid.append(panels)
    return grid


def _measured(document: Document) -> Iterator[Mapping[str, Any]]:
    rows = [row for row in document["rows"] if row["status"] == "ok" and row["shape"][0] == OP_BATCH]
    yield from sorted(rows, key=lambda row: (-row["map_bytes"], row["shape"]))


def _key(row: Mapping[str, Any]) -> tuple[str, str, str]:
    return row["layout"], row["variant"], row["direction"]


def _taxes(row: Mapping[str, Any]) -> str:
    return ", ".join(f"{who} {band['median']:+.1%}" for who, band in row["tax"].items())


def _median(values: Sequence[float]) -> str:
    ordered = sorted(values)
    half = len(ordered) // 2
    middle = (ordered[half] + ordered[-half - 1]) / 2
    return f"{middle:+.1%}".replace("%", " %")
