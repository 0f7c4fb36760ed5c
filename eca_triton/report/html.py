"""The report as one page: what the template in page/ shows, put into words and shapes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from ..compile.settings import Plan
from .charts import bars, roofline, strip
from .fixes import SWITCH_ON
from .predict import ASSUMPTION, Band, kernel_us, speedup
from .result import Result
from .text import COLUMNS, LABELS, NUMERIC, TIMES, amount, grouped, row

if TYPE_CHECKING:
    from ..compile.record import SiteRecord
    from ..deviceless import Lowering
    from ..tuning.targets import Target

PAGE = Path(__file__).parent / "page"
MINUS, TIMES_SIGN = "\N{MINUS SIGN}", "\N{MULTIPLICATION SIGN}"
LEFT_ALONE = "left to Inductor"
MEANINGS: dict[Plan, str] = {
    "convblock": "One kernel is the 1x1 convolution, batch norm, rescaling and all pointwise code behind.",
    "convfold": "The gates come from the input of the 1x1 convolution before, smaller than the map.",
    "block": "One kernel reads the map once: batch norm before and all pointwise code behind are in it.",
    "gate": "One kernel makes the gates; the map is rescaled by a kernel of Inductor.",
    "pool": "Inductor pools and rescales; one kernel makes the gates of the means.",
    "batch_norm": "In training batch norm and attention share two passes over the map in either direction.",
    "skip": "Nothing is changed: why stands below.",
}
"""What a plan makes of a site; docs/plans.md has the whole table."""


def render(report: Result) -> str:
    """One HTML document with style and pictures in it, and no script."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(PAGE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html").render(view(report))


def view(report: Result) -> dict[str, Any]:
    """Return what the template reads."""
    titles = [_title(record) for record in report.sites]
    used = {record.decision.plan for record in report.sites}
    shown: dict[str, Any] = {
        "subject": report.subject,
        "target": report.target,
        "figures": _figures(report),
        "ends": [record.name for record in (report.sites[0], report.sites[-1])] if len(titles) > 1 else [],
        "strip": strip(report.sites, titles),
        "legend": [(plan, LEFT_ALONE if plan == "skip" else plan) for plan in get_args(Plan) if plan in used],
        "meanings": MEANINGS,
        "weights": ""
        if all(report.subject.dtype in form for form in report.subject.inputs)
        else report.subject.dtype,
        "columns": [
            (name, name in NUMERIC) for name in (COLUMNS if report.target is None else COLUMNS + TIMES)
        ],
        "sites": [(record, row(record, report.target)) for record in report.sites],
        "left_alone": grouped(report.sites, report.unmatched),
        "graph_breaks": report.graph_breaks,
        "switch_on": SWITCH_ON,
        "lowered": report.lowered,
        "assumption": ASSUMPTION,
        "labels": LABELS,
        "networks": None,
        "measured": report.measured,
        "no_plain": report.no_plain,
    }
    target, both = report.target, report.comparison
    if target is None or both is None:
        return shown
    return shown | {
        "networks": {name: _kernels(each, target) for name, each in report.lowerings().items()},
        "bytes": _bytes(report),
        "images": _images(report),
        "roofline": roofline(report.sites, titles, both.lowered, target),
    }


def _figures(report: Result) -> list[tuple[str, str, str]]:
    """(what, figure, small print) of the few that matter most."""
    figures = [("Sites lowered", f"{report.lowered} of {len(report.sites)}", _missing(report))]
    target, both, plain = report.target, report.comparison, report.plain
    if target is None or both is None:
        return figures
    stock, ours = both.stock.bytes_moved, both.lowered.bytes_moved
    faster = speedup(both.stock, both.lowered, target)
    figures += [
        ("Bytes per step", _percent(ours, stock), f"{amount(stock)} → {amount(ours)}"),
        ("Speedup, predicted", f"{faster.likely:.2f}{TIMES_SIGN}", f"{faster.low:.2f} to {faster.high:.2f}"),
    ]
    if plain is not None:
        before, after = (_percent(moved, plain.bytes_moved) for moved in (stock, ours))
        figures.append(("What ECA costs, in bytes", after, f"{before} with stock Inductor"))
    return figures


def _missing(report: Result) -> str:
    count = len(report.unmatched)
    return f"{count} more that only look{'s' * (count == 1)} like ECA" if count else ""


def _percent(after: float, before: float) -> str:
    """The change, with a true minus sign."""
    change = 100 * (after / before - 1) if before else 0.0
    return f"{change:+.1f} %".replace("-", MINUS)


def _bytes(report: Result) -> Any:
    rows = []
    for name, prediction in report.predictions().items():
        moved = float(prediction.bytes_moved)
        rows.append((name, Band(moved, moved, moved), amount(moved), ""))
    return bars(rows, with_band=False)


def _images(report: Result) -> Any:
    if report.subject.batch is None:
        return []
    rows = []
    for name, prediction in report.predictions().items():
        speed = prediction.images_per_s(report.subject.batch)
        rows.append((name, speed, f"{speed.likely:,.0f}", f"{speed.low:,.0f} to {speed.high:,.0f}"))
    return bars(rows, with_band=True)


def _kernels(lowering: Lowering, target: Target) -> list[tuple[str, ...]]:
    return [
        (
            kernel.name,
            ", ".join(_short(operation) for operation in kernel.ops),
            kernel.phase,
            f"{kernel.bytes_moved / 1e6:,.2f}",
            f"{kernel.flops / 1e9:,.2f}" if kernel.flops else "",
            f"{kernel_us(kernel, target):,.1f}",
        )
        for kernel in lowering.kernels
    ]


def _short(operation: str) -> str:
    return operation.removeprefix("aten.").removesuffix(".default")


def _title(record: SiteRecord) -> str:
    decision = record.decision
    plan = decision.plan if decision.reason is None else f"{LEFT_ALONE}, {decision.reason}"
    size = f", {record.map_bytes / 1e6:,.1f} MB" if record.map_bytes else ""
    return f"{record.name}: {' x '.join(map(str, record.shape))}{size}, k = {record.k}: {plan}"
