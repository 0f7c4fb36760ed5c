"""The contiguous register tile against float64, and where its NaN go."""

from __future__ import annotations

import pytest
import torch
from kernel_cases import Site, assert_earned, batch_norm, covering, label
from torch import Tensor

from eca_triton.launch import forward as launch_forward
from eca_triton.tuning.config import Device
from eca_triton.tuning.families.tile import TileConfig, tile_config
from eca_triton.tuning.layout import common_layout

pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # NaN on purpose

FEW_SMS = Device(num_sms=2, warp_size=32)  # many channels per program
MANY_SMS = Device(num_sms=16, warp_size=32)  # few, so that most neighbours are in the halo


def config_of(site: Site, device: Device) -> TileConfig:
    layout = common_layout(site.x.shape, site.x.stride())
    itemsize = site.x.element_size()
    config = tile_config(layout, itemsize, itemsize, site.weight.numel(), device)
    assert config is not None
    return config


def by_tile(site: Site, device: Device) -> Tensor:
    return site.map_by_kernel(launch_forward.tile, config_of(site, device))


CASES = covering(
    {
        "dtype": [torch.float32, torch.float16],
        "k": [1, 5, 9],
        "c": [8, 19, 40],
        "spatial": [(1, 1), (3,), (7, 7), (14, 14), (3, 4, 5)],
        "front": ["plain", "bn", "bn+silu", "relu"],
        "gate": ["sigmoid", "hard_sigmoid"],
        "padding": ["zero", "circular"],
        "tail": ["plain", "bias", "gain", "residual+relu", "residual+silu"],
        "device": ["few_sms", "many_sms"],
    }
)


@pytest.mark.parametrize("row", CASES, ids=label)
def test_maps_are_as_exact_as_eager(row: dict[str, object]) -> None:
    torch.manual_seed(0)
    dtype, c, front, tail = row["dtype"], row["c"], row["front"], row["tail"]
    x = torch.randn(2, c, *row["spatial"]).to(dtype)
    site = Site(
        x=x,
        weight=torch.randn(1, 1, row["k"]).to(dtype),
        bias=torch.randn(1).to(dtype) if tail == "bias" else None,
        bn=batch_norm(c, dtype) if front.startswith("bn") else None,
        pre_activation=front.rpartition("+")[2] if "lu" in front else "identity",
        circular=row["padding"] == "circular",
        gate=row["gate"],
        gain=2.0 if tail == "gain" else 1.0,
        residual=torch.randn_like(x) if tail.startswith("residual") else None,
        activation=tail.partition("+")[2] or "identity",
    )
    layout = common_layout(x.shape, x.stride())
    device = FEW_SMS if row["device"] == "few_sms" else MANY_SMS
    if tile_config(layout, x.element_size(), x.element_size(), row["k"], device) is None:
        assert row["k"] - 1 > c // 2, "only where the halo outweighs the map"
        return
    native, exact = site.by_torch()[1], site.to(torch.float64).by_torch()[1]
    assert_earned(by_tile(site, device), native, exact)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_tile_kept_in_16_bits_loses_nothing(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    site = Site(torch.randn(1, 20, 56, 56).to(dtype), torch.randn(5).to(dtype))
    assert config_of(site, FEW_SMS).packed
    assert_earned(by_tile(site, FEW_SMS), site.by_torch()[1], site.to(torch.float64).by_torch()[1])


@pytest.mark.parametrize("spatial", [(7, 7), (8, 8)], ids=["windows", "rows"])
@pytest.mark.parametrize("device", [FEW_SMS, MANY_SMS], ids=["few_sms", "many_sms"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_one_bad_element_reaches_the_band_and_no_further(
    value: float, device: Device, spatial: tuple[int, int]
) -> None:
    """Blocks of 8 meet after channel 7, blocks of 32 before channel 32."""
    torch.manual_seed(0)
    for channel, element in ((0, 0), (7, -1), (32, 0), (47, -1)):
        x = torch.randn(2, 48, *spatial).half()
        x.flatten(2)[1, channel, element] = value
        site = Site(x, torch.randn(1, 1, 5).half(), bn=batch_norm(48, torch.float16))
        assert config_of(site, device).windowed == (spatial == (7, 7))
        got, native = by_tile(site, device), site.by_torch()[1]
        assert torch.equal(got.isnan(), native.isnan())
        assert torch.equal(got.isinf(), native.isinf())


def test_circular_bands_wrap_around_the_last_block() -> None:
    x = torch.zeros(1, 70, 7, 7).half()
    x[0, 69, 1, 1] = float("nan")
    out = by_tile(Site(x, torch.ones(5).half(), circular=True), FEW_SMS)
    assert out.isnan().flatten(2).all(2)[0].nonzero().flatten().tolist() == [0, 1, 67, 68, 69]
