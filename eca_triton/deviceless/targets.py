"""The GPUs that `eca_triton.deviceless` can lower for, as their drivers describe them."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

KIB = 1024
MIB = 1024 * KIB


@dataclass(frozen=True)
class Target:
    """One GPU: what Inductor and Triton ask of it, and what a plan weighs.

    Attributes:
        name: Key in `TARGETS`.
        product: Name that the driver reports.
        capability: Compute capability (major, minor).
        sms: Streaming multiprocessors.
        memory_bytes: Device memory.
        l2_bytes: L2 cache.
        shared_bytes_per_sm: Shared memory of one multiprocessor.
        shared_bytes_per_block: Most shared memory that one block may ask for (opt-in limit).
        copy_bytes_per_s: Bandwidth of a large device-to-device copy, reads and writes together.
        warp_size: Threads of one warp.
    """

    name: str
    product: str
    capability: tuple[int, int]
    sms: int
    memory_bytes: int
    l2_bytes: int
    shared_bytes_per_sm: int
    shared_bytes_per_block: int
    copy_bytes_per_s: float
    warp_size: int = 32

    @property
    def arch(self) -> int:
        """Compute capability as the one integer that Triton takes: 90 for (9, 0)."""
        return self.capability[0] * 10 + self.capability[1]

    def properties(self) -> SimpleNamespace:
        """What `torch.cuda.get_device_properties` answers for this GPU."""
        major, minor = self.capability
        return SimpleNamespace(
            name=self.product,
            major=major,
            minor=minor,
            multi_processor_count=self.sms,
            total_memory=self.memory_bytes,
            L2_cache_size=self.l2_bytes,
            warp_size=self.warp_size,
            regs_per_multiprocessor=65536,
            max_threads_per_multi_processor=2048,
            max_threads_per_block=1024,
            shared_memory_per_block=48 * KIB,
            shared_memory_per_block_optin=self.shared_bytes_per_block,
            shared_memory_per_multiprocessor=self.shared_bytes_per_sm,
            is_integrated=0,
            is_multi_gpu_board=0,
            gcnArchName="",
        )


# Sizes are those of the CUDA programming guide (compute capability 8.0 and 9.0) and of the vendor's data
# sheets for the SXM boards. A copy reaches 90 % of the data sheet's bandwidth: 4.3 of 4.8 TB/s on an H200;
# the same share is taken for the other two (of 3.35 and 2.04 TB/s).
TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        Target(
            name="h200",
            product="NVIDIA H200",
            capability=(9, 0),
            sms=132,
            memory_bytes=141 * 10**9,
            l2_bytes=60 * MIB,
            shared_bytes_per_sm=228 * KIB,
            shared_bytes_per_block=227 * KIB,
            copy_bytes_per_s=4.3e12,
        ),
        Target(
            name="h100",
            product="NVIDIA H100 80GB HBM3",
            capability=(9, 0),
            sms=132,
            memory_bytes=80 * 10**9,
            l2_bytes=50 * MIB,
            shared_bytes_per_sm=228 * KIB,
            shared_bytes_per_block=227 * KIB,
            copy_bytes_per_s=3.0e12,
        ),
        Target(
            name="a100",
            product="NVIDIA A100-SXM4-80GB",
            capability=(8, 0),
            sms=108,
            memory_bytes=80 * 10**9,
            l2_bytes=40 * MIB,
            shared_bytes_per_sm=164 * KIB,
            shared_bytes_per_block=163 * KIB,
            copy_bytes_per_s=1.8e12,
        ),
    )
}
