"""Host side of the lagged kernels: one launch in either direction, with scratch of its own.

So launches on several streams and replays of a graph do not meet.
"""

from __future__ import annotations

import torch

from ..activations import ACTIVATIONS
from ..kernels.lagged import lagged_kernel
from ..kernels.lagged_backward import lagged_backward_kernel
from ..tuning.config import constants
from ..tuning.families.lagged import LaggedConfig
from ..tuning.layout import common_layout
from . import devices
from .call import BackwardCall, EcaCall, vectors
from .replay import run, scratch

OTHERS = {"lag", "max_registers"}
"""Fields of the config that are no constants of the kernel."""


def forward(call: EcaCall, config: LaggedConfig) -> None:
    """Fills all outputs."""
    x, a = call.a.x, call.a
    layout = common_layout(x.shape, x.stride())
    n, c, hw = layout.n, layout.c, layout.hw
    partial = scratch((n, -(-hw // config.block_hw), c), torch.float32, x.device)
    mean = scratch((n, c), torch.float32, x.device) if call.pooled is None else call.pooled
    gates = scratch((n, c), torch.float32, x.device)
    arrived = scratch((n + 1,), torch.int32, x.device, zeroed=True)
    stride_c, stride_hw = (1, c) if config.vec_c > 1 else (hw, 1)
    # Exponentials and the error function take more registers.
    both = (ACTIVATIONS[name] for name in (a.pre_activation, a.activation))
    registers = 255 if any(each.transcendental for each in both) else config.max_registers
    run(
        lagged_kernel, (n * config.tiles(layout) + config.lag,),
        x, a.weight, a.bias, a.residual, call.out, call.mask, partial, mean, gates, arrived,
        *vectors(a.bn), a.bn_eps, a.gain, 1.0 / hw,
        n, c, hw, config.lag, stride_c, stride_hw, a.weight.stride(-1),
        **call.flags, **constants(config, OTHERS),
        **devices.at_most(registers, config.num_warps, devices.device_of(x.device)),
    )  # fmt: skip


def backward(call: BackwardCall, config: LaggedConfig) -> None:
    """Fills all outputs."""
    x, a = call.a.x, call.a
    layout = common_layout(x.shape, x.stride())
    n, c, hw = layout.n, layout.c, layout.hw
    sums = 1 if a.bn is None and call.p_sum is None else 2
    partial = scratch((n, sums, -(-hw // config.block_hw), c), torch.float32, x.device)
    dz = scratch((n, c), torch.float32, x.device)
    t = scratch((n, c), torch.float32, x.device)
    arrived = scratch((n + 1,), torch.int32, x.device, zeroed=True)
    stride_c, stride_hw = (1, c) if config.vec_c > 1 else (hw, 1)
    run(
        lagged_backward_kernel, (n * config.tiles(layout) + config.lag,),
        a.grad, x, a.weight, a.bias, a.residual, a.pooled, a.mask,
        call.d_x, call.d_residual, call.d_gate, call.p_sum, call.p_dot_x, partial, dz, t, arrived,
        *vectors(a.bn), a.bn_eps, a.gain, 1.0 / hw,
        n, c, hw, config.lag, stride_c, stride_hw, a.weight.stride(-1),
        **call.flags, **constants(config, OTHERS),
        **devices.at_most(config.max_registers, config.num_warps, devices.device_of(x.device)),
    )  # fmt: skip
