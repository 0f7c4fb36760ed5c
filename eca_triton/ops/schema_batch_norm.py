"""The operator `batch_norm_eca`, by its arguments."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .schema import define


class BatchNormArguments(NamedTuple):
    """The arguments of `batch_norm_eca`.

    `pack_mask`: backward knows where ReLU was open from one bit per element, eight channels to a byte,
    instead of from `out`. Kernels keep bits of their own wherever they can. `group`: the name of the process
    group whose batches are one batch, as for SyncBatchNorm; "" for this process alone.
    """

    x: Tensor
    weight: Tensor
    bias: Tensor | None = None
    bn_weight: Tensor | None = None
    bn_bias: Tensor | None = None
    residual: Tensor | None = None
    bn_eps: float = 1e-5
    circular: bool = False
    gate: str = "sigmoid"
    gain: float = 1.0
    activation: str = "identity"
    pack_mask: bool = False
    out_dtype: torch.dtype | None = None
    group: str = ""

    @property
    def gate_options(self) -> dict[str, Any]:
        """The keyword arguments of `gate_from_pool`."""
        return {"circular": self.circular, "gate": self.gate}


BATCH_NORM_ECA = define("batch_norm_eca", BatchNormArguments, "(Tensor out, Tensor mean, Tensor var)")
