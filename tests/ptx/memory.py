"""Memory that notices: bounds, alignment, reads of what nobody wrote, and accesses that nothing orders.

Ordering is told by vector clocks. A warp's clock holds, for each warp, the last of its epochs that this one
has heard of: at a barrier, or where it acquires what that one released. Two accesses of one element, one of
which writes, race unless the later one's clock covers the earlier one: causality order, in chapter "Memory
Consistency Model" of NVIDIA's "PTX ISA". Accesses by atomics do not race with each other. Where several
warps store one value, a read that is ordered behind one of these stores gets it, whatever the others do: such
a race is told by another name (`SAME`).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .lanes import Lanes

Clock = NDArray[np.int32]
SECTOR = 32  # bytes that a cache fetches at once
GAP = 1 << 20  # bytes between allocations: what misses one hits none
SAME = "a write of the value that is there"
LANES = "lanes store different values in one place"


class Fault(Exception):  # noqa: N818 (the hardware's word)
    """The program did what ends it on a GPU, or leaves it undefined."""


@dataclass
class Buffer:
    """One allocation, or the shared memory of one program.

    Attributes:
        name: For messages.
        data: Its bytes, as all see them.
        newest: The same, with stores that are still held back.
        base: Address of the first one.
        defined: Which of them somebody wrote.
        item: Bytes of an element, by which races are told.
        warps: That can reach it, from number `first_warp` on.
        wrote: [elements, warps], the first epoch in which each warp stored the value that is there, or 0.
        read: [elements, warps], the last epoch in which each warp read the element, or stored what is there.
        by_atomic: [elements], whether an atomic made the value that is there.
    """

    name: str
    data: NDArray[np.uint8]
    base: int
    defined: NDArray[np.bool_]
    item: int
    warps: int
    first_warp: int = 0
    newest: NDArray[np.uint8] = field(init=False)
    wrote: Clock = field(init=False)
    read: Clock = field(init=False)
    by_atomic: NDArray[np.bool_] = field(init=False)

    def __post_init__(self) -> None:
        self.newest = self.data.copy()
        elements = -(-len(self.data) // self.item)
        self.wrote, self.read = (np.zeros((elements, self.warps), np.int32) for _ in range(2))
        self.by_atomic = np.zeros(elements, bool)

    def bytes_at(self, addresses: Lanes, size: int) -> Lanes:
        """Offsets [lanes, size] of the bytes at some addresses.

        Raises:
            Fault: Some are outside, or not aligned to their size.
        """
        offsets = addresses.astype(np.int64) - self.base
        if offsets.min() < 0 or offsets.max() + size > len(self.data):
            bounds = f"bytes {offsets.min()} to {offsets.max() + size} of {len(self.data)}"
            raise Fault(f"outside of {self.name}: {bounds}")
        if np.any(addresses.astype(np.int64) % size):
            raise Fault(f"{self.name}: not aligned to {size} bytes")
        return offsets[:, None] + np.arange(size)

    def loaded(self, offsets: Lanes, warp: int, clock: Clock, *, atomic: bool = False) -> str:
        """Note a read of bytes; say how it races with a write, "" if it does not."""
        elements, mine = np.unique(offsets // self.item), warp - self.first_warp
        wrote, heard = self.wrote[elements], self._heard(clock)
        unheard = wrote > heard
        unheard[:, mine] = False
        unheard[self.by_atomic[elements] & atomic] = False
        again = ((wrote > 0) & ~unheard).any(1)  # the value is there by a write that was heard of, too
        if not atomic:
            self.read[elements, mine] = clock[warp]
        races = unheard.any(1)
        return "a write and a read" if np.any(races & ~again) else SAME if races.any() else ""

    def stored(
        self, offsets: Lanes, warp: int, clock: Clock, *, same: bool = False, atomic: bool = False
    ) -> str:
        """Note a write of bytes, of the value that is there or another one; say how it races."""
        elements, mine = np.unique(offsets // self.item), warp - self.first_warp
        heard = self._heard(clock)
        writes, reads = (which[elements] > heard for which in (self.wrote, self.read))
        writes[:, mine] = reads[:, mine] = False
        writes[self.by_atomic[elements] & atomic] = False
        if same:
            first = self.wrote[elements, mine]
            self.wrote[elements, mine] = np.where(first > 0, first, clock[warp])
            self.read[elements, mine] = clock[warp]
            return SAME if writes.any() or reads.any() else ""
        self.wrote[elements] = 0
        self.wrote[elements, mine] = clock[warp]
        self.by_atomic[elements] = atomic
        return "a write and a write" if writes.any() else "a read and a write" if reads.any() else ""

    def _heard(self, clock: Clock) -> Clock:
        return clock[None, self.first_warp : self.first_warp + self.warps]


@dataclass
class Memory:
    """Global memory of one launch, and what was noticed: kind, buffer and source line, how often.

    Attributes:
        warps: Of the launch.
    """

    warps: int
    buffers: list[Buffer] = field(default_factory=list)
    reports: Counter[str] = field(default_factory=Counter)

    def add(self, name: str, data: NDArray[np.uint8], offset: int, item: int, defined: bool = True) -> Buffer:
        """Place a copy of some bytes, so far behind the last that what misses one hits none.

        offset: of its address within 16 bytes.
        """
        last = self.buffers[-1] if self.buffers else None
        base = (last.base + len(last.data) + GAP if last else 1 << 32) // 256 * 256 + offset
        buffer = Buffer(name, data.copy(), base, np.full(len(data), defined), item, self.warps)
        self.buffers.append(buffer)
        return buffer

    def find(self, addresses: Lanes) -> Buffer:
        """The allocation that the lowest of some addresses is in.

        Raises:
            Fault: It is in none.
        """
        lowest = int(addresses.min())
        for buffer in self.buffers:
            if buffer.base <= lowest < buffer.base + GAP // 2 + len(buffer.data):
                return buffer
        raise Fault(f"address {lowest:#x} is in no allocation")

    def report(self, kind: str, buffer: Buffer, place: str) -> None:
        """Count something that was noticed."""
        self.reports[f"{kind}: {buffer.name} at {place}"] += 1


Sector = tuple[int, int]  # of a buffer, and its number there


class Caches:
    """What a program may see instead of memory: its own stores that are not out yet, and lines that are old.

    Stores leave a program in their order, at a release at the latest; a line of an L1 lasts until its SM
    acquires, or stores to it. Loads that pass the L1 by (.cg) see what is out.
    """

    def __init__(self, sms: int) -> None:
        self.lines: list[dict[Sector, tuple[Lanes, Lanes]]] = [{} for _ in range(sms)]
        self.stores: dict[int, list[tuple[Buffer, Lanes, Lanes]]] = {}

    def load(
        self, program: int, sm: int, buffer: Buffer, offsets: Lanes, past_l1: bool
    ) -> tuple[Lanes, Lanes]:
        """Bytes as the program sees them, and which are defined."""
        data, defined = buffer.data.copy(), buffer.defined.copy()
        if not past_l1:
            for sector in np.unique(offsets // SECTOR):
                part = slice(int(sector) * SECTOR, int(sector + 1) * SECTOR)
                line = self.lines[sm].setdefault(
                    (id(buffer), int(sector)), (buffer.data[part].copy(), buffer.defined[part].copy())
                )
                data[part], defined[part] = line
        for stored, at, value in self.stores.get(program, ()):
            if stored is buffer:
                data[at], defined[at] = value, True
        return data[offsets], defined[offsets]

    def store(self, program: int, sm: int, buffer: Buffer, offsets: Lanes, value: Lanes) -> None:
        """Hold a store back."""
        self.stores.setdefault(program, []).append((buffer, offsets.ravel(), value.ravel().copy()))
        self._drop(sm, buffer, offsets)

    def release(self, program: int, sm: int) -> None:
        """All stores of the program are out."""
        for buffer, offsets, value in self.stores.pop(program, ()):
            buffer.data[offsets], buffer.defined[offsets] = value, True
            self._drop(sm, buffer, offsets)

    def acquire(self, sm: int) -> None:
        """No line is old."""
        self.lines[sm].clear()

    def _drop(self, sm: int, buffer: Buffer, offsets: Lanes) -> None:
        for sector in np.unique(offsets // SECTOR):
            self.lines[sm].pop((id(buffer), int(sector)), None)
