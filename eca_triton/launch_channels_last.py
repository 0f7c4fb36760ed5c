"""Host side of the kernels that read a channels-last, or a large contiguous, map once."""

from __future__ import annotations

import torch
from torch import Tensor

from .batch_norm import BatchNorm, vectors
from .kernels.lagged import lagged_kernel
from .kernels.tile_channels_last import tile_channels_last_kernel
from .tuning.heuristic import power_of_2
from .tuning.lagged import LaggedConfig
from .tuning.layout import common_layout
from .tuning.tile_channels_last import TileChannelsLastConfig


def tile_channels_last(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    bn: BatchNorm | None,
    bn_eps: float,
    pre_activation: str,
    circular: bool,
    gate: str,
    gain: float,
    residual: Tensor | None,
    activation: str,
    out: Tensor,
    config: TileChannelsLastConfig,
) -> None:
    """`launch.eca` for maps that `tile_channels_last_config` takes, as one launch without scratch."""
    n, c = x.shape[:2]
    hw = x.numel() // (n * c)
    taps = weight.numel()
    tile_channels_last_kernel[(n * -(-c // config.block_c),)](
        x, weight, bias, residual, out, *vectors(bn), bn_eps, gain, 1.0 / hw, c, hw, weight.stride(-1),
        K=taps, CIRCULAR=circular, GATE=gate, PRE_ACTIVATION=pre_activation, ACTIVATION=activation,
        BLOCK_K=power_of_2(taps), BLOCK_C=config.block_c, BLOCK_HW=config.block_hw, STEPS=config.steps,
        BLOCK_HALO=config.block_halo, HALO_STEPS=config.halo_steps, num_warps=config.num_warps,
    )  # fmt: skip


def lagged(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    bn: BatchNorm | None,
    bn_eps: float,
    pre_activation: str,
    circular: bool,
    gate: str,
    gain: float,
    residual: Tensor | None,
    activation: str,
    out: Tensor,
    config: LaggedConfig,
) -> None:
    """`launch.eca` for maps that `lagged_config` takes, as one launch.

    Its scratch belongs to the call, so launches on several streams and replays of a graph do not meet.
    """
    layout = common_layout(x.shape, x.stride())
    n, c, hw = layout.n, layout.c, layout.hw
    taps = weight.numel()
    partial = torch.empty((n, -(-hw // config.block_hw), c), dtype=torch.float32, device=x.device)
    mean = torch.empty((n, c), dtype=torch.float32, device=x.device)
    gates = torch.empty((n, c), dtype=torch.float32, device=x.device)
    arrived = torch.zeros(n + 1, dtype=torch.int32, device=x.device)
    stride_c, stride_hw = (1, c) if config.vec_c > 1 else (hw, 1)
    lagged_kernel[(n * config.tiles(layout) + config.lag,)](
        x, weight, bias, residual, out, partial, mean, gates, arrived, *vectors(bn), bn_eps, gain, 1.0 / hw,
        n, c, hw, config.lag, stride_c, stride_hw, weight.stride(-1),
        K=taps, CIRCULAR=circular, GATE=gate, PRE_ACTIVATION=pre_activation, ACTIVATION=activation,
        BLOCK_K=power_of_2(taps), BLOCK_C=config.block_c, BLOCK_HW=config.block_hw,
        BLOCK_P=config.block_p, BLOCK_G=config.block_g, VEC_C=config.vec_c, VEC_HW=config.vec_hw,
        num_warps=config.num_warps,
    )  # fmt: skip
