"""The two channels-last kernels that read a map once, launched for a site with their own configs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from kernel_cases import Site
from torch import Tensor

from eca_triton.launch import channels_last as launch_channels_last
from eca_triton.tuning.config import Device
from eca_triton.tuning.families.lagged import lagged_config
from eca_triton.tuning.families.tile_channels_last import tile_channels_last_config
from eca_triton.tuning.layout import Layout, common_layout

NAN, INF = float("nan"), float("inf")
FEW_SMS = Device(num_sms=2, warp_size=32)  # large tiles
MANY_SMS = Device(num_sms=132, warp_size=32)  # small ones, many per image


def layout_of(site: Site, out: Tensor) -> Layout:
    maps = [site.x, out] if site.residual is None else [site.x, out, site.residual]
    return common_layout(site.x.shape, *(tensor.stride() for tensor in maps))


def by_tile(site: Site, device: Device, **saved: Tensor) -> Tensor:
    out = torch.empty_like(site.x).fill_(NAN)
    front = site.bn is not None or site.pre_activation != "identity"
    config = tile_channels_last_config(
        layout_of(site, out), site.x.element_size(), site.weight.numel(), front, device
    )
    assert config is not None
    launch_channels_last.tile_channels_last(site.call(out)._replace(**saved), config)
    return out


def by_lag(site: Site, device: Device, in_vain: tuple[int, int] | None = None, **saved: Tensor) -> Tensor:
    """With `in_vain`: what programs rescale is so many images ahead of what they sum, and their patience."""
    out = torch.empty_like(site.x).fill_(NAN)
    layout = layout_of(site, out)
    front = site.bn is not None or site.pre_activation != "identity"
    config = lagged_config(layout, site.x.element_size(), front, device)
    assert config is not None
    if in_vain is not None:
        config = replace(config, lag=-in_vain[0] * config.tiles(layout), patience=in_vain[1])
    launch_channels_last.lagged(site.call(out)._replace(**saved), config)
    return out


KERNELS = {"tile": by_tile, "lagged": by_lag}
Kernel = Callable[[Site, Device], Tensor]

on_both_kernels = pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
on_both_devices = pytest.mark.parametrize("device", [FEW_SMS, MANY_SMS], ids=["few_sms", "many_sms"])
