"""Efficient Channel Attention in plain torch: the truth for tests, and what runs where no kernel does."""

from .inference import (
    affine_from_projection,
    compute_dtype,
    eca,
    gate,
    gate_from_pool,
    gate_from_pool_backward,
    gate_from_projection,
    normalize,
    pool,
    rescaled_projection,
)

__all__ = [
    "affine_from_projection",
    "compute_dtype",
    "eca",
    "gate",
    "gate_from_pool",
    "gate_from_pool_backward",
    "gate_from_projection",
    "normalize",
    "pool",
    "rescaled_projection",
]
