"""Decide what becomes of a site: facts -> plans that it admits -> their costs -> the choice.

A plan is admitted where it can be emitted and leaves the neighbours their fusion; else a code, ECA3xx, names
its first obstacle. Among the admitted ones the fastest is taken, if it is predicted to beat stock Inductor
and moves no more bytes; else the site stays as it is.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, replace

from ...launch.call import KERNEL_DTYPES
from ...tuning.targets import TARGETS
from ..reasons import (
    ASKED,
    DEVICE,
    DISABLED,
    GATE_READ,
    KERNEL_DTYPE,
    NO_CONVOLUTION,
    NO_PRODUCT,
    NO_TEMPLATES,
    NO_TRITON,
    NO_WIN,
    NOT_STORED,
    NOT_TAKEN_OVER,
    NOT_WHOLE,
    PACKAGED,
    REASONS,
    REPEATED,
    RESCALED_IN_PLACE,
    SPREAD,
    TINY,
    TRAINING,
    TRAINS,
)
from ..settings import Plan, Settings
from . import cost
from .cost import Cost, Work
from .facts import Facts

# Below this a site is bound by launches and by the host, whose calls of opaque ops take some 5 us more than
# Inductor's own launcher: what a launch less saves, such a call costs. Estimated, not measured.
TINY_MAP_BYTES = 32 * 1024


@dataclass(frozen=True)
class Alternative:
    """A plan that was weighed.

    Attributes:
        plan: Its name.
        obstacle: Code of why the site does not admit it, or None.
        traffic: Passes over the map, in S.
        cost: What it would cost.
        time_s: Predicted time on the target.
    """

    plan: Plan
    obstacle: str | None
    traffic: float
    cost: Cost
    time_s: float


@dataclass(frozen=True)
class Decision:
    """Plan for a site, and what it was predicted to do.

    Attributes:
        plan: The choice; "skip" leaves the site to Inductor.
        reason: Why it was skipped, a code, else None.
        detail: What the code is about, here.
        traffic_before: Passes over the map by stock Inductor, in S; nan where nothing was predicted.
        traffic_after: The same by the plan.
        fused: What the plan takes in, or Inductor puts into the same kernel: neighbours in order.
        target: Key in `TARGETS` of the GPU that the costs are for.
        cost_before: Of stock Inductor; None for what is no site.
        cost_after: Of the plan.
        alternatives: All plans that were weighed, in order of preference.
    """

    plan: Plan
    reason: str | None
    detail: str
    traffic_before: float
    traffic_after: float
    fused: tuple[str, ...] = ()
    target: str = ""
    cost_before: Cost | None = None
    cost_after: Cost | None = None
    alternatives: tuple[Alternative, ...] = ()

    @property
    def time_before_s(self) -> float:
        """Predicted for stock Inductor on the target; 0 for what is no site."""
        return 0.0 if self.cost_before is None else self.cost_before.time_s(TARGETS[self.target])

    @property
    def time_after_s(self) -> float:
        """The same for the plan."""
        return 0.0 if self.cost_after is None else self.cost_after.time_s(TARGETS[self.target])


def decide(facts: Facts, settings: Settings) -> Decision:
    """Choose a plan, as the user asked for it or by cost."""
    before = _alternative("skip", None, cost.stock(facts), facts)
    weighed = tuple(
        _alternative(plan, obstacle(facts) or _outside_package(plan, facts, settings), work(facts), facts)
        for plan, obstacle, work in PLANS
    )

    def decision(chosen: Alternative, reason: str | None = None, detail: str = "") -> Decision:
        return Decision(
            plan=chosen.plan,
            reason=reason,
            detail=detail,
            traffic_before=before.traffic,
            traffic_after=chosen.traffic,
            fused=_fused(facts, chosen.plan),
            target=facts.target,
            cost_before=before.cost,
            cost_after=chosen.cost,
            alternatives=weighed,
        )

    reason, detail = _out_of_reach(facts, settings)
    if reason is not None:
        return decision(before, reason, detail)
    if settings.plan != "auto":
        asked = next(each for each in weighed if each.plan == settings.plan)
        if asked.obstacle is None:
            return decision(asked)
        return decision(before, ASKED, f"{asked.plan}: {asked.obstacle} {REASONS[asked.obstacle]}")
    size = facts.numel * facts.dtype.itemsize
    if size < TINY_MAP_BYTES and not settings.force:
        return decision(before, TINY, f"{size} bytes")
    # Bytes are counted, times are a model's: no time makes up for a byte more.
    admitted = [each for each in weighed if each.obstacle is None and each.traffic <= before.traffic]
    if not admitted:
        return decision(before, PACKAGED, "")
    best = min(admitted, key=_rank)
    if _rank(best) < _rank(before) or settings.force:
        return decision(best)
    nearest = f"{best.plan} is predicted to take {best.time_s * 1e6:.1f} us, stock {before.time_s * 1e6:.1f}"
    return decision(before, NO_WIN, nearest)


def _rank(each: Alternative) -> tuple[float, float]:
    """Faster first; where instructions bound either, fewer bytes."""
    return each.time_s, each.traffic


def left_alone(decision: Decision, reason: str, detail: str) -> Decision:
    """The same site, skipped after all."""
    return replace(
        decision,
        plan="skip",
        reason=reason,
        detail=detail,
        traffic_after=decision.traffic_before,
        fused=(),
        cost_after=decision.cost_before,
    )


def _gate_obstacle(facts: Facts) -> str | None:
    """An op over the map would cut the fusion of batch norm, its backward and the mean.

    12.5 S against 10 S for the backward of a bottleneck's tail. The same goes for a map that Inductor makes
    in a kernel of its own, which can pool it without a read. Who computes the result several times would
    compute batch norm as often, which Inductor answers with a map in float32.
    """
    if facts.grad or facts.batch_norm == "train":
        return TRAINING
    if facts.repeated:
        return REPEATED
    return None if facts.source_is_stored else NOT_STORED


def _block_obstacle(facts: Facts) -> str | None:
    """Name the obstacle to one op: in inference a kernel of ours, tail inside; in training opaque ops."""
    if facts.shared:
        return GATE_READ
    if facts.grad:
        return None if facts.trains_as_block else NOT_WHOLE
    if _gate_obstacle(facts) is not None:
        return _gate_obstacle(facts)
    if facts.in_place:
        return RESCALED_IN_PLACE
    if facts.reindexed or facts.reordered:
        return SPREAD
    return None if facts.templates else NO_TEMPLATES


def _batch_norm_obstacle(facts: Facts) -> str | None:
    """Behind another batch norm that trains: backward's moments would have it store its gradient in fp32."""
    if facts.shared:
        return GATE_READ
    if not facts.takes_over:
        return NOT_TAKEN_OVER
    return SPREAD if facts.reordered or (facts.normalized and facts.grad) else None


def _convfold_obstacle(facts: Facts) -> str | None:
    """The convolution must not have more inputs than results, unless nobody has to read them once more."""
    if facts.grad or facts.batch_norm == "train":
        return TRAINING
    if facts.repeated:
        return REPEATED
    costly = facts.expansion is None or (facts.expansion > 1.0 and not facts.pooled_by_producer)
    return NO_CONVOLUTION if costly else None


def _convblock_obstacle(facts: Facts) -> str | None:
    """Name the obstacle to one kernel for convolution and block, where memory is all that it waits for."""
    obstacle = GATE_READ if facts.shared else _convfold_obstacle(facts)
    if obstacle is not None:
        return obstacle
    if facts.in_place:
        return RESCALED_IN_PLACE
    if facts.reindexed:
        return SPREAD
    return None if facts.products and facts.one_kernel and cost.waits_for_memory(facts) else NO_PRODUCT


def _outside_package(plan: Plan, facts: Facts, settings: Settings) -> str | None:
    """An operator of ours is a call into Python; a template of Inductor's is compiled into the package."""
    return PACKAGED if settings.packaged and (plan != "block" or facts.grad) else None


def _no_obstacle(facts: Facts) -> None:
    """The mean stays native, and one op computes the gates from it."""


# By preference where times are equal.
PLANS: tuple[tuple[Plan, Callable[[Facts], str | None], Callable[[Facts], Work]], ...] = (
    ("convfold", _convfold_obstacle, cost.convfold),
    ("convblock", _convblock_obstacle, cost.convblock),
    ("batch_norm", _batch_norm_obstacle, cost.batch_norm),
    ("block", _block_obstacle, cost.block),
    ("gate", _gate_obstacle, cost.gate),
    ("pool", _no_obstacle, cost.pool),
)


def _alternative(plan: Plan, obstacle: str | None, work: Work, facts: Facts) -> Alternative:
    target = TARGETS[facts.target]
    predicted = work.cost(facts, target)
    return Alternative(plan, obstacle, work.traffic, predicted, predicted.time_s(target))


def _fused(facts: Facts, plan: Plan) -> tuple[str, ...]:
    """Name what a plan fuses: from before the site, and the tail, which it or Inductor takes along."""
    if plan == "skip":
        return ()
    before = ("conv",) * plan.startswith("conv") + ("batch_norm",) * (facts.batch_norm is not None)
    before += (facts.activation,) * (facts.activation != "identity")
    return (*(() if plan == "pool" else before), *facts.tail)


def _out_of_reach(facts: Facts, settings: Settings) -> tuple[str | None, str]:
    """Return why nothing of ours may run here, whatever the cost: a code and its detail."""
    if settings.plan == "off":
        return DISABLED, ""
    if settings.exported and facts.batch_norm == "train":
        return TRAINS, "its batch norm trains"
    if settings.force:
        return None, ""
    device = settings.device or facts.device
    if device != "cuda":
        return DEVICE, f"it is on {device}"
    if not facts.served:
        return DEVICE, "Triton does not serve its GPU"
    if facts.dtype not in KERNEL_DTYPES:
        return KERNEL_DTYPE, f"it is {facts.dtype}"
    if settings.device is None and importlib.util.find_spec("triton") is None:
        return NO_TRITON, ""
    return None, ""
