"""Host side of the training kernels for any dense map: every direction passes over the maps twice."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..kernels.affine import affine_backward_kernel, affine_kernel
from ..kernels.moments import moments_kernel
from ..kernels.terms import backward_terms_kernel, forward_terms_kernel
from ..reference.arguments import Vectors
from ..tuning.config import Config, FlatConfig, Pass, constants
from ..tuning.families.passes import gate_block, near_gate_block
from ..tuning.layout import Layout
from ..tuning.problem import PassProblem
from . import devices, gates
from .call import BackwardCall, EcaCall, band, vectors
from .replay import run, scratch


def forward(call: EcaCall) -> None:
    """Fills call.out, and call.pooled and call.mask where there are any; three launches.

    The call's pre_activation is "identity", its maps are all contiguous or all channels-last.
    """
    rescale(call, gates.pool(call.a.x, None, 0.0, "identity"), 1.0 / call.layout.hw, call.pooled)


def rescale(call: EcaCall, partial: Tensor, inv_hw: float, pooled: Tensor | None) -> None:
    """Do what follows pooling in `forward`; partial: fp32 [N, splits, C], sums over 1 / inv_hw elements."""
    layout = call.layout
    factor, offset = forward_terms(call, partial, inv_hw, pooled)
    config = _chosen(call, "affine")
    run(
        affine_kernel, (layout.n * config.tiles(layout),),
        call.a.x, _center(call.a.bn), factor, offset, call.a.residual, call.out, call.mask,
        layout.c, layout.hw, layout.c * layout.hw, ACTIVATION=call.a.activation, **_flat(layout, config),
    )  # fmt: skip


def backward(call: BackwardCall) -> None:
    """Fills the outputs of the call; its maps are all contiguous or all channels-last.

    Four launches at most; where nobody needs more than d_residual, the last alone.
    """
    a = call.a
    factor = offset = gamma = None
    if call.d_x is not None or (a.mask is None and a.activation != "identity"):
        factor, offset = forward_terms(call, a.pooled[:, None, :], 1.0, None)
    if call.d_gate is not None:
        if call.d_x is not None:
            gamma = scratch(tuple(a.pooled.shape), torch.float32, a.x.device)
        moments(call, factor, offset, gamma)
        if call.d_x is None:
            return
    gradients_of_maps(call, factor, offset, None, gamma)


def moments(call: BackwardCall, factor: Tensor | None, offset: Tensor | None, gamma: Tensor | None) -> None:
    """The first pass of `backward`: fills gamma of `backward_terms_kernel`, and all of the call but d_x."""
    a, x, layout = call.a, call.a.x, call.layout
    n, c, hw = layout.n, layout.c, layout.hw
    config = _chosen(call, "moments")
    p_sum, p_dot_x = (scratch((n, config.splits, c), torch.float32, x.device) for _ in range(2))
    run(
        moments_kernel, (n * config.tiles(layout),),
        a.grad, x, a.residual, a.mask, _center(a.bn), factor, offset, call.d_residual,
        p_sum, p_dot_x, c, hw, *((hw, 1) if layout.contiguous else (1, c)),
        ACTIVATION=a.activation, BITS_ALONG=_bits_along(layout, config), **constants(config, {"window"}),
    )  # fmt: skip
    flags = band(a)
    block = near_gate_block(flags["BLOCK_K"])
    run(
        backward_terms_kernel, (-(-n * c // block),),
        p_sum, p_dot_x, a.pooled, a.weight, a.bias, *vectors(a.bn), a.bn_eps, a.gain,
        call.p_sum, call.p_dot_x, call.d_gate, gamma, n * c, c, 1.0 / hw, a.weight.stride(-1),
        SPLITS=config.splits, BLOCK=block, **flags,
    )  # fmt: skip


def gradients_of_maps(
    call: BackwardCall,
    factor: Tensor | None,
    offset: Tensor | None,
    beta: Tensor | None,
    gamma: Tensor | None,
) -> None:
    """The last pass of `backward`, with the coefficients of `affine_backward_kernel`."""
    a, layout = call.a, call.layout
    dy, d_residual, mask, residual, activation = a.grad, call.d_residual, a.mask, a.residual, a.activation
    if call.d_gate is not None and d_residual is not None:  # p, which need not be found a second time
        dy, d_residual, mask, residual, activation = d_residual, None, None, None, "identity"
    config = _chosen(call, "affine_backward")
    run(
        affine_backward_kernel, (layout.n * config.tiles(layout),),
        dy, a.x, residual, mask, _center(a.bn), factor, offset, beta, gamma, call.d_x, d_residual,
        layout.c, layout.hw, layout.c * layout.hw, ACTIVATION=activation, **_flat(layout, config),
    )  # fmt: skip


def forward_terms(
    call: EcaCall | BackwardCall, partial: Tensor, inv_hw: float, pooled: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """factor and offset as of `forward_terms_kernel`; partial [N, splits, C] fp32, contiguous."""
    a, device = call.a, partial.device
    n, splits, c = partial.shape
    factor = scratch((n, c), torch.float32, device)
    offset = None if a.bn is None or a.bn_bias is None else scratch((n, c), torch.float32, device)
    flags = band(a)
    block = gate_block(splits, flags["BLOCK_K"])
    run(
        forward_terms_kernel, (-(-n * c // block),),
        partial, a.weight, a.bias, *vectors(a.bn), a.bn_eps, a.gain, pooled, factor, offset,
        n * c, c, inv_hw, a.weight.stride(-1),
        SPLITS=splits, BLOCK=block, **flags,
    )  # fmt: skip
    return factor, offset


def _center(bn: Vectors | None) -> Tensor | None:
    return vectors(bn)[0]


def _bits_along(layout: Layout, config: Config) -> str:
    if layout.contiguous:
        return "hw" if layout.hw % 8 == config.block_hw % 8 == 0 else ""
    return "c" if layout.c % 8 == config.block_c % 8 == 0 else ""


def _chosen(call: EcaCall | BackwardCall, step: Pass) -> Any:
    """Config of one of the launches."""
    problem = PassProblem.of(call.problem(devices.device_of(call.a.x.device)), step)
    return devices.chosen(call.a.x, problem).config


def _flat(layout: Layout, config: FlatConfig) -> dict[str, Any]:
    """Return the constants by which the affine kernels walk an image."""
    run_length = layout.hw if layout.contiguous else layout.c
    vec = next(vec for vec in (8, 4, 2, 1) if run_length % vec == 0)
    return {"CHANNELS_LAST": not layout.contiguous, "VEC": vec, **constants(config)}
