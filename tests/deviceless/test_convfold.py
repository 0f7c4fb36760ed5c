"""Sites behind 1x1 convolutions in a compiled inference graph, for an H200 that is not there.

Which product Inductor takes under max-autotune is decided by timing, so these lowerings name it: `TRITON` is
its own template, which takes what follows as an epilogue. S is the size of the map; the convolution counts.
"""

from __future__ import annotations

from typing import Any

import deviceless_models
import pytest
import torch
from torch import Tensor, nn

from eca_triton.compile.inductor import lowering_projection
from eca_triton.deviceless import Comparison, compare, lower

ARGUMENTS: dict[str, Any] = {"dtype": torch.bfloat16, "channels_last": True}
TRITON = {"max_autotune_gemm": True, "max_autotune_gemm_backends": "TRITON"}
LIBRARY = {"max_autotune_gemm": True, "max_autotune_gemm_backends": "ATEN,TRITON"}  # the first one stands
SMALL = 0.02  # of S: means, gates, weights


def plans(result: Comparison) -> list[str]:
    return [record.decision.plan for record in result.records]


@pytest.mark.parametrize("batch", [128, 8])
def test_convolution_and_tail_are_one_kernel(batch: int) -> None:
    """A quarter of S for the mean, which nothing here can pool on its way, a quarter and 2 S for the rest."""
    model, inputs, s = deviceless_models.tail(batch=batch)
    result = compare(model, inputs, **ARGUMENTS, options=TRITON)
    assert plans(result) == ["convfold"]
    assert result.lowered.bytes_moved / s == pytest.approx(2.5, abs=SMALL)
    assert result.stock.bytes_moved > 2 * result.lowered.bytes_moved
    large = [kernel for kernel in result.lowered.kernels if kernel.bytes_moved > s]
    assert [kernel.kind for kernel in large] == ["triton"]
    (record,) = result.records
    convolution = 1.25
    assert result.lowered.bytes_moved / s - convolution == pytest.approx(
        record.decision.traffic_after, abs=SMALL
    )


@pytest.mark.parametrize("stage", [(256, 56), (512, 28)], ids=["56x56", "28x28"])
def test_where_memory_bounds_the_convolution_a_product_of_ours_is_that_kernel(stage: tuple[int, int]) -> None:
    channels, side = stage
    model, inputs, s = deviceless_models.tail(128, channels, side)
    result = compare(model, inputs, **ARGUMENTS)
    assert plans(result) == ["convblock"]
    assert result.lowered.bytes_moved / s == pytest.approx(2.5, abs=SMALL)
    assert result.stock.bytes_moved / s == pytest.approx(6.25, abs=SMALL)
    large = [kernel for kernel in result.lowered.kernels if kernel.bytes_moved > s]
    assert [kernel.kind for kernel in large] == ["triton"]
    (record,) = result.records
    assert result.lowered.bytes_moved / s - 1.25 == pytest.approx(record.decision.traffic_after, abs=SMALL)
    assert result.lowered.flops == pytest.approx(result.stock.flops, rel=0.01)


@pytest.mark.parametrize(
    ("channels", "side", "arguments"),
    [(1024, 14, {}), (2048, 7, {}), (256, 56, {"dtype": torch.float32}), (256, 56, {"options": LIBRARY})],
    ids=["14x14", "7x7", "float32", "tuned"],
)
def test_elsewhere_the_convolution_is_the_librarys(
    channels: int, side: int, arguments: dict[str, Any]
) -> None:
    model, inputs, _ = deviceless_models.tail(128, channels, side)
    result = lower(model, inputs, **ARGUMENTS | arguments, backend="eca_triton")
    assert any("convolution" in kernel.name or "mm" in kernel.name for kernel in result.kernels)
    assert not any("rescaled_projection" in kernel.name for kernel in result.kernels)


def test_a_layout_or_a_release_without_the_kernel_costs_a_pass_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, inputs, s = deviceless_models.tail()
    gated = pytest.approx(4.25 + 0.25, abs=SMALL)  # the convolution's result is written and read
    contiguous = lower(model, inputs, **ARGUMENTS | {"channels_last": False}, backend="eca_triton")
    assert contiguous.bytes_moved / s == gated
    monkeypatch.setattr(lowering_projection, "template", lambda _: 1 / 0)
    assert lower(model, inputs, **ARGUMENTS, backend="eca_triton").bytes_moved / s == gated
    with pytest.raises(Exception, match=r"ECA199 .*ZeroDivisionError"):  # unless an error was asked for
        lower(model, inputs, **ARGUMENTS, backend="eca_triton", options={"eca.strict": True})


def test_a_library_product_leaves_what_block_would_cost() -> None:
    model, inputs, s = deviceless_models.tail()
    result = lower(model, inputs, **ARGUMENTS, backend="eca_triton", options=LIBRARY)
    assert result.bytes_moved / s == pytest.approx(4.25 + 0.25, abs=SMALL)  # and the mean


class Last(deviceless_models.Tail):
    """The end of a network, or a 1x1 convolution with a bias."""

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return super().forward(x, residual).mean((2, 3))


class Biased(deviceless_models.Tail):
    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.conv = nn.Conv2d(channels // 4, channels, 1)
        self.bn = nn.Identity()


@pytest.mark.parametrize(
    ("kind", "stored"),
    [(Last, 0), (Biased, 1), (deviceless_models.Tail, 1)],
    ids=["last", "biased", "pruned"],
)
def test_where_block_has_no_kernel_the_convolution_stays_and_its_result_is_read_once(
    kind: type[nn.Module], stored: int
) -> None:
    """The result of `Last` is only pooled; the pruned network's channels come in no vectors of eight."""
    channels = 1012 if kind is deviceless_models.Tail else 1024
    with torch.device("meta"):
        inputs = torch.empty(128, channels // 4, 14, 14), torch.empty(128, channels, 14, 14)
        model = kind(channels)
    result = compare(model, inputs, **ARGUMENTS)
    s = inputs[1].numel() * 2
    weights = 2 * 2 * channels * channels // 4  # read by the convolution and for the gate
    assert plans(result) == ["convfold"]
    assert result.lowered.bytes_moved - weights == pytest.approx((1.25 + 0.25 + 2 + stored) * s, rel=0.02)
    assert result.lowered.bytes_moved < result.stock.bytes_moved - 0.7 * s


def test_an_expanded_input_is_not_read_for_its_mean() -> None:
    """MobileNetV2 projects six times the channels of the map: reading those costs more than the map."""

    class Inverted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = nn.Conv2d(384, 64, 1, bias=False), nn.BatchNorm2d(64)
            self.eca = deviceless_models.Eca(3)

        def forward(self, x: Tensor) -> Tensor:
            return self.eca(self.bn(self.conv(x)))

    with torch.device("meta"):
        result = compare(Inverted(), (torch.empty(128, 384, 14, 14),), **ARGUMENTS, options=TRITON)
    assert plans(result) == ["block"]
    assert result.lowered.bytes_moved <= result.stock.bytes_moved


class Stage(nn.Module):
    """Two bottlenecks, the first with a shortcut that is convolved and normalised too."""

    def __init__(self, attention: bool) -> None:
        super().__init__()
        self.stem = nn.Conv2d(128, 256, 3, padding=1)
        self.blocks = nn.Sequential(Block(256, 512, attention), Block(512, 512, attention))
        self.head = nn.Conv2d(512, 128, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)))


class Block(nn.Module):
    def __init__(self, inputs: int, channels: int, attention: bool) -> None:
        super().__init__()
        reduced = channels // 4
        self.reduce = nn.Sequential(nn.Conv2d(inputs, reduced, 1, bias=False), nn.BatchNorm2d(reduced))
        self.mix = nn.Sequential(nn.Conv2d(reduced, reduced, 3, 1, 1, bias=False), nn.BatchNorm2d(reduced))
        self.expand = nn.Sequential(nn.Conv2d(reduced, channels, 1, bias=False), nn.BatchNorm2d(channels))
        self.eca = deviceless_models.Eca() if attention else nn.Identity()
        self.shortcut = nn.Sequential(nn.Conv2d(inputs, channels, 1, bias=False), nn.BatchNorm2d(channels))
        if inputs == channels:
            self.shortcut = nn.Sequential()

    def forward(self, x: Tensor) -> Tensor:
        y = self.mix(self.reduce(x).relu()).relu()
        y = self.eca(self.expand(y))
        y += self.shortcut(x)
        return y.relu_()


def stage(attention: bool, **arguments: Any) -> int:
    with torch.device("meta"):
        model, x = Stage(attention), torch.empty(128, 128, 28, 28)
    return lower(model, x, **ARGUMENTS, **arguments).bytes_moved


def test_a_stage_moves_less_than_without_attention() -> None:
    """The mean rides on the kernel that makes the input; the first block's sum is stored once, not twice."""
    plain = stage(False)
    ours = stage(True, backend="eca_triton", options=TRITON)
    assert ours < 1.01 * stage(False, options=TRITON)
    assert ours < 0.78 * plain
    assert stage(True, backend="eca_triton") < 0.8 * plain


@pytest.mark.slow
def test_ecaresnet50d_moves_a_quarter_less_than_resnet50d() -> None:
    timm = pytest.importorskip("timm")
    images = torch.empty(128, 3, 224, 224, device="meta")
    with torch.device("meta"):
        attentive, plain = timm.create_model("ecaresnet50d"), timm.create_model("resnet50d")
    ours = lower(attentive, images, **ARGUMENTS, backend="eca_triton", options=TRITON)
    assert ours.bytes_moved < 0.75 * lower(plain, images, **ARGUMENTS).bytes_moved
