"""A training call of the kernels, forward and backward, and what autograd of plain torch makes of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from kernel_cases import Site
from torch import Tensor

from eca_triton.launch.call import BackwardCall


class Gradients(NamedTuple):
    """Those of a `BackwardCall`."""

    d_x: Tensor
    d_residual: Tensor | None
    d_gate: Tensor
    p_sum: Tensor | None
    p_dot_x: Tensor | None


@dataclass(frozen=True)
class Backward:
    """The backward of a site whose pre_activation is the identity.

    Attributes:
        site: The forward.
        dy: Gradient of its output.
        bits: Whether the forward left bits of its activation.
        moments: Whether p_sum and p_dot_x are wanted.
        store_p: Whether d_residual is wanted.
    """

    site: Site
    dy: Tensor
    bits: bool = False
    moments: bool = False
    store_p: bool = False

    def to(self, dtype: torch.dtype) -> Backward:
        """The same with every tensor in another dtype."""
        return replace(self, site=self.site.to(dtype), dy=self.dy.to(dtype))

    def call(self) -> BackwardCall:
        """What the launchers take: saved by plain torch in fp32, outputs full of NaN."""
        site, recomputed = self.site, self.site.activation != "identity" and not self.bits
        n, c = site.x.shape[:2]
        channels = site.x.new_full((3, n, c), math.nan, dtype=torch.float32)
        return BackwardCall(
            self.dy, site.x, site.weight, site.bias, site.bn, site.bn_eps, site.circular, site.gate,
            site.gain, site.residual if recomputed else None, site.activation,
            pooled=site.x.float().flatten(2).mean(2),
            mask=bits_by_torch(site) if self.bits else None,
            d_x=torch.empty_like(site.x).fill_(math.nan),
            d_residual=torch.empty_like(self.dy).fill_(math.nan) if self.store_p else None,
            d_gate=channels[0],
            p_sum=channels[1] if self.moments else None,
            p_dot_x=channels[2] if self.moments else None,
        )  # fmt: skip

    def by_kernel(self, function: Callable[..., None], config: object) -> Gradients:
        """Through a launcher."""
        call = self.call()
        function(call, config)
        return Gradients(call.d_x, call.d_residual, call.d_gate, call.p_sum, call.p_dot_x)

    def by_torch(self) -> Gradients:
        """By autograd, in the dtype of the site."""
        site = self.site
        residual = torch.zeros_like(site.x) if site.residual is None else site.residual
        x, residual = (tensor.detach().requires_grad_() for tensor in (site.x, residual))
        gates, out = replace(site, x=x, residual=residual).by_torch()
        d_x, p, d_gate = torch.autograd.grad(out, (x, residual, gates), self.dy)
        centred = site.x
        if site.bn is not None:
            centred = centred - site.bn[0].reshape(-1, *(1 for _ in site.x.shape[2:]))
        return Gradients(
            d_x,
            p if self.store_p else None,
            d_gate,
            p.flatten(2).sum(2) if self.moments else None,
            (p * centred).flatten(2).sum(2) if self.moments else None,
        )


def bits_by_torch(site: Site) -> Tensor:
    """Of relu or relu6: uint8 [N, C * HW / 8], a bit per element in the order of memory."""
    u = replace(site, activation="identity").to(torch.float64).by_torch()[1]
    stops = u <= 0 if site.activation == "relu" else (u <= 0) | (u >= 6)
    passes = ~stops if site.x.is_contiguous() else ~stops.transpose(1, -1)  # as `LAYOUTS` made it
    bits = passes.reshape(len(passes), -1, 8).int() << torch.arange(8)
    return bits.sum(2).to(torch.uint8)
