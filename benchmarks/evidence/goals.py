"""The project's goals for whole networks on an H200, and whether results reach them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from ..network.figures import setting_name

FAMILY, BATCH, GPU = "ecaresnet50d", 128, "H200"


class Goal(NamedTuple):
    """A bound of a ratio of `network_figures.figures`, of ours as torch.compile(backend="eca_triton") has it.

    Attributes:
        direction: Inference or training.
        figure: "tax", which must be at most `bound`, or "speedup", which must be at least.
        bound: As a ratio.
        text: In words.
    """

    direction: str
    figure: str
    bound: float
    text: str

    def met(self, value: float) -> bool:
        """Return whether a measured median reaches it."""
        return value <= self.bound if self.figure == "tax" else value >= self.bound

    def shown(self, value: float) -> str:
        """A measured median."""
        return f"{value:+.1%}".replace("%", " %") if self.figure == "tax" else f"{value:.3f}x"


GOALS = (
    Goal("inference", "tax", 0.02, "ECA tax in compiled inference at most 2 %"),
    Goal("inference", "speedup", 1.2, "compiled inference at least 1.2x stock torch.compile"),
    Goal("training", "speedup", 1.1, "training step at least 1.1x stock torch.compile"),
)


def verdicts(documents: Iterable[Mapping[str, Any]]) -> list[str]:
    """A line for each goal and setting that was measured on the goals' GPU, or "not measured"."""
    found = [document for document in documents if GPU in document["machine"]["gpu"]]
    lines = []
    for goal in GOALS:
        measured = [
            (row, row[goal.figure]["ours"]["median"])
            for document in found
            for row in document["rows"]
            if (row["family"], row["batch"], row["direction"]) == (FAMILY, BATCH, goal.direction)
            and "ours" in row.get(goal.figure, {})
        ]
        what = f"{FAMILY} on an {GPU}: {goal.text}"
        lines += [
            f"goal {'met' if goal.met(value) else 'MISSED'}: {what}: {goal.shown(value)}, {setting_name(row)}"
            for row, value in measured
        ] or [f"goal not measured: {what}"]
    return lines
