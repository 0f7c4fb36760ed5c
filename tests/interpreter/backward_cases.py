"""A training step of the kernels, forward and backward, and what autograd of plain torch makes of it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from kernel_cases import FEW_SMS, NAN, Site, assert_earned
from one_launch import BACKWARD, launch
from torch import Tensor

from eca_triton.launch import training as launch_training
from eca_triton.launch import two_pass as launch_two_pass
from eca_triton.launch.call import BackwardCall
from eca_triton.reference.arguments import BackwardArguments
from eca_triton.tuning.config import Device

Results = dict[str, Tensor]
"""The map "out", the outputs of a `BackwardCall`, and the gradients of the parameters, by name."""
PARAMETERS = ("weight", "bias", "bn_weight", "bn_bias")


@dataclass(frozen=True)
class Step:
    """A site whose pre_activation is the identity, in training.

    Attributes:
        site: The forward.
        dy: Gradient of its output.
        bits: Whether the forward leaves bits of its activation.
        moments: Whether p_sum and p_dot_x are wanted.
        store_p: Whether d_residual is wanted.
    """

    site: Site
    dy: Tensor
    bits: bool = False
    moments: bool = False
    store_p: bool = False

    def to(self, dtype: torch.dtype) -> Step:
        """The same with every tensor in another dtype."""
        return replace(self, site=self.site.to(dtype), dy=self.dy.to(dtype))

    @property
    def parameters(self) -> dict[str, Tensor]:
        """Those that there are."""
        site = self.site
        values = (site.weight, site.bias, *(site.bn[2:] if site.bn and self.moments else (None, None)))
        return {name: p for name, p in zip(PARAMETERS, values, strict=True) if p is not None}

    def call(self, pooled: Tensor | None = None, mask: Tensor | None = None) -> BackwardCall:
        """What the launchers take, with outputs full of NaN; saved by plain torch in fp32 unless given."""
        site, recomputed = self.site, self.site.activation != "identity" and not self.bits
        n, c = site.x.shape[:2]
        channels = torch.full((3, n, c), NAN)
        a = BackwardArguments(
            self.dy, site.x, site.weight, site.bias, *(site.bn or [None] * 4),
            site.residual if recomputed else None,
            site.x.float().flatten(2).mean(2) if pooled is None else pooled,
            bits_by_torch(site) if self.bits and mask is None else mask,
            site.bn_eps, site.circular, site.gate, site.gain, site.activation,
        )  # fmt: skip
        return BackwardCall(
            a,
            d_x=torch.empty_like(site.x).fill_(NAN),
            d_residual=torch.empty_like(self.dy).fill_(NAN) if self.store_p else None,
            d_gate=channels[0],
            p_sum=channels[1] if self.moments else None,
            p_dot_x=channels[2] if self.moments else None,
        )  # fmt: skip

    def forward(self, kernel: str, device: Device = FEW_SMS) -> tuple[Tensor, Tensor, Tensor | None]:
        """Map, pooled and mask from the forward kernel, which start as something else."""
        x = self.site.x
        pooled = torch.full(x.shape[:2], NAN)
        mask = torch.full((len(x), x[0].numel() // 8), 0b10011010, dtype=torch.uint8) if self.bits else None
        return self.site.map_by_kernel(kernel, device, pooled=pooled, mask=mask), pooled, mask

    def backward(
        self, kernel: str, device: Device = FEW_SMS, in_vain: tuple[int, int] | None = None, **saved: Tensor
    ) -> Results:
        """From the backward kernel and what makes gradients of parameters of it, with what `call` takes."""
        call = self.call(**saved)
        if kernel in BACKWARD:
            launch(kernel, call, device, in_vain)
        else:
            launch_two_pass.backward(call)
        found = {name: torch.full_like(p, NAN) for name, p in self.parameters.items()}
        launch_training.parameter_gradients(call, *map(found.get, PARAMETERS))
        return call.outputs | found

    def by_kernels(self, kernel: str, device: Device = FEW_SMS) -> Results:
        """Forward and backward."""
        out, pooled, mask = self.forward(kernel, device)
        return {"out": out} | self.backward(kernel, device, pooled=pooled, mask=mask)

    def by_torch(self) -> Results:
        """By autograd, in the dtype of the site."""
        site, parameters = self.site, self.parameters
        residual = torch.zeros_like(site.x) if site.residual is None else site.residual
        leaves = {"d_x": site.x, "d_residual": residual} | parameters
        leaves = {name: tensor.detach().requires_grad_() for name, tensor in leaves.items()}
        own = {name: leaves[name] for name in ("weight", "bias") if name in leaves}
        affine = [leaves.get(name) for name in PARAMETERS[2:]]
        bn = (*site.bn[:2], *affine) if site.bn and self.moments else site.bn
        site = replace(site, x=leaves["d_x"], residual=leaves["d_residual"], bn=bn, **own)
        gates, out = site.by_torch()
        inputs = {"d_gate": gates} | leaves
        found = dict(zip(inputs, torch.autograd.grad(out, list(inputs.values()), self.dy), strict=True))
        p, x = found["d_residual"], self.site.x
        if self.moments:
            centred = x if site.bn is None else x - site.bn[0].reshape(-1, *(1 for _ in x.shape[2:]))
            found |= {"p_sum": p.flatten(2).sum(2), "p_dot_x": (p * centred).flatten(2).sum(2)}
        return {"out": out.detach()} | found

    def assert_earned(self, got: Results, ulps: int = 1, native: torch.dtype | None = None) -> None:
        """All of it is as exact as autograd, in the site's dtype or in another one.

        ulps: Of what is no map: sums of few terms, in which eager's errors may have cancelled by luck.
        """
        plain = self.by_torch() if native is None else self.to(native).by_torch()
        exact = self.to(torch.float64).by_torch()
        for name, value in got.items():
            assert_earned(
                value, plain[name], exact[name], ulps=1 if value.shape == self.site.x.shape else ulps
            )


def bits_by_torch(site: Site) -> Tensor:
    """Of relu or relu6: uint8 [N, C * HW / 8], a bit per element in the order of memory."""
    u = replace(site, activation="identity").to(torch.float64).by_torch()[1]
    stops = u <= 0 if site.activation == "relu" else (u <= 0) | (u >= 6)
    passes = ~stops if site.x.is_contiguous() else ~stops.transpose(1, -1)  # as `LAYOUTS` made it
    bits = passes.reshape(len(passes), -1, 8).int() << torch.arange(8)
    return bits.sum(2).to(torch.uint8)


def differing_bits(mask: Tensor, site: Site) -> int:
    return sum(byte.bit_count() for byte in (mask ^ bits_by_torch(site)).flatten().tolist())
