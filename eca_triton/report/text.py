"""The report as text: a table of sites, why some were left alone and what to do, then the totals."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from math import isnan
from typing import TYPE_CHECKING, TextIO

from ..compile.reasons import REASONS
from ..util.tables import width_of, wrapped, write_table
from .fixes import FIXES, OTHER_LAYER, SWITCH_ON, UNREACHED, Fix
from .lookalikes import UNREACHED as NOT_REACHED
from .lookalikes import Unmatched
from .predict import ASSUMPTION, Band, site_us, speedup
from .result import Result

if TYPE_CHECKING:
    from ..compile.record import SiteRecord
    from ..tuning.targets import Target

COLUMNS = ("site", "CxHxW", "k", "absorbed", "plan", "before", "after")
TIMES = ("us before", "us after")
NETWORK_COLUMNS = ("network", "traffic", "GFLOP", "kernels", "step us", "images/s")
NUMERIC = {"k", "before", "after", *TIMES, *NETWORK_COLUMNS[1:]}
TRAFFIC = "before, after: traffic of the site in units of its map"
LABELS = {"stock": "stock Inductor", "ours": "eca_triton", "plain": "without ECA"}


def write(report: Result, out: TextIO) -> None:
    """Write what was run, the table of sites, why some were left alone, then the totals."""
    write_sites(report, out)
    write_totals(report, out)


def write_sites(report: Result, out: TextIO) -> None:
    """Write what was run, the table of sites, and why some were left alone."""
    target = report.target
    _say(subject_line(report), out)
    if report.sites:
        columns = COLUMNS if target is None else COLUMNS + TIMES
        out.write("\n")
        write_table(columns, [row(record, target) for record in report.sites], out, NUMERIC)
        _say(f"\n{TRAFFIC}" + "; us: predicted" * (target is not None), out)
    for line in left_alone(report.sites, report.unmatched):
        _say(line, out)


def write_totals(report: Result, out: TextIO) -> None:
    """Write how many sites are lowered, and what the network costs before and after."""
    for line in _totals(report):
        _say(line, out)
    if report.target is not None:
        _write_networks(report, out)
    if report.lowered:
        _say(f"use it: {SWITCH_ON.paste}", out)


def subject_line(report: Result) -> str:
    """What was run: model, inference or a training step, inputs, weights, mode, and for which GPU."""
    subject, target = report.subject, report.target
    weights = "" if all(subject.dtype in each for each in subject.inputs) else f"; weights {subject.dtype}"
    gpu = "no GPU named, so sites alone" if target is None else f"for {target.device.name}"
    step = "a training step" if subject.training else "inference"
    return f"{subject.model}: {step}, {'; '.join(subject.inputs)}{weights}; mode {subject.mode}; {gpu}"


def _say(text: str, out: TextIO) -> None:
    out.write(wrapped(text, width_of(out)) + "\n")


def row(record: SiteRecord, target: Target | None = None) -> tuple[str, ...]:
    """One row of text per site, in the order of `COLUMNS`, and of `TIMES` where there is a target."""
    decision = record.decision
    cells = (
        record.name,
        "x".join(str(size) for size in record.shape[1:]),
        str(record.k),
        ", ".join(decision.fused) or "-",
        decision.plan if decision.reason is None else f"{decision.plan} {decision.reason}",
        _in_maps(decision.traffic_before),
        _in_maps(decision.traffic_after),
    )
    if target is None:
        return cells
    times = site_us(record, target)
    return (*cells, *(("-", "-") if times is None else (f"{time_us:.1f}" for time_us in times)))


def left_alone(sites: Iterable[SiteRecord], others: Iterable[Unmatched] = ()) -> list[str]:
    """Return why sites and modules were left to Inductor, and the fix for each reason."""
    lines = []
    for code, reason, detail, names, fix in grouped(sites, others):
        start = f"{code}: {reason}" if code else reason
        lines.append(f"{start}{f' ({detail})' if detail else ''}: {shortened(names)}")
        lines += [f"    {fix.advice}", *(f"      {line}" for line in fix.paste.splitlines())]
    return lines


def grouped(
    records: Iterable[SiteRecord], others: Iterable[Unmatched] = ()
) -> list[tuple[str, str, str, list[str], Fix]]:
    """(code, reason, detail, sites with their source lines, fix) for all that was left alone."""
    sites: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for record in records:
        if not record.lowered and record.decision.reason is not None:
            where = f" at {record.source}" if record.source else ""
            sites[record.decision.reason, record.decision.detail].append(record.name + where)
    modules: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for module in others:
        modules[module.reason, module.detail].append(f"{module.name} ({module.kind})")
    return [(code, REASONS[code], detail, names, FIXES[code]) for (code, detail), names in sites.items()] + [
        ("", reason, detail, names, UNREACHED if reason == NOT_REACHED else OTHER_LAYER)
        for (reason, detail), names in modules.items()
    ]


def shortened(names: list[str]) -> str:
    """The first four names, and how many more there are."""
    shown = ", ".join(names[:4])
    return f"{shown} and {len(names) - 4} more" if len(names) > 4 else shown


def in_words(band: Band, digits: int = 0) -> str:
    """A band as "likely (low to high)"."""
    return f"{band.likely:,.{digits}f} ({band.low:,.{digits}f} to {band.high:,.{digits}f})"


def amount(size: float) -> str:
    """Bytes in GB, or in MB below one."""
    return f"{size / 1e9:,.2f} GB" if size >= 1e9 else f"{size / 1e6:,.2f} MB"


def _in_mode(report: Result) -> str:
    """Return which implementation of products the figures are those of, where Inductor would time several."""
    mode = report.subject.mode
    if mode == "default":
        return ""
    return f", {mode}" + " where Triton's matrix products win" * mode.startswith("max-autotune")


def _totals(report: Result) -> list[str]:
    if not report.sites:
        return ["no ECA-like site found"]
    lines = [f"{report.lowered} of {len(report.sites)} sites lowered"]
    if report.graph_breaks:
        why = "; ".join(report.graph_breaks)
        lines.append(f"graph breaks, between which nothing is lowered or counted: {why}")
    totals = report.totals
    before, after = totals["bytes_before"], totals["bytes_after"]
    if before is not None and after is not None:
        for quantity, label in (("kernels", "kernels"), ("external_calls", "of them external calls")):
            lines.append(f"{label}: {totals[f'{quantity}_before']} -> {totals[f'{quantity}_after']}")
        change = after / before - 1 if before else 0.0
        lines.append(
            f"bytes moved per step: {amount(before)} -> {amount(after)} ({change:+.1%}), "
            "as Inductor counts them"
        )
    return lines


def _write_networks(report: Result, out: TextIO) -> None:
    target, both, batch = report.target, report.comparison, report.subject.batch
    if target is None or both is None:
        return
    _say(f"\npredicted for {target.device.name}{_in_mode(report)}; no GPU measured this", out)
    rows = [
        (
            LABELS[name],
            amount(prediction.bytes_moved),
            f"{prediction.flops / 1e9:,.1f}",
            str(prediction.kernels),
            in_words(prediction.step_us),
            "-" if batch is None else in_words(prediction.images_per_s(batch)),
        )
        for name, prediction in report.predictions().items()
    ]
    write_table(NETWORK_COLUMNS, rows, out, NUMERIC)
    if report.no_plain:
        _say(f"no network without ECA: {report.no_plain}", out)
    faster = speedup(both.stock, both.lowered, target)
    _say(f"predicted speedup: {in_words(faster, 3)}", out)
    _say(f"the band: {ASSUMPTION}", out)
    if report.measured is not None:
        report.measured.write(out)


def _in_maps(traffic: float) -> str:
    return "-" if isnan(traffic) else f"{traffic:.2f}"
