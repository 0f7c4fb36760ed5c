"""Bytes of a training step on an H200 that is not there: forward and backward, in units of S.

S: the bytes of the map. The convolution in front is not counted: 1.25 S forward, 1.5 S backward.
"""

from __future__ import annotations

import deviceless_models
import pytest
import timm
import torch
from harness import OLDEST
from torch import nn

from eca_triton.compile.compat import packs_bits
from eca_triton.deviceless import Comparison, Lowering, compare

# Of the networks, for CI's time.
NEWEST_ONLY = pytest.mark.skipif(OLDEST, reason="held on the newest torch")
LAYOUT = pytest.mark.parametrize("channels_last", [True, False], ids=["channels_last", "contiguous"])
SIDES = {56: 256, 28: 512, 14: 1024, 7: 2048}  # and channels


def trained(model: nn.Module, side: int = 56, channels_last: bool = True) -> tuple[Comparison, int]:
    """A tail with gradients for everything, and S."""
    channels = SIDES[side]
    x, residual = (
        torch.empty(128, c, side, side, device="meta", requires_grad=True) for c in (channels // 4, channels)
    )
    result = compare(model, (x, residual), dtype=torch.bfloat16, training=True, channels_last=channels_last)
    return result, residual.numel() * 2


def directions(lowering: Lowering, s: int) -> tuple[float, float]:
    """Forward and backward in S, without the convolution."""
    return lowering.forward.bytes_moved / s - 1.25, lowering.backward.bytes_moved / s - 1.5


@pytest.mark.parametrize("side", [56, 14])
def test_batch_norm_and_attention_share_their_passes_over_the_map(side: int) -> None:
    """15 S become 10.2: bits tell backward where ReLU was open, or, before torch 2.13, bools: 11.1.

    Vectors per image and channel are the rest: 0.2 S at 14x14, in fp32.
    """
    with torch.device("meta"):
        model = deviceless_models.Tail(SIDES[side])
    result, s = trained(model, side)
    (record,) = result.records
    assert record.decision.plan == "batch_norm"
    vectors = 0.1 if side == 56 else 0.35
    assert sum(directions(result.stock, s)) == pytest.approx(15.0, abs=0.25)
    assert sum(directions(result.lowered, s)) == pytest.approx(record.decision.traffic_after, abs=vectors)
    assert record.decision.traffic_after == (10.125 if packs_bits() else 11.0)
    assert len(result.lowered.kernels) <= len(result.stock.kernels) - 2


def test_a_contiguous_network_keeps_bools() -> None:
    """Inductor makes it channels-last inside; what packs bits along another axis, it would not fuse."""
    with torch.device("meta"):
        model = deviceless_models.Tail()
    result, s = trained(model, channels_last=False)
    stock, ours = directions(result.stock, s), directions(result.lowered, s)
    copied = 0.5  # the convolution's input
    assert stock == pytest.approx((6.5 + copied, 9.5), abs=0.05)
    assert ours == pytest.approx((4.5 + copied, 6.5), abs=0.05)


@pytest.mark.parametrize(("frozen", "before"), [(False, 10.0), (True, 13.0)], ids=["no norm", "frozen norm"])
def test_without_a_batch_norm_that_trains_every_map_is_read_once(frozen: bool, before: float) -> None:
    with torch.device("meta"):
        model = deviceless_models.Plain(frozen=frozen)
    result, s = trained(model)
    assert [record.decision.plan for record in result.records] == ["block"]
    assert sum(directions(result.stock, s)) == pytest.approx(before, abs=0.1)
    assert directions(result.lowered, s) == pytest.approx((3.06, 4.06), abs=0.02)
    assert [kernel.name for kernel in result.lowered.kernels] == [
        "aten.convolution.default",
        "eca_triton.eca_forward.default",
        "eca_triton.eca_backward.default",
        "aten.convolution_backward.default",
    ]


@LAYOUT
@NEWEST_ONLY
@pytest.mark.slow
def test_a_network_in_training_moves_less(channels_last: bool) -> None:
    """ecaresnet26t, shorter: 5 sites, all but one of them beside a shortcut with a batch norm of its own."""
    images = torch.empty(128, 3, 256, 256, device="meta")
    with torch.device("meta"):
        model = timm.create_model("ecaresnet26t", layers=(2, 1, 1, 1))
    result = compare(model, images, dtype=torch.bfloat16, training=True, channels_last=channels_last)
    assert [record.decision.plan for record in result.records] == ["batch_norm"] * 5
    assert result.lowered.forward.bytes_moved < 0.9 * result.stock.forward.bytes_moved
    assert result.lowered.bytes_moved < 0.93 * result.stock.bytes_moved
    assert len(result.lowered.kernels) < len(result.stock.kernels)


@NEWEST_ONLY
@pytest.mark.slow
def test_ecaresnet50d_under_autocast_moves_a_sixth_less() -> None:
    images = torch.empty(128, 3, 224, 224, device="meta")
    with torch.device("meta"):
        model = timm.create_model("ecaresnet50d")
    result = compare(model, images, autocast=torch.bfloat16, training=True, channels_last=True)
    assert [record.decision.plan for record in result.records] == ["batch_norm"] * 16
    assert result.lowered.bytes_moved < 5 / 6 * result.stock.bytes_moved
    assert len(result.lowered.kernels) <= len(result.stock.kernels) - 32
