"""What becomes of each ECA-like site of a model: the table and the JSON object of the `explain` command."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from math import isnan
from typing import TYPE_CHECKING, Any, TextIO

import torch
from torch import nn

from .compile.reasons import REASONS
from .tables import write_table

if TYPE_CHECKING:
    from .compile.passes import SiteRecord
    from .deviceless import Comparison, Lowering

COLUMNS = ("site", "C x H x W", "k", "absorbed", "plan", "before", "after")
NUMERIC = {"k", "before", "after"}


@dataclass(frozen=True)
class Report:
    """The sites of one model and, where it was lowered for a GPU, what the network costs before and after.

    Attributes:
        sites: One record per ECA-like site; those of a graph in its order, rejected candidates last.
        comparison: Stock Inductor's lowering beside ours, or None when no target was named.
    """

    sites: tuple[SiteRecord, ...]
    comparison: Comparison | None = None

    def as_dict(self) -> dict[str, Any]:
        """The object that `--json` prints: `sites` and `totals`, made of plain values."""
        return {"sites": [_site(record) for record in self.sites], "totals": self.totals()}

    def totals(self) -> dict[str, int | None]:
        """Counts over the network; those of kernels, calls and bytes are None without a target.

        `kernels` counts every launch that Inductor plans, external calls (cuDNN, cuBLAS, our ops) included.
        """
        totals: dict[str, int | None] = {
            "sites": len(self.sites),
            "lowered": sum(r.lowered for r in self.sites),
        }
        pair = (None, None) if self.comparison is None else (self.comparison.stock, self.comparison.lowered)
        for quantity in ("kernels", "external_calls", "bytes"):
            for when, lowering in zip(("before", "after"), pair, strict=True):
                totals[f"{quantity}_{when}"] = None if lowering is None else _quantity(lowering, quantity)
        return totals

    def rows(self) -> list[tuple[str, ...]]:
        """One row of text per site, in the order of `COLUMNS`."""
        return [_row(record) for record in self.sites]

    def remarks(self) -> list[str]:
        """Lines that follow the table: why sites were left alone, then the totals."""
        return [*self._left_alone(), *self._totals_in_words()]

    def _left_alone(self) -> list[str]:
        sites = defaultdict(list)
        for record in self.sites:
            if not record.lowered and record.decision.reason is not None:
                sites[record.decision.reason, record.decision.detail].append(record.name)
        return [
            f"{code}: {REASONS[code]}{f' ({detail})' if detail else ''}: {_names(names)}"
            for (code, detail), names in sites.items()
        ]

    def _totals_in_words(self) -> list[str]:
        if not self.sites:
            return ["no ECA-like site found"]
        lines = [f"{sum(record.lowered for record in self.sites)} of {len(self.sites)} sites lowered"]
        if self.comparison is not None:
            before, after = self.comparison.stock, self.comparison.lowered
            for quantity, label in (("kernels", "kernels"), ("external_calls", "of them external calls")):
                lines.append(f"{label}: {_quantity(before, quantity)} -> {_quantity(after, quantity)}")
            saved = 1 - after.bytes_moved / before.bytes_moved
            lines.append(
                f"bytes moved per step: {before.bytes_moved / 1e9:.2f} -> {after.bytes_moved / 1e9:.2f} GB "
                f"({-saved:+.1%}), as Inductor counts them; no time was measured"
            )
        return lines


def explain(
    model: nn.Module, inputs: tuple[Any, ...], *, target: str | None = None, training: bool = False
) -> Report:
    """Find the ECA-like sites of a model, as planned for a CUDA device; no GPU is needed.

    Args:
        model: Module on the CPU or the meta device, in the dtype, layout and mode that it will run in.
        inputs: Its example inputs, on the same device.
        target: GPU to lower the whole network for (a key of `eca_triton.deviceless.TARGETS`), or None to
            report sites only.
        training: Whether gradients are computed.
    """
    if target is not None:
        from .deviceless import compare

        comparison = compare(model, inputs, target=target, training=training)
        return Report(tuple(comparison.records), comparison)
    from torch._subclasses.fake_tensor import FakeTensorMode

    from .compile.backend import inspect
    from .deviceless.stand_in import StandIn

    # As on a GPU, and unlike on the meta device, a convolution of channels-last maps makes such maps.
    fakes = FakeTensorMode()
    stand_in = StandIn(fakes, torch.device("cpu"), dtype=None, channels_last=False)
    copy, arguments = stand_in.model(model), stand_in.inputs(inputs)
    with torch.set_grad_enabled(training), fakes:
        return Report(tuple(inspect(copy, arguments, device_type="cuda")))


def write(report: Report, out: TextIO) -> None:
    """Write the table of sites, then why some were left alone, then the totals."""
    if report.sites:
        write_table(COLUMNS, report.rows(), out, NUMERIC)
        out.write("\nbefore, after: traffic of the site in units of its map\n")
    for line in report.remarks():
        out.write(line + "\n")


def _site(record: SiteRecord) -> dict[str, Any]:
    decision = record.decision
    return {
        "name": record.name,
        "shape": [size if isinstance(size, int) else str(size) for size in record.shape],
        "k": record.k,
        "plan": decision.plan,
        "lowered": record.lowered,
        "fused": list(decision.fused),
        "reason": decision.reason,
        "traffic_before": None if isnan(decision.traffic_before) else decision.traffic_before,
        "traffic_after": None if isnan(decision.traffic_after) else decision.traffic_after,
    }


def _row(record: SiteRecord) -> tuple[str, ...]:
    decision = record.decision
    return (
        record.name,
        " x ".join(str(size) for size in record.shape[1:]),
        str(record.k),
        ", ".join(decision.fused) or "-",
        decision.plan if decision.reason is None else f"{decision.plan} {decision.reason}",
        _in_maps(decision.traffic_before),
        _in_maps(decision.traffic_after),
    )


def _in_maps(traffic: float) -> str:
    return "-" if isnan(traffic) else f"{traffic:.2f}"


def _names(names: list[str]) -> str:
    shown = ", ".join(names[:4])
    return f"{shown} and {len(names) - 4} more" if len(names) > 4 else shown


def _quantity(lowering: Lowering, quantity: str) -> int:
    if quantity == "kernels":
        return lowering.triton_kernels + lowering.external_calls
    return lowering.external_calls if quantity == "external_calls" else lowering.bytes_moved
