"""The operators `torch.ops.eca_triton.*`: importing this package registers them. Needs torch only."""

from . import autograd, flops, implementation, vmap
from .autograd import call
from .schema import ECA, GATE, GATE_FROM_POOL, GATE_FROM_POOL_BACKWARD

__all__ = [
    "ECA",
    "GATE",
    "GATE_FROM_POOL",
    "GATE_FROM_POOL_BACKWARD",
    "autograd",
    "call",
    "flops",
    "implementation",
    "vmap",
]
