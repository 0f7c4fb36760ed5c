"""Host side of a training step: brings the maps in one order, and picks the kernels of a direction."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ..kernels.batch_norm_backward import batch_norm_backward_kernel
from ..reference.arguments import PoolBackwardArguments
from ..tuning.families.lagged import LaggedConfig
from ..tuning.families.passes import batch_norm_backward_blocks
from ..tuning.families.tile import TileBackwardConfig
from ..tuning.families.tile_channels_last import TileChannelsLastConfig
from ..tuning.layout import common_layout
from . import devices, forward, gates, lagged, tile, tile_channels_last, two_pass
from .call import BackwardCall, EcaCall, band, vectors
from .replay import run, scratch

_KERNELS: devices.Kernels = {
    TileBackwardConfig: tile.backward,
    TileChannelsLastConfig: tile_channels_last.backward,
    LaggedConfig: lagged.backward,
}


def eca_forward(call: EcaCall) -> None:
    """Fills all outputs of a call without a pre_activation."""
    with devices.on_device_of(call.a.x):
        dense = arranged(call)
        if not forward.one_launch(dense):
            two_pass.forward(dense)
        if dense.out is not call.out:
            call.out.copy_(dense.out)


def eca_backward(call: BackwardCall) -> None:
    """Fills all outputs of the call."""
    with devices.on_device_of(call.a.x):
        dense = arranged_backward(call)
        # Two passes alone leave out d_x and d_gate where nobody needs them.
        if dense.d_x is None or not one_launch(dense):
            two_pass.backward(dense)
        copy_back(call, dense)


def arranged(call: EcaCall) -> EcaCall:
    """The call for maps in one order, that of the mask: they themselves, copies, or room for the output."""
    x = _dense(call.a.x, call.a.mask_order)
    residual = None if call.a.residual is None else _arranged(call.a.residual, x)
    return replace(call, a=call.a._replace(x=x, residual=residual), out=_room(call.out, x))


def arranged_backward(call: BackwardCall) -> BackwardCall:
    """Arrange a backward call as `arranged` does; `copy_back` fills what room was made for."""
    x = _dense(call.a.x, call.a.mask_order)
    residual = None if call.a.residual is None else _arranged(call.a.residual, x)
    return replace(
        call,
        a=call.a._replace(grad=_arranged(call.a.grad, x), x=x, residual=residual),
        d_x=None if call.d_x is None else _room(call.d_x, x),
        d_residual=None if call.d_residual is None else _room(call.d_residual, x),
    )


def copy_back(call: BackwardCall, dense: BackwardCall) -> None:
    """Fills the call's gradients of maps from those of what `arranged_backward` made of it."""
    for wanted, filled in ((call.d_x, dense.d_x), (call.d_residual, dense.d_residual)):
        if wanted is not None and filled is not None and wanted is not filled:
            wanted.copy_(filled)


def one_launch(call: BackwardCall) -> bool:
    """Fills all outputs from one read of the maps, and says so, if `select` knows a kernel."""
    return devices.launched(call, _KERNELS)


def parameter_gradients(
    call: BackwardCall,
    d_weight: Tensor | None,
    d_bias: Tensor | None,
    d_bn_weight: Tensor | None,
    d_bn_bias: Tensor | None,
    beta: Tensor | None = None,
    gamma: Tensor | None = None,
) -> None:
    """Fills the gradients of the parameters (contiguous, any float dtype) from what `eca_backward` filled.

    beta [C], gamma [N, C]: as of `batch_norm_backward_kernel`, if the statistics are those of x.
    """
    x, a = call.a.x, call.a
    assert call.d_gate is not None, "wanted, as the parameters' gradients are"
    n, c = a.pooled.shape
    if d_weight is None:
        d_weight = scratch((a.weight.numel(),), torch.float32, x.device)
    if d_bias is None:
        d_bias = scratch((1,), torch.float32, x.device)
    d_pooled = scratch((n, c), torch.float32, x.device)
    with devices.on_device_of(x):
        pool = PoolBackwardArguments(call.d_gate, a.pooled, a.weight, a.bias, a.circular, a.gate)
        gates.gate_from_pool_backward(pool, d_pooled, d_weight, d_bias, a.bn, a.bn_eps)
        if d_bn_weight is None and d_bn_bias is None and beta is None:
            return
        flags = band(a)
        block_n, block_c = batch_norm_backward_blocks(n, flags["BLOCK_K"])
        run(
            batch_norm_backward_kernel, (-(-c // block_c),),
            call.p_sum, call.p_dot_x, a.pooled, d_pooled, a.weight, a.bias, *vectors(a.bn),
            a.bn_eps, a.gain, d_bn_weight, d_bn_bias, beta, gamma,
            n, c, n * c / x.numel(), c / x.numel(), a.weight.stride(-1),
            BLOCK_N=block_n, BLOCK_C=block_c, **flags,
        )  # fmt: skip


def _dense(x: Tensor, mask_order: str) -> Tensor:
    """x, or a copy: in the order of the mask's bits, or without a mask contiguous or channels-last."""
    if mask_order == "channels_last":
        return x.movedim(1, -1).contiguous().movedim(-1, 1)
    layout = common_layout(x.shape, x.stride())
    if mask_order == "none" and (layout.contiguous or layout.dense_channels_last):
        return x
    return x.contiguous()


def _arranged(tensor: Tensor, x: Tensor) -> Tensor:
    """The tensor, or a copy, with x's strides."""
    if _share_strides(tensor, x):
        return tensor
    return torch.empty_like(x, dtype=tensor.dtype).copy_(tensor)


def _room(out: Tensor, x: Tensor) -> Tensor:
    """The output, or room for it with x's strides."""
    return out if _share_strides(out, x) else torch.empty_like(x, dtype=out.dtype)


def _share_strides(tensor: Tensor, x: Tensor) -> bool:
    one, other = common_layout(x.shape, x.stride(), tensor.stride()).strides
    return one == other
