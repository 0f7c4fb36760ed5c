"""timm's 23 networks with ECA, lowered for an H200 that is not there: bytes and kernels never rise.

Here are those that are not the blocks of another one again; ECA_TRITON_FULL_DEPTH=1 lowers them all, which
takes a quarter of an hour, and `python -m benchmarks tax` in every layout, mode and direction.
"""

from __future__ import annotations

import pytest
import torch
from harness import OLDEST, WHOLE

from benchmarks.shared.networks import DEEP, NETWORKS, attention, images, network, stages, without_attention
from eca_triton.deviceless import Comparison, Kernel, compare, lower

timm = pytest.importorskip("timm")

# The oldest torch has one of each family.
FAMILIES = ("ecaresnet26t", "ecaresnext26t_32x4d", "eca_nfnet_l0", "eca_resnet33ts", "eca_vovnet39b")
AGAIN = {*DEEP, "ecaresnet50t", "ecaresnet101d_pruned", "ecaresnext50t_32x4d", "nf_ecaresnet50"}
LOWERED = [name for name in NETWORKS if WHOLE or (name in FAMILIES if OLDEST else name not in AGAIN)]


def both(name: str, batch: int = 128, channels_last: bool = False, training: bool = False) -> Comparison:
    arguments = {"dtype": torch.bfloat16, "channels_last": channels_last, "training": training}
    return compare(network(name, whole=WHOLE), images(name, batch), **arguments)


def one_dimensional_convolutions(kernels: tuple[Kernel, ...]) -> list[Kernel]:
    """Library convolutions with a weight of three dimensions."""
    return [
        kernel
        for kernel in kernels
        if kernel.name.startswith("aten.convolution") and 3 in {len(buffer.shape) for buffer in kernel.writes}
    ]


def test_the_deep_networks_keep_a_stage_of_each_kind() -> None:
    assert set(timm.list_models(["eca_*", "ecares*", "nf_ecares*"])) == NETWORKS.keys()
    for name in DEEP:
        depths = [len(stage) for stage in stages(network(name, whole=WHOLE))]
        assert len(depths) == 4
        assert all(depth <= 3 for depth in depths) != WHOLE


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in LOWERED if name != "ecaresnet50d"])  # which is below
def test_bytes_and_kernels_never_rise(name: str) -> None:
    result = both(name)
    assert [record.lowered for record in result.records] == [True] * len(
        attention(network(name, whole=WHOLE))
    )
    assert result.lowered.bytes_moved <= result.stock.bytes_moved
    assert len(result.lowered.kernels) <= len(result.stock.kernels)
    assert result.lowered.external_calls <= result.stock.external_calls


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 8])
def test_nor_do_they_at_small_batches(batch: int) -> None:
    result = both("ecaresnet26t", batch=batch)
    assert result.lowered.bytes_moved <= result.stock.bytes_moved
    assert len(result.lowered.kernels) <= len(result.stock.kernels)


@pytest.mark.slow
@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
def test_ecaresnet50d_in_inference(channels_last: bool) -> None:
    """It moves less than the network without attention: the maps at 56x56 and 28x28 are never read for it."""
    result = both("ecaresnet50d", channels_last=channels_last)
    stock, ours = result.stock, result.lowered
    plans = [record.decision.plan for record in result.records]
    # Only the mean of the last result is read: it is never stored, and its gate is computed ahead of it.
    assert (len(plans), plans[-1]) == (16, "convfold")
    assert plans[:7] == ["convblock"] * 7
    assert set(plans[7:]) == {"block", "convfold"}
    assert len(one_dimensional_convolutions(stock.kernels)) == 16
    assert one_dimensional_convolutions(ours.kernels) == []

    # Beside them there are the kernels that zero the counters.
    blocks = [kernel for kernel in ours.kernels if "eca_triton.eca.default" in kernel.ops]
    maps = [(kernel.bytes_moved, max(buffer.bytes_moved for buffer in kernel.writes)) for kernel in blocks]
    tails = [(moved, s) for moved, s in maps if s > 2**20]
    assert len(tails) == plans.count("block")
    assert all(moved <= 3.05 * s for moved, s in tails)
    names = [kernel.name for kernel in ours.kernels]
    assert names.count("eca_triton.gate_from_projection.default") == plans.count("convfold")
    assert names.count("eca_triton.affine_from_projection.default") == plans.count("convblock")
    assert len(ours.kernels) <= len(stock.kernels) - 20

    twin = without_attention(network("ecaresnet50d"))
    plain = lower(twin, images("ecaresnet50d", 128), dtype=torch.bfloat16, channels_last=channels_last)
    assert stock.bytes_moved > 1.21 * plain.bytes_moved
    assert ours.bytes_moved < 0.85 * plain.bytes_moved
