"""A line for users' own CI: the sites of a model are lowered, or the test says which are not."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..compile.reasons import REASONS
from ..util.tables import plain_table


def assert_lowered(
    model: nn.Module, *inputs: Any, at_least: int | None = None, training: bool = False
) -> None:
    """Raise unless the sites of a model are lowered on a GPU; none is needed, and nothing is compiled.

    Args:
        model: Module on any device, in the dtype and layout that it will run in; it is not changed.
        inputs: Its example inputs.
        at_least: Number of sites that must be lowered. None: there is one, and everything that looks like
            ECA is lowered, modules that the trace does not reach included.
        training: Look at a training step instead of inference.

    Raises:
        AssertionError: Too few are; the message is a table of the others, with their reason codes.

    Examples:
        >>> def test_attention_is_fast():
        ...     eca_triton.assert_lowered(model, torch.randn(8, 3, 224, 224), at_least=16)
    """
    from .gather import explain

    report = explain(model, *inputs, target="none", training=training)
    others = report.unmatched
    total = len(report.sites) + len(others)
    wanted = max(1, total) if at_least is None else at_least
    if report.lowered >= wanted:
        return
    left = [
        (
            record.name,
            " x ".join(str(size) for size in record.shape),
            record.decision.reason or "",
            _because(REASONS.get(record.decision.reason or "", ""), record.decision.detail),
            record.source,
        )
        for record in report.sites
        if not record.lowered
    ]
    left += [(module.name, "-", "-", _because(module.reason, module.detail), "") for module in others]
    table = plain_table(("site", "shape", "code", "reason", "source"), left)
    message = f"{report.lowered} of {total} ECA sites lowered, expected at least {wanted}"
    raise AssertionError(f"{message}\n{table}" if left else f"{message}; nothing else in it looks like ECA")


def _because(reason: str, detail: str) -> str:
    return f"{reason} ({detail})" if detail else reason
