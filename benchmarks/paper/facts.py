"""The arithmetic behind docs/paper.md: where the paper contradicts itself, and by how much."""

from __future__ import annotations

from collections.abc import Sequence

from eca_triton.functional import adaptive_kernel_size
from eca_triton.models.mobilenetv2 import OFFICIAL_K_SIZES as MOBILE_K_SIZES
from eca_triton.models.mobilenetv2 import SETTING
from eca_triton.models.resnet import OFFICIAL_K_SIZES

from .counts import Counts

SITES = ((256, 56, 3), (512, 28, 4), (1024, 14, 6), (2048, 7, 3))
"""Channels, height (and width) and number of ResNet-50's residual units, by stage."""
UNITS = {101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
"""Numbers of residual units of the deeper ones, which have the same channels."""

RELU = "ReLU: the stem's, and one of each unit"
THOP_RESNET50 = {
    "convolutions: multiply-adds": 4_087_136_256,
    "classifier: (2 * 2048 - 1) * 1000": 4_095_000,
    "batch norms: 4 * 11,113,984 elements": 44_455_936,
    RELU: 6_322_176,
    "last pooling: 2048 * (7 * 7 + 1)": 102_400,
}
"""What thop 0.0.23 counts of plain ResNet-50."""

SENET_ERRORS = {
    "ResNet-50": ("24.80", "7.48"),
    "SENet-50": ("23.29", "6.62"),
    "ResNet-101": ("23.17", "6.52"),
    "SENet-101": ("22.38", "6.07"),
    "ResNet-152": ("22.42", "6.34"),
    "SENet-152": ("21.57", "5.73"),
}
"""Top-1 and top-5 errors in percent of the networks that the authors of SENet trained
(https://arxiv.org/abs/1709.01507, table 2)."""
TABLE_3_ACCURACY = {
    "ResNet-50": ("75.20", "92.52"),
    "SENet-50": ("76.71", "93.38"),
    "ResNet-101": ("76.83", "93.48"),
    "SENet-101": ("77.62", "93.93"),
    "ResNet-152": ("77.58", "93.66"),
    "SENet-152": ("78.43", "94.27"),
}
"""Top-1 and top-5 accuracy in percent of the same networks in table 3 of the ECA-Net paper."""


def adaptive(channels: Sequence[int]) -> tuple[int, ...]:
    """Taps by the paper's equation 12."""
    return tuple(map(adaptive_kernel_size, channels))


CHECKPOINT = OFFICIAL_K_SIZES["resnet50"]
TAPS = {
    "official checkpoint": CHECKPOINT,
    "equation 12 of the channels that ECA sees, 256 to 2048": adaptive([each for each, _, _ in SITES]),
    "equation 12 of a unit's inner width, 64 to 512": adaptive([each // 4 for each, _, _ in SITES]),
    "official checkpoints of Mask R-CNN and RetinaNet": (3, 3, 7, 7),
    "default of the official code": (3, 3, 3, 3),
}
"""Taps of ResNet-50 by stage."""

MOBILE_CHANNELS = tuple(channels for _, channels, _, _ in SETTING)
MOBILE_BLOCKS = tuple(blocks for _, _, blocks, _ in SETTING)
MOBILE_TAPS = {
    "1 below 96 channels: the official code, and this project": MOBILE_K_SIZES,
    "1 up to 96 channels: the official code before": tuple(1 if c <= 96 else 3 for c in MOBILE_CHANNELS),
    "equation 12": adaptive(MOBILE_CHANNELS),
}
"""Taps of MobileNetV2 by stage."""


def taps(k_sizes: Sequence[int]) -> int:
    """Parameters of ECA in ResNet-50."""
    return sum(number * k for (_, _, number), k in zip(SITES, k_sizes, strict=True))


def convolved(k_sizes: Sequence[int]) -> int:
    """Multiply-adds of ECA's convolutions in ResNet-50."""
    return sum(number * channels * k for (channels, _, number), k in zip(SITES, k_sizes, strict=True))


def elements() -> int:
    """Count the elements of all maps in ResNet-50 that get attention."""
    return sum(number * channels * side**2 for channels, side, number in SITES)


def linear_excess(depth: int) -> int:
    """Count what thop finds more in SE's (or CBAM's) layers as `nn.Linear` than as convolutions, with r = 16.

    2 * inputs - 1 instead of inputs for each output: 2 * C * C / 16 less the C / 16 + C outputs.
    """
    channels = [each for each, _, _ in SITES]
    return sum(n * (c * c // 8 - c // 16 - c) for n, c in zip(UNITS[depth], channels, strict=True))


def mobile_parameters(k_sizes: Sequence[int]) -> int:
    """Parameters of ECA in MobileNetV2."""
    return sum(blocks * k for blocks, k in zip(MOBILE_BLOCKS, k_sizes, strict=True))


def mobile_convolved(k_sizes: Sequence[int]) -> int:
    """Multiply-adds of ECA's convolutions in MobileNetV2."""
    each = zip(MOBILE_BLOCKS, MOBILE_CHANNELS, k_sizes, strict=True)
    return sum(blocks * channels * k for blocks, channels, k in each)


def mobile_thop(official: Counts, k_sizes: Sequence[int]) -> int:
    """thop's count of ECA-MobileNetV2 with other taps than the official ones."""
    return official.thop + mobile_convolved(k_sizes) - mobile_convolved(MOBILE_K_SIZES)


def mobile_se(reduction: int) -> int:
    """Parameters of SE behind the 17 units of MobileNetV2; C / r is rounded, halves upwards."""
    each = zip(MOBILE_BLOCKS, MOBILE_CHANNELS, strict=True)
    return sum(blocks * 2 * channels * int(channels / reduction + 0.5) for blocks, channels in each)


def most_of_mobile_se(plain: Counts, eca: Counts, parameters: int) -> int:
    """Most that thop counts of MobileNetV2 with an SE of at most so many parameters behind its 17 units.

    It counts a weight of `nn.Linear` twice, and 1 less for each output. Those of the first layer come back as
    elements of ReLU; the C of the second do not. The pooling is that of ECA.
    """
    pooled = eca.thop - plain.thop - mobile_convolved(MOBILE_K_SIZES)
    return plain.thop + pooled + 2 * parameters - mobile_convolved([1] * len(SETTING))
