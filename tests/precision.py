"""A training step of batch norm, ECA, residual and ReLU: its errors, in units of what rounding must cost."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from eager_block import eager_eca
from torch import Tensor

from eca_triton.ops.schema import BATCH_NORM_ECA

NAMES = ("x", "bn_weight", "bn_bias")
EPS = torch.finfo(torch.float32).eps


def by_torch(x: Tensor, bn_weight: Tensor, bn_bias: Tensor, weight: Tensor, residual: Tensor) -> Tensor:
    xhat = F.batch_norm(x, None, None, bn_weight, bn_bias, True)
    out: Tensor = eager_eca(xhat, weight, residual=residual, activation="relu")
    return out


def by_op(x: Tensor, bn_weight: Tensor, bn_bias: Tensor, weight: Tensor, residual: Tensor) -> Tensor:
    out: Tensor = BATCH_NORM_ECA(x, weight, None, bn_weight, bn_bias, residual, activation="relu")[0]
    return out


def gradients(run: Callable[..., Tensor], tensors: list[Tensor], dy: Tensor) -> dict[str, Tensor]:
    leaves = [tensor.clone().requires_grad_() for tensor in tensors]
    return dict(zip(NAMES, torch.autograd.grad(run(*leaves), leaves[:3], dy), strict=True))


def example(shape: tuple[int, ...], seed: int) -> tuple[list[Tensor], Tensor]:
    """The tensors, and a gradient that is 0 where rounding could open or close the ReLU."""
    generator = torch.Generator().manual_seed(seed)
    x, residual, dy = (torch.randn(shape, generator=generator) for _ in range(3))
    scale = torch.rand(shape[1], generator=generator) + 0.5
    shift, weight = (torch.randn(size, generator=generator) for size in (shape[1], (1, 1, 3)))
    tensors = [x + 1, scale, shift, 0.3 * weight, residual]
    nearby = by_torch(*(tensor.double() for tensor in tensors[:4]), residual.double() - 1e-5) > 0
    opened = by_torch(*(tensor.double() for tensor in tensors[:4]), residual.double() + 1e-5) > 0
    return tensors, torch.where(nearby == opened, dy, 0.0)


def rounding(tensors: list[Tensor], dy: Tensor) -> dict[str, Tensor]:
    """What one rounding of each element's share, and one of the sum, make of a channel's gradients: [C]."""
    x, bn_weight, bn_bias, weight, residual = (tensor.double() for tensor in tensors)
    xhat = F.batch_norm(x, None, None, None, None, True).requires_grad_()
    y = xhat * bn_weight[:, None, None] + bn_bias[:, None, None]
    (d_y,) = torch.autograd.grad(eager_eca(y, weight, residual=residual, activation="relu"), y, dy.double())
    space = (0, 2, 3)
    found = {}
    for name, share in (("bn_weight", d_y * xhat), ("bn_bias", d_y)):
        found[name] = EPS * (share.square().sum(space) + share.sum(space).square()).sqrt().detach()
    return found


def error(shape: tuple[int, ...], seeds: int, run: Callable[..., Tensor] = by_op) -> dict[str, float]:
    """The root mean square of the gradients' errors, in units of `rounding`, over channels and seeds."""
    squares: dict[str, list[Tensor]] = {"bn_weight": [], "bn_bias": []}
    for seed in range(seeds):
        tensors, dy = example(shape, seed)
        exact = gradients(by_torch, [tensor.double() for tensor in tensors], dy.double())
        got, unit = gradients(run, tensors, dy), rounding(tensors, dy)
        for name, found in squares.items():
            found.append(((got[name] - exact[name]) / unit[name]).square())
    return {name: float(torch.cat(found).mean().sqrt()) for name, found in squares.items()}
