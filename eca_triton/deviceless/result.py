"""What a lowering is: kernels, the buffers that they move, and their sums."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

if TYPE_CHECKING:
    from ..compile.record import SiteRecord


@dataclass(frozen=True)
class Buffer:
    """A tensor in device memory that a kernel reads or writes.

    Attributes:
        name: Inductor's name, the same wherever the buffer appears in its graph.
        shape: Size of the tensor.
        stride: Strides in elements.
        dtype: Element type.
        bytes_moved: Bytes of it that the kernel reads or writes, each buffer counted once.
    """

    name: str
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    bytes_moved: int


@dataclass(frozen=True)
class Kernel:
    """One launch of a Triton kernel that Inductor generates, or one call of a library or an opaque op.

    Attributes:
        name: Name of the kernel or of the called function.
        kind: "triton" or "extern".
        phase: "forward" or "backward".
        ops: The ATen and custom operations that it performs, sorted.
        reads: Buffers that it reads.
        writes: Buffers that it writes and that outlive it.
        bytes_moved: Sum over `reads` and `writes`, as Inductor counts.
        source: Triton source, if asked for; None for an external call.
        flops: Multiplications and additions of the convolutions and matrix products in it.
    """

    name: str
    kind: Literal["triton", "extern"]
    phase: Literal["forward", "backward"]
    ops: tuple[str, ...]
    reads: tuple[Buffer, ...]
    writes: tuple[Buffer, ...]
    bytes_moved: int
    source: str | None = None
    flops: int = 0


@dataclass(frozen=True)
class Lowering:
    """A model as torch.compile would run it on a GPU.

    Attributes:
        kernels: Launches in order.
        seconds: Time that the lowering took on this machine.
        assumed: What was taken for granted about data that the program asked for.
    """

    kernels: tuple[Kernel, ...]
    seconds: float
    assumed: tuple[str, ...] = ()

    @property
    def bytes_moved(self) -> int:
        """Bytes read and written by all kernels."""
        return sum(kernel.bytes_moved for kernel in self.kernels)

    @property
    def flops(self) -> int:
        """Multiplications and additions of all convolutions and matrix products."""
        return sum(kernel.flops for kernel in self.kernels)

    @property
    def triton_kernels(self) -> int:
        """Number of generated Triton kernels."""
        return sum(kernel.kind == "triton" for kernel in self.kernels)

    @property
    def external_calls(self) -> int:
        """Number of calls of libraries (cuDNN, cuBLAS) and of opaque ops."""
        return sum(kernel.kind == "extern" for kernel in self.kernels)

    @property
    def forward(self) -> Lowering:
        """The forward graph alone."""
        return self._phase("forward")

    @property
    def backward(self) -> Lowering:
        """The backward graph alone, empty for inference."""
        return self._phase("backward")

    def _phase(self, phase: str) -> Lowering:
        kernels: Iterable[Kernel] = (kernel for kernel in self.kernels if kernel.phase == phase)
        return Lowering(tuple(kernels), self.seconds)


@dataclass(frozen=True)
class Comparison:
    """One model lowered by stock Inductor and by the eca_triton backend.

    Attributes:
        stock: torch.compile(model).
        lowered: torch.compile(model, backend="eca_triton").
        records: What the pass decided for each site and candidate.
    """

    stock: Lowering
    lowered: Lowering
    records: list[SiteRecord]
