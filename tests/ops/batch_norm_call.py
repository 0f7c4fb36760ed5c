"""Arguments of `batch_norm_eca`, and the same in torch's own operators."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from eager_block import eager_eca
from torch import Tensor
from training_site import NAMES

N, C = 3, 16
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "relu": {"activation": "relu"},
    "relu, mask in bits": {"activation": "relu", "pack_mask": True},
    "gain, circular, hard sigmoid": {"gain": 0.2, "circular": True, "gate": "hard_sigmoid"},
}


def arguments(
    dtype: torch.dtype = torch.float64, spatial: tuple[int, ...] = (5, 3), absent: tuple[str, ...] = ()
) -> dict[str, Tensor | None]:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    values = {
        "x": 3 * draw(N, C, *spatial) + 1,
        "weight": draw(1, 1, 5),
        "bias": draw(1),
        "bn_weight": draw(C),
        "bn_bias": draw(C),
        "residual": draw(N, C, *spatial),
    }
    return {name: None if name in absent else values[name].requires_grad_() for name in NAMES}


def plain(tensors: dict[str, Tensor | None], **options: Any) -> Tensor:
    """The same in torch's own operators."""
    x, weight, bias, *affine, residual = tensors.values()
    options = {name: value for name, value in options.items() if name != "pack_mask"}
    xhat = F.batch_norm(x, None, None, *affine, True)
    out: Tensor = eager_eca(xhat, weight, bias, residual=residual, **options)
    return out
