"""What a kernel launch is free to choose, and what the choice depends on besides the map."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, Literal, Protocol, get_args

from .layout import Layout

TiledPass = Literal["pool", "rescale", "moments"]
FlatPass = Literal["affine", "affine_backward"]
Pass = TiledPass | FlatPass
"""One launch of an operator that takes two over its maps, by the name of its kernel."""
Vendor = Literal["nvidia", "amd"]
TILED: tuple[TiledPass, ...] = get_args(TiledPass)
FLAT: tuple[FlatPass, ...] = get_args(FlatPass)
Kernel = Literal["tile", "tile_channels_last", "lagged", "two_pass", "product"] | Pass
FIXED = {"patience"}  # bounds how long a program waits, and is never reached: nothing to tune


@dataclass(frozen=True)
class Device:
    """The properties of a GPU that configs depend on.

    Attributes:
        num_sms: streaming multiprocessors (compute units).
        warp_size: threads per warp.
        name: of the product, by which tuned tables know it; "" for a device that has none.
        capability: "major.minor".
        shared_bytes: most shared memory of one program; by default what every GPU has.
        l2_bytes: L2 cache; 0 where it is not known.
        vendor: whose compiler Triton calls.
    """

    num_sms: int
    warp_size: int
    name: str = ""
    capability: str = ""
    shared_bytes: int = 48 << 10
    l2_bytes: int = 0
    vendor: Vendor = "nvidia"

    @classmethod
    def of(cls, properties: Any) -> Device:
        """Make the device from what torch.cuda.get_device_properties returns."""
        shared = properties.shared_memory_per_block
        return cls(
            num_sms=properties.multi_processor_count,
            warp_size=properties.warp_size,
            name=properties.name,
            capability=f"{properties.major}.{properties.minor}",
            shared_bytes=getattr(properties, "shared_memory_per_block_optin", shared),
            l2_bytes=getattr(properties, "L2_cache_size", 0),
            # Where torch is built for CUDA, it is the product's name.
            vendor="amd" if getattr(properties, "gcnArchName", "").startswith("gfx") else "nvidia",
        )

    @property
    def served(self) -> bool:
        """Return whether Triton compiles for it: Volta is the oldest of NVIDIA's, as Inductor has it."""
        return self.vendor == "amd" or self._generation >= 7

    def multiplies(self, itemsize: int) -> bool:
        """Return whether Triton has matrix units multiply floats of so many bytes, exactly.

        Ampere's and later ones do with 16 bits; CDNA's with 32, too. Elsewhere the factors of a product are
        in registers of threads, which spill them unless they are few: on RDNA 3 with Triton before 3.8.
        """
        if self.vendor == "nvidia":
            return itemsize == 2 and self._generation >= 8
        return self.warp_size == 64

    @property
    def _generation(self) -> int:
        """A device without a capability is of the newest."""
        return int(self.capability.partition(".")[0] or 99)


@dataclass(frozen=True)
class Config:
    """Cut of a kernel over the map. Blocks and splits are powers of two.

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
    """Cut of a kernel that walks an image as it lies in memory.

    Attributes:
        block: elements of one program, a power of two.
        num_warps: warps of one program.
    """

    block: int
    num_warps: int = 4

    def tiles(self, layout: Layout) -> int:
        """Programs of one image."""
        return -(-layout.c * layout.hw // self.block)


class AnyConfig(Protocol):
    """Cut of a kernel's work: a record of plain numbers."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def tiles(self, layout: Layout) -> int:
        """Programs of one image."""


OPTIONS = {"num_warps", "num_stages"}
"""Fields of configs that are options of Triton's compiler."""


def flags(config: Any) -> tuple[str, ...]:
    """Return the names of the fields, of a config or its class, that are true or false."""
    return tuple(each.name for each in fields(config) if each.type in (bool, "bool"))


def constants(config: Any, without: Collection[str] = ()) -> dict[str, Any]:
    """Return a config as its kernel takes it: constants in capitals, options of the compiler as they are."""
    fields = {name: value for name, value in asdict(config).items() if name not in without}
    return {name if name in OPTIONS else name.upper(): value for name, value in fields.items()}


@dataclass(frozen=True)
class Choice:
    """A kernel and its config.

    Attributes:
        kernel: "tile" and "tile_channels_last" keep a part of the map in registers, "lagged" has it come back
            from L2, "two_pass" reads it twice; "product" makes it of fewer channels; the others are launches
            of two passes.
        config: None for "two_pass", whose launches are problems of their own.
    """

    kernel: Kernel
    config: AnyConfig | None

    def integers(self) -> dict[str, int]:
        """Return what can be tuned of the config as plain integers by name; nothing for "two_pass"."""
        if self.config is None:
            return {}
        return {name: int(value) for name, value in asdict(self.config).items() if name not in FIXED}
