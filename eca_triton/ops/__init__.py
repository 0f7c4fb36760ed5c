"""The operators `torch.ops.eca_triton.*`: importing this package registers them. Needs torch only."""

from . import autograd, batch_norm, flops, implementation, vmap
from .autograd import call
from .batch_norm import BATCH_NORM_ECA
from .schema import ECA, GATE, GATE_FROM_POOL, GATE_FROM_POOL_BACKWARD

__all__ = [
    "BATCH_NORM_ECA",
    "ECA",
    "GATE",
    "GATE_FROM_POOL",
    "GATE_FROM_POOL_BACKWARD",
    "autograd",
    "batch_norm",
    "call",
    "flops",
    "implementation",
    "vmap",
]
