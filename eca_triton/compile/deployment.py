"""What an exported program, or a package that runs without Python, cannot take of a plan."""

from __future__ import annotations

from .plan import Decision, Facts, Settings
from .reasons import PACKAGED, TRAINS


def deployable(decision: Decision, facts: Facts, settings: Settings) -> Decision:
    """The decision, or that the site stays as it was exported.

    An operator of ours is a call into Python. Only where Inductor lowers it to a template of its own does
    the compiled program launch our kernel by itself.
    """
    if decision.plan == "skip":
        return decision
    if settings.exported and facts.batch_norm == "train":
        return _left_alone(decision, TRAINS, "its batch norm trains")
    compiled_in = decision.plan == "block" and facts.templates and not facts.grad
    if settings.packaged and not compiled_in:
        return _left_alone(decision, PACKAGED, f"the plan would be {decision.plan}")
    return decision


def _left_alone(decision: Decision, reason: str, detail: str) -> Decision:
    before = decision.traffic_before
    return Decision("skip", reason, detail, before, before, ())
