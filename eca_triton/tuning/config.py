"""What a kernel launch is free to choose, and what the choice depends on besides the map."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

from .layout import Layout

TiledPass = Literal["pool", "rescale", "moments"]
FlatPass = Literal["affine", "affine_backward"]
Pass = TiledPass | FlatPass
"""One launch of an operator that takes two over its maps, by the name of its kernel."""
TILED: tuple[TiledPass, ...] = get_args(TiledPass)
FLAT: tuple[FlatPass, ...] = get_args(FlatPass)


@dataclass(frozen=True)
class Device:
    """The properties of a GPU that configs depend on.

    Attributes:
        num_sms: streaming multiprocessors (compute units).
        warp_size: threads per warp.
        name: of the product, by which tuned tables know it; "" for a device that has none.
        capability: "major.minor".
        shared_bytes: most shared memory of one program; by default what every GPU has.
    """

    num_sms: int
    warp_size: int
    name: str = ""
    capability: str = ""
    shared_bytes: int = 48 << 10

    @classmethod
    def of(cls, properties: Any) -> Device:
        """From what torch.cuda.get_device_properties returns."""
        shared = properties.shared_memory_per_block
        return cls(
            num_sms=properties.multi_processor_count,
            warp_size=properties.warp_size,
            name=properties.name,
            capability=f"{properties.major}.{properties.minor}",
            shared_bytes=getattr(properties, "shared_memory_per_block_optin", shared),
        )


@dataclass(frozen=True)
class Config:
    """How a kernel over the map cuts its work. Blocks and splits are powers of two.

    Attributes:
        block_c: channels of one program.
        block_hw: spatial elements of one step of its loop.
        splits: ranges into which the spatial elements of an image are cut, one program each.
        num_warps: warps of one program.
        vec_c: channels that one vector access may cover; 1 unless channels are contiguous.
        vec_hw: spatial elements that one vector access may cover; 1 unless these are contiguous.
        window: elements of an aligned vector if rows are read by aligned windows, else 1.
    """

    block_c: int
    block_hw: int
    splits: int
    num_warps: int
    vec_c: int = 1
    vec_hw: int = 1
    window: int = 1

    def tiles(self, layout: Layout) -> int:
        """Programs of one image."""
        return self.splits * -(-layout.c // self.block_c)


@dataclass(frozen=True)
class FlatConfig:
    """How a kernel that walks an image as it lies in memory cuts its work.

    Attributes:
        block: elements of one program, a power of two.
        num_warps: warps of one program.
    """

    block: int
    num_warps: int = 4

    def tiles(self, layout: Layout) -> int:
        """Programs of one image."""
        return -(-layout.c * layout.hw // self.block)
