"""The operators `torch.ops.eca_triton.*`: importing this package registers them. Needs torch and einops."""

from . import autograd, batch_norm, flops, implementation, vmap
from .autograd import call
from .operators import OPERATORS
from .schema import (
    AFFINE_FROM_PROJECTION,
    BATCH_NORM_ECA,
    ECA,
    ECA_BACKWARD,
    ECA_FORWARD,
    GATE,
    GATE_FROM_POOL,
    GATE_FROM_POOL_BACKWARD,
    GATE_FROM_PROJECTION,
    RESCALED_PROJECTION,
)

flops.register({op: row.flops for op, row in OPERATORS.items()})

__all__ = [
    "AFFINE_FROM_PROJECTION",
    "BATCH_NORM_ECA",
    "ECA",
    "ECA_BACKWARD",
    "ECA_FORWARD",
    "GATE",
    "GATE_FROM_POOL",
    "GATE_FROM_POOL_BACKWARD",
    "GATE_FROM_PROJECTION",
    "RESCALED_PROJECTION",
    "autograd",
    "batch_norm",
    "call",
    "flops",
    "implementation",
    "vmap",
]
