"""What `explain` finds."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import isnan
from typing import TYPE_CHECKING, Any

from ..tuning.targets import TARGETS, Target
from .predict import EFFICIENCIES, Prediction, predict, site_us, speedup

if TYPE_CHECKING:
    from ..compile.record import SiteRecord
    from ..deviceless import Comparison, Lowering
    from .lookalikes import Unmatched
    from .measure import Measurement

SCHEMA = 1  # of `as_dict`: raised when a key changes its meaning or goes, not when one is added
NETWORKS = ("stock", "ours", "plain")


@dataclass(frozen=True)
class Subject:
    """Model and settings that were looked at.

    Attributes:
        model: Its name.
        inputs: Shape, dtype and layout of each tensor.
        dtype: Of the parameters.
        batch: Images of one step: the first size of the first input; None where it has none.
        training: A training step, or inference.
        mode: Of torch.compile.
        target: The GPU that it was lowered for, a key of `eca_triton.deviceless.TARGETS`, or None.
        versions: Of the packages that decided.
    """

    model: str
    inputs: tuple[str, ...]
    dtype: str
    batch: int | None
    training: bool
    mode: str
    target: str | None
    versions: dict[str, str]


@dataclass(frozen=True, repr=False)
class Result:
    """The sites of one model and, where it was lowered for a GPU, what the network costs before and after.

    Attributes:
        subject: What was looked at.
        sites: One record per ECA-like site; those of a graph in its order, rejected candidates last.
        comparison: Stock Inductor's lowering beside ours, or None when no target was named.
        plain: The lowering of the same network without ECA, or None.
        no_plain: Why there is none, where a target was named.
        unmatched: Modules that look like ECA and of which no graph had a site.
        graph_breaks: Why Dynamo split the model; what runs between its graphs is not seen here.
        measured: Times on this machine's GPU, or None where nothing was measured.
    """

    subject: Subject
    sites: tuple[SiteRecord, ...]
    comparison: Comparison | None = None
    plain: Lowering | None = None
    no_plain: str = ""
    unmatched: tuple[Unmatched, ...] = ()
    graph_breaks: tuple[str, ...] = ()
    measured: Measurement | None = None
    _predictions: dict[str, Prediction] = field(default_factory=dict, init=False, compare=False)

    @property
    def lowered(self) -> int:
        """Number of sites that our ops run."""
        return sum(record.lowered for record in self.sites)

    @property
    def target(self) -> Target | None:
        """The GPU that the network was lowered for."""
        return None if self.subject.target is None else TARGETS[self.subject.target]

    def lowerings(self) -> dict[str, Lowering]:
        """Return the lowerings by network: "stock", "ours" and, if there is one, "plain", without ECA."""
        if self.comparison is None:
            return {}
        both = {"stock": self.comparison.stock, "ours": self.comparison.lowered}
        return both if self.plain is None else both | {"plain": self.plain}

    def predictions(self) -> dict[str, Prediction]:
        """Return what each of `lowerings` costs on the target."""
        if self.target is not None and not self._predictions:
            self._predictions.update(
                {name: predict(lowering, self.target) for name, lowering in self.lowerings().items()}
            )
        return self._predictions

    @property
    def totals(self) -> dict[str, int | None]:
        """Counts over the network; those of kernels, calls and bytes are None without a target.

        `kernels` counts every launch that Inductor plans, external calls (cuDNN, cuBLAS, our ops) included.
        """
        totals: dict[str, int | None] = {"sites": len(self.sites), "lowered": self.lowered}
        pair = (None, None) if self.comparison is None else (self.comparison.stock, self.comparison.lowered)
        for quantity in ("kernels", "external_calls", "bytes"):
            for when, lowering in zip(("before", "after"), pair, strict=True):
                totals[f"{quantity}_{when}"] = None if lowering is None else _quantity(lowering, quantity)
        return totals

    def as_dict(self) -> dict[str, Any]:
        """The object that `--json` prints, made of plain values; see `SCHEMA` for what it promises."""
        return {
            "schema": SCHEMA,
            **{name: _plain(value) for name, value in vars(self.subject).items()},
            "sites": [site_as_dict(record, self.target) for record in self.sites],
            "totals": self.totals,
            "predicted": self._predicted(),
            "measured": None if self.measured is None else self.measured.as_dict(),
            "unmatched": [vars(module) for module in self.unmatched],
            "graph_breaks": list(self.graph_breaks),
        }

    def _predicted(self) -> dict[str, Any] | None:
        if self.target is None or self.comparison is None:
            return None
        batch = self.subject.batch
        networks: dict[str, Any] = {
            name: {
                "bytes": prediction.bytes_moved,
                "flops": prediction.flops,
                "kernels": prediction.kernels,
                "step_us": list(prediction.step_us),
                "images_per_s": None if batch is None else list(prediction.images_per_s(batch)),
            }
            for name, prediction in self.predictions().items()
        }
        return {
            **{name: networks.get(name) for name in NETWORKS},
            "no_plain": self.no_plain or None,
            "speedup": list(speedup(self.comparison.stock, self.comparison.lowered, self.target)),
            "efficiencies": [vars(efficiency) for efficiency in EFFICIENCIES],
        }


def site_as_dict(record: SiteRecord, target: Target | None) -> dict[str, Any]:
    """One of the `sites` of `Result.as_dict`, with times where there is a target."""
    decision = record.decision
    times = None if target is None else site_us(record, target)
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
        "detail": decision.detail,
        "module": record.owner,
        "source": record.source or None,
        "map_bytes": record.map_bytes,
        "time_before_us": None if times is None else times[0],
        "time_after_us": None if times is None else times[1],
    }


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _quantity(lowering: Lowering, quantity: str) -> int:
    if quantity == "kernels":
        return lowering.triton_kernels + lowering.external_calls
    return lowering.external_calls if quantity == "external_calls" else lowering.bytes_moved
