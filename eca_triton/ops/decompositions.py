"""Every operator in plain ATen, computed as on the CPU: for those who know no operator of ours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .batch_norm import plain as plain_batch_norm_eca
from .operators import OPERATORS, Operator
from .schema import BATCH_NORM_ECA


def decomposition_table() -> dict[Any, Callable[..., Any]]:
    """Our operators -> functions that compute the same with operators of torch, bit for bit as on the CPU.

    Examples:
        >>> table = torch.export.default_decompositions()
        >>> table.update(eca_triton.decomposition_table())
        >>> core_aten = program.run_decompositions(table)
    """
    return {BATCH_NORM_ECA: plain_batch_norm_eca} | {op: _plain(row) for op, row in OPERATORS.items()}


def _plain(row: Operator) -> Callable[..., Any]:
    return lambda *args, **kwargs: row.formula(row.arguments(*args, **kwargs))
