"""How long a lowered network should take on a GPU: a roofline per kernel, with an error band.

A kernel takes max(bytes / bandwidth, flops / throughput) plus the time of a launch. Which share of the
target's rates kernels reach is not known without a GPU: `EFFICIENCIES` are three assumptions about it, and
every figure is given under each. Nothing here was measured. Whether the host keeps up with its launches is an
assumption, too: with CUDA graphs (`mode="reduce-overhead"`) it does, and the slowest one has a host without.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch

from ..tuning.targets import Target

if TYPE_CHECKING:
    from ..compile.record import SiteRecord
    from ..deviceless import Kernel, Lowering


class Band(NamedTuple):
    """A figure and how far off it may be."""

    low: float
    likely: float
    high: float

    def over(self, numerator: float) -> Band:
        """The band of `numerator` / figure."""
        return Band(*(numerator / figure if figure else 0.0 for figure in reversed(self)))


@dataclass(frozen=True)
class Efficiency:
    """The share of a target's rates that kernels reach.

    Attributes:
        bandwidth: Of the bandwidth of a large copy.
        tensor: Of the peak throughput in convolutions and matrix products.
        host_s: Seconds that the host takes for a launch; 0 where a CUDA graph launches.
    """

    bandwidth: float
    tensor: float
    host_s: float = 0.0


# From the fastest to the slowest. Inductor's pointwise kernels come close to a copy on large maps, less so
# on small ones; cuDNN and cuBLAS reach a third to three quarters of the peak, by shape. A launch by
# Inductor's wrapper costs the host 10 us: an estimate, between a launch from C++ and one by way of Python.
EFFICIENCIES = (Efficiency(1.0, 0.75), Efficiency(0.9, 0.55), Efficiency(0.75, 0.35, host_s=10e-6))
FASTEST, LIKELY, SLOWEST = EFFICIENCIES
ASSUMPTION = (
    "each kernel takes one launch and the longer of two times: its bytes at "
    f"{SLOWEST.bandwidth:.0%} to {FASTEST.bandwidth:.0%} of copy bandwidth (likely {LIKELY.bandwidth:.0%}), "
    f"its flops at {SLOWEST.tensor:.0%} to {FASTEST.tensor:.0%} of the peak (likely {LIKELY.tensor:.0%}). "
    "These are estimates. They assume that the host keeps up with its launches, as with CUDA graphs "
    f'(mode="reduce-overhead"); the slow end has a host that takes {1e6 * SLOWEST.host_s:.0f} us for each'
)


@dataclass(frozen=True)
class Prediction:
    """One network on one target.

    Attributes:
        bytes_moved: As Inductor counts.
        flops: Of convolutions and matrix products.
        kernels: Launches, external calls included.
        step_us: Microseconds of one step.
    """

    bytes_moved: int
    flops: int
    kernels: int
    step_us: Band

    def images_per_s(self, batch: int) -> Band:
        """Throughput with `batch` images in a step."""
        return self.step_us.over(1e6 * batch)


def predict(lowering: Lowering, target: Target) -> Prediction:
    """Sum over the kernels of a network, under each of the three assumptions."""
    return Prediction(
        bytes_moved=lowering.bytes_moved,
        flops=lowering.flops,
        kernels=len(lowering.kernels),
        step_us=_band(lambda efficiency: _step_us(lowering, target, efficiency)),
    )


def _step_us(lowering: Lowering, target: Target, efficiency: Efficiency) -> float:
    """Microseconds of a step: of its kernels, or of the host that launches them if that is more."""
    kernels = sum(kernel_us(kernel, target, efficiency) for kernel in lowering.kernels)
    return max(kernels, 1e6 * efficiency.host_s * len(lowering.kernels))


def kernel_us(kernel: Kernel, target: Target, efficiency: Efficiency = LIKELY) -> float:
    """Microseconds of one launch."""
    moving = kernel.bytes_moved / (target.copy_bytes_per_s * efficiency.bandwidth)
    computing = kernel.flops / (peak_flops_per_s(kernel, target) * efficiency.tensor)
    return 1e6 * (max(moving, computing) + target.launch_s)


def peak_flops_per_s(kernel: Kernel, target: Target) -> float:
    """Return what the units that torch uses by default for this kernel's dtype can do.

    16-bit types run on tensor cores; convolutions in float32 too, as TF32, at half that rate; other products
    in float32 on the CUDA cores, 128 to a multiprocessor, and in float64 at half of those.
    """
    dtypes = {buffer.dtype for buffer in (*kernel.reads, *kernel.writes)}
    cuda_cores = 2 * 128 * target.device.num_sms * target.clock_hz
    if torch.float64 in dtypes:
        return cuda_cores / 2
    if dtypes & {torch.float16, torch.bfloat16}:
        return target.tensor_flops_per_s
    return target.tensor_flops_per_s / 2 if "convolution" in kernel.name else cuda_cores


def speedup(before: Lowering, after: Lowering, target: Target) -> Band:
    """Return how many times faster the second is: both meet the same assumption, so the band is narrow."""
    ratios = sorted(
        _step_us(before, target, efficiency) / (_step_us(after, target, efficiency) or 1.0)
        for efficiency in EFFICIENCIES
    )
    return Band(*ratios)


def site_us(record: SiteRecord, target: Target) -> tuple[float, float] | None:
    """Microseconds of a site before and after, by the plan's costs; None where nothing was weighed."""
    before, after = record.decision.cost_before, record.decision.cost_after
    if before is None or after is None:
        return None
    return 1e6 * before.time_s(target), 1e6 * after.time_s(target)


def _band(time_us: Callable[[Efficiency], float]) -> Band:
    return Band(*(time_us(efficiency) for efficiency in EFFICIENCIES))
