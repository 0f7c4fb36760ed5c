"""What a tuned config is filed under: problems of one key run fastest with the same config."""

from __future__ import annotations

import re
from dataclasses import dataclass

from .config import FLAT, TILED
from .problem import Problem

# A multiprocessor holds about so much of a map in its registers while kernels run: 64K registers of 4 bytes,
# of which programs keep a quarter for it.
RESIDENT_BYTES = 64 << 10
WAVES = 4  # above, the last wave, which may be partial, hardly counts

_TERMS: dict[str, str] = {"forward": "k", "backward": "k", "rescale": "k", "product": "i"}
"""What terms are called, where they count: taps, or the channels of a product's input."""
_TEXT = re.compile(
    rf"({'|'.join({*_TERMS, *TILED, *FLAT})})/([a-z0-9]+)/(contiguous|channels_last)"
    r"/c(\d{1,10})/hw(\d{1,10})(?:/(k|i)(\d{1,10}))?/([a-z0-9+]+)"
    r"/(\d+\.\d+)/(part|few|many)",
    re.ASCII,
)


@dataclass(frozen=True)
class Key:
    """Names a class of problems; `str` is its name in a table of one GPU.

    Attributes:
        gpu: Name of the product. Not in the text: a table says it once for all its keys.
        kernel: "forward", "backward", "product", or a pass: "pool".
        dtype: Of x, in the backward of dy: "bfloat16".
        layout: "contiguous" or "channels_last".
        c: Channels.
        hw: Spatial elements.
        terms: Of the sum over channels that makes an element: taps, or the channels of a product's input; 0
            of other passes than "rescale".
        flags: The number of maps, "maps2"; bytes of the largest element where another map has more than
            the first, "wide4"; and which of the problem's own hold: "bits", "front", "recomputed", "stored",
            "summand"; joined by "+".
        capability: "9.0".
        occupancy: How often the map fills the GPU's registers: "part" of them, a "few" times, "many" times.
    """

    gpu: str
    kernel: str
    dtype: str
    layout: str
    c: int
    hw: int
    terms: int
    flags: str
    capability: str
    occupancy: str

    @classmethod
    def of(cls, problem: Problem) -> Key | None:
        """The key of a problem; None where its maps are in no order, or where no table knows the device."""
        layout, device = problem.layout, problem.device
        if not device.name or not (layout.contiguous or layout.dense_channels_last):
            return None
        flags = [f"maps{problem.maps}"]
        if problem.itemsize != problem.kept_itemsize:
            flags.append(f"wide{problem.itemsize}")
        flags += problem.flags
        return cls(
            gpu=device.name,
            kernel=problem.kind,
            dtype=str(problem.dtype).removeprefix("torch."),
            layout="contiguous" if layout.contiguous else "channels_last",
            c=layout.c,
            hw=layout.hw,
            terms=problem.terms,
            flags="+".join(flags),
            capability=device.capability,
            occupancy=_occupancy(problem),
        )

    @classmethod
    def parse(cls, gpu: str, text: str) -> Key:
        """The key that was written as `text` in a table of the GPU.

        Raises:
            ValueError: the text is none of `str(key)`.
        """
        match = _TEXT.fullmatch(text)
        if match is None or match[6] != _TERMS.get(match[1]):
            raise ValueError(f"not a key: {text[:200]!r}")
        kernel, dtype, layout, c, hw, _, terms, flags, capability, occupancy = match.groups()
        return cls(gpu, kernel, dtype, layout, int(c), int(hw), int(terms or 0), flags, capability, occupancy)

    def __str__(self) -> str:
        terms = f"/{_TERMS[self.kernel]}{self.terms}" if self.kernel in _TERMS else ""
        return (
            f"{self.kernel}/{self.dtype}/{self.layout}/c{self.c}/hw{self.hw}{terms}"
            f"/{self.flags}/{self.capability}/{self.occupancy}"
        )


def _occupancy(problem: Problem) -> str:
    layout = problem.layout
    map_bytes = layout.n * layout.c * layout.hw * problem.kept_itemsize
    waves = map_bytes / (problem.device.num_sms * RESIDENT_BYTES)
    return "part" if waves < 1 else "few" if waves <= WAVES else "many"
