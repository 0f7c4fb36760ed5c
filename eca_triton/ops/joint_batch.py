"""One batch of all processes of a group, for batch norm, by collectives that torch.compile can trace."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def statistics(count: int, mean: Tensor, var: Tensor, group: str) -> tuple[Tensor, Tensor, Tensor]:
    """Count [1], mean and biased variance [C] of the joint batch, of those of this process's batch.

    By Chan's formula (https://doi.org/10.2307/2683386); batches may differ in size.
    """
    own = torch.cat((mean.new_full((1,), count), mean, var)).unsqueeze(0)
    collectives = _collectives()
    gathered = collectives.wait_tensor(collectives.all_gather_tensor(own, 0, group))
    counts, means, variances = gathered.split((1, len(mean), len(var)), 1)
    total = counts.sum(0)
    mean = (counts * means).sum(0) / total
    return total, mean, (counts * (variances + (means - mean).square())).sum(0) / total


def sums(first: Tensor, second: Tensor, group: str) -> tuple[Tensor, Tensor]:
    """Two vectors [C], each summed over the processes."""
    collectives = _collectives()
    both = collectives.wait_tensor(collectives.all_reduce(torch.stack((first, second)), "sum", group))
    return both[0], both[1]


def _collectives() -> Any:
    # Not at import: builds of torch without distributed training do not have it.
    from torch.distributed import _functional_collectives

    return _functional_collectives
