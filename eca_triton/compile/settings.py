"""What a user asked of the pass: options of the backend, arguments of the other doors, the environment."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Literal, get_args

Plan = Literal["gate", "block", "pool", "convfold", "convblock", "batch_norm", "skip"]
"""What may become of a site; "skip" leaves it to Inductor."""

PLANS = ("auto", *(plan for plan in get_args(Plan) if plan not in ("batch_norm", "skip")), "off")
"""What a user may ask for."""


class SettingsError(ValueError):
    """An option or a variable has a value that it cannot have: the one error of ours that is the user's."""


@dataclass(frozen=True)
class Settings:
    """Settings that a user asked for; part of Inductor's cache key by their `repr`.

    Attributes:
        force: Lower on any device and size, also where no win is predicted.
        device: Plan as though the maps were on a device of this type, or None for theirs.
        target: Of a GPU that need not be there, a key of `TARGETS`, or None for the one at hand.
        plan: One of `PLANS`: "auto" chooses by cost, "off" lowers nothing, any other is the only one allowed.
        strict: Raise `NotLoweredError` where a site stays with Inductor for another reason than cost.
        exported: The graph is a program for inference, which nobody trains.
        packaged: It runs where there is no Python, and so none of our operators.
    """

    force: bool = False
    device: str | None = None
    target: str | None = None
    plan: str = "auto"
    strict: bool = False
    exported: bool = False
    packaged: bool = False

    @classmethod
    def from_environment(
        cls,
        *,
        force: bool = False,
        device: str | None = None,
        target: str | None = None,
        plan: str | None = None,
        strict: bool | None = None,
        exported: bool = False,
        packaged: bool = False,
    ) -> Settings:
        """These settings; where they say nothing, those of the environment.

        What the code says counts more than ECA_TRITON_PLAN and ECA_TRITON_STRICT; ECA_TRITON_FORCE=1 adds to
        it, and ECA_TRITON_DISABLE=1 stands above all.

        Raises:
            SettingsError: an option or a variable has a value that it cannot have.
        """
        verbose()  # a wrong value is told here, and not when there is something to say
        if plan is None:
            plan = _among("ECA_TRITON_PLAN", os.environ.get("ECA_TRITON_PLAN") or "auto", PLANS)
        settings = cls(
            force=_boolean("eca.force", force) or _switch("ECA_TRITON_FORCE"),
            device=device,
            target=target,
            plan=_among("eca.plan", plan, PLANS),
            strict=_switch("ECA_TRITON_STRICT") if strict is None else _boolean("eca.strict", strict),
            exported=exported,
            packaged=packaged,
        )
        return cls(plan="off") if _switch("ECA_TRITON_DISABLE") else settings


def verbose() -> bool:
    """Return whether ECA_TRITON_VERBOSE asks for a line after each compilation, however logging is set.

    Raises:
        SettingsError: the variable has a value that it cannot have.
    """
    return _switch("ECA_TRITON_VERBOSE")


def _among(option: str, value: Any, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        raise SettingsError(f"{option} must be one of {', '.join(allowed)}, got {value!r}")
    return str(value)


def _boolean(option: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise SettingsError(f"{option} must be True or False, got {value!r}")
    return value


def _switch(variable: str) -> bool:
    """Return whether an environment variable is "1"; unset, empty and "0" are off."""
    return _among(variable, os.environ.get(variable, ""), ("0", "1", "")) == "1"
