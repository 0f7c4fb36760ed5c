"""The operators `torch.ops.eca_triton.*`: importing this package registers them. Needs torch only."""

from . import autograd, flops, implementation, vmap
from .autograd import call
from .schema import ECA, GATE, GATE_FROM_POOL, GATE_FROM_POOL_BACKWARD
from .schema_training import ECA_BACKWARD, ECA_FORWARD

__all__ = [
    "ECA",
    "ECA_BACKWARD",
    "ECA_FORWARD",
    "GATE",
    "GATE_FROM_POOL",
    "GATE_FROM_POOL_BACKWARD",
    "autograd",
    "call",
    "flops",
    "implementation",
    "vmap",
]
