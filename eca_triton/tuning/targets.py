"""The GPUs that can be planned and lowered for: what their drivers say, and how fast they are."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from .config import Device

KIB = 1024
MIB = 1024 * KIB


@dataclass(frozen=True)
class Target:
    """One GPU: what Inductor and Triton ask of it, and what a plan weighs.

    Attributes:
        name: Key in `TARGETS`.
        device: What configs depend on of it, as its driver tells.
        memory_bytes: Device memory.
        shared_bytes_per_sm: Shared memory of one multiprocessor.
        copy_bytes_per_s: Bandwidth of a large device-to-device copy, reads and writes together.
        l2_read_bytes_per_s: Bandwidth of reads that the L2 cache answers.
        tensor_flops_per_s: Multiplications and additions in fp16 or bf16 of the tensor cores, dense.
        clock_hz: Highest clock of the multiprocessors, each of which issues four warp instructions per tick.
        launch_s: Shortest time from one kernel to the next in a CUDA graph.
    """

    name: str
    device: Device
    memory_bytes: int
    shared_bytes_per_sm: int
    copy_bytes_per_s: float
    l2_read_bytes_per_s: float
    tensor_flops_per_s: float
    clock_hz: float
    launch_s: float = 2.3e-6

    @property
    def capability(self) -> tuple[int, int]:
        """Compute capability, (9, 0)."""
        major, minor = self.device.capability.split(".")
        return int(major), int(minor)

    @property
    def arch(self) -> int:
        """Compute capability as the one integer that Triton takes: 90 for (9, 0)."""
        return self.capability[0] * 10 + self.capability[1]

    def properties(self) -> SimpleNamespace:
        """Return what `torch.cuda.get_device_properties` answers for this GPU."""
        device, (major, minor) = self.device, self.capability
        return SimpleNamespace(
            name=device.name,
            major=major,
            minor=minor,
            multi_processor_count=device.num_sms,
            total_memory=self.memory_bytes,
            L2_cache_size=device.l2_bytes,
            warp_size=device.warp_size,
            regs_per_multiprocessor=65536,
            max_threads_per_multi_processor=2048,
            max_threads_per_block=1024,
            shared_memory_per_block=48 * KIB,
            shared_memory_per_block_optin=device.shared_bytes,
            shared_memory_per_multiprocessor=self.shared_bytes_per_sm,
            is_integrated=0,
            is_multi_gpu_board=0,
            gcnArchName="",
        )


# Sizes are those of the CUDA programming guide (compute capability 8.0 and 9.0) and of the vendor's data
# sheets for the SXM boards. A copy reaches 90 % of the data sheet's bandwidth: 4.3 of 4.8 TB/s on an H200;
# the same share is taken for the other two (of 3.35 and 2.04 TB/s). L2 and launch times are those that
# te42kyfo/gpu-benches publishes for the H200, whose chip the H100 shares; an A100's L2 is taken to be slower
# by its multiprocessors and clock.
TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        Target(
            name="h200",
            device=Device(132, 32, "NVIDIA H200", "9.0", shared_bytes=227 * KIB, l2_bytes=60 * MIB),
            memory_bytes=141 * 10**9,
            shared_bytes_per_sm=228 * KIB,
            copy_bytes_per_s=4.3e12,
            l2_read_bytes_per_s=9.7e12,
            tensor_flops_per_s=989e12,
            clock_hz=1.98e9,
        ),
        Target(
            name="h100",
            device=Device(132, 32, "NVIDIA H100 80GB HBM3", "9.0", shared_bytes=227 * KIB, l2_bytes=50 * MIB),
            memory_bytes=80 * 10**9,
            shared_bytes_per_sm=228 * KIB,
            copy_bytes_per_s=3.0e12,
            l2_read_bytes_per_s=9.7e12,
            tensor_flops_per_s=989e12,
            clock_hz=1.98e9,
        ),
        Target(
            name="a100",
            device=Device(108, 32, "NVIDIA A100-SXM4-80GB", "8.0", shared_bytes=163 * KIB, l2_bytes=40 * MIB),
            memory_bytes=80 * 10**9,
            shared_bytes_per_sm=164 * KIB,
            copy_bytes_per_s=1.8e12,
            l2_read_bytes_per_s=5.7e12,
            tensor_flops_per_s=312e12,
            clock_hz=1.41e9,
        ),
    )
}


def target_like(properties: Any) -> Target:
    """The target that a GPU resembles most, by what `torch.cuda.get_device_properties` says of it.

    One of its own product name, else of its capability's generation, else the newest.
    """
    named = [target for target in TARGETS.values() if target.device.name == properties.name]
    near = [target for target in TARGETS.values() if target.capability[0] == properties.major]
    return (named or near or list(TARGETS.values()))[0]
