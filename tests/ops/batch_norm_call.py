"""Arguments of `batch_norm_eca`, and the same in torch's own operators."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from eager_block import GATES
from torch import Tensor

N, C = 3, 16
NAMES = ("x", "weight", "bias", "bn_weight", "bn_bias", "residual")


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
    x, weight = tensors["x"], tensors["weight"]
    assert x is not None
    assert weight is not None
    xhat = F.batch_norm(x, None, None, tensors["bn_weight"], tensors["bn_bias"], True)
    y = xhat.flatten(2).mean(2).unsqueeze(1)
    circular, r = options.get("circular", False), weight.shape[-1] // 2
    y = F.pad(y, (r, r), mode="circular") if circular else F.pad(y, (r, r))
    g = GATES[options.get("gate", "sigmoid")](F.conv1d(y, weight, tensors["bias"])).squeeze(1)
    out = xhat * g.reshape(*g.shape, *[1] * (x.ndim - 2)) * options.get("gain", 1.0)
    if tensors["residual"] is not None:
        out = out + tensors["residual"]
    return torch.relu(out) if options.get("activation") == "relu" else out
