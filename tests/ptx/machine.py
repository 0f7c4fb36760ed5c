"""A GPU that runs one launch: programs in any order, their warps interleaved by a seed, and what that breaks.

Lanes of a warp that branch apart run by turns, those that are furthest behind first, and meet where they have
the same next instruction. So a warp makes progress whatever its lanes wait for, as since Volta.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from .accesses import ACCESSES
from .lanes import UNSIGNED, WARP, Lanes, bits_of, constant, decode, dtype_of, encode
from .meanings import meaning
from .memory import Buffer, Caches, Fault, Memory
from .program import Instruction, Program, UnknownInstructionError

Read = Callable[["Warp"], Lanes]
Write = Callable[["Warp", Lanes, Lanes], None]
Step = Callable[["Warp", Lanes], None]
"""An instruction: given a warp and which of its lanes are active."""

SHARED_BASE = 0
QUANTUM = 40  # accesses of memory that a warp makes at most before another one's turn
MOST_STEPS = 20_000_000
DRAINED = 0.02  # chance, at each turn, that held-back stores of a program leave on their own


@dataclass
class Warp:
    """Thirty-two threads.

    Attributes:
        program: Its number in the grid.
        index: Of the warp in the program.
        number: Of the warp in the launch.
        registers: By name.
        clock: Of `memory`: the epochs of all warps that it has heard of.
        at: Next instruction of each lane; as many as there are instructions where it has ended.
        waits: At a barrier.
    """

    program: int
    index: int
    number: int
    registers: dict[str, Lanes]
    clock: Lanes
    at: Lanes = field(default_factory=lambda: np.zeros(WARP, np.int64))
    waits: bool = False


@dataclass
class Resident:
    """A program that runs: its warps and its shared memory."""

    warps: list[Warp]
    shared: Buffer


class Machine:
    """Runs one launch.

    Args:
        program: The kernel.
        grid: Number of its programs.
        params: Its arguments, the bits of each.
        memory: What the pointers among them point to.
        shared_bytes: Of each program.
        seed: Of the interleaving.
        resident: Programs that run at once.
        sms: Streaming multiprocessors, each with an L1; programs are dealt out to them in turn.
        weak: Stores are held back and lines of L1 grow old, as far as the memory model allows it.
    """

    def __init__(
        self,
        program: Program,
        grid: int,
        params: Sequence[int],
        memory: Memory,
        *,
        shared_bytes: int,
        seed: int = 0,
        resident: int = 8,
        sms: int = 2,
        weak: bool = False,
    ) -> None:
        self.program, self.grid, self.params, self.memory = program, grid, params, memory
        self.shared_bytes, self.resident, self.sms = max(shared_bytes, 1), resident, sms
        self.random = random.Random(seed)
        self.caches = Caches(sms) if weak else None
        self.warps = program.threads // WARP
        self.released: dict[int, Lanes] = {}  # clocks, by the address that they were released at
        self.live: dict[int, Resident] = {}
        self.turn = 0  # accesses that are left of a warp's
        self.code = [(self._guarded(each), each) for each in program.instructions]

    # The grid

    def run(self, order: Sequence[int]) -> None:
        """Run all programs, which start in this order.

        Raises:
            Fault: What a program did, and where.
        """
        pending, steps = list(order), 0
        while pending or self.live:
            while pending and len(self.live) < self.resident:
                self._start(pending.pop(0))
            ready = [warp for each in self.live.values() for warp in each.warps if self._runs(warp)]
            if not ready:
                raise Fault(f"{self.program.name}: every warp waits at a barrier that one never reaches")
            warp = self.random.choice(ready)
            steps += self._turn_of(warp)
            if steps > MOST_STEPS:
                raise Fault(f"{self.program.name}: no end after {steps} instructions")
            if self.caches and self.caches.stores and self.random.random() < DRAINED:
                self.drain(self.random.choice(list(self.caches.stores)))
            self._settle(warp.program)

    def drain(self, program: int) -> None:
        """Let the stores of a program be seen by all."""
        if self.caches:
            self.caches.release(program, program % self.sms)

    def _start(self, number: int) -> None:
        first, size = number * self.warps, self.shared_bytes
        nothing = np.zeros(size, np.uint8), SHARED_BASE, np.zeros(size, bool)
        warps = []
        for index in range(self.warps):
            registers = {
                name: np.zeros(WARP, bool if kind == "pred" else UNSIGNED[bits_of(kind)])
                for name, kind in self.program.registers.items()
            }
            clock = np.zeros(self.grid * self.warps, np.int32)
            clock[first + index] = 1
            warps.append(Warp(number, index, first + index, registers, clock))
        self.live[number] = Resident(warps, Buffer("shared memory", *nothing, 1, self.warps, first))

    def _runs(self, warp: Warp) -> bool:
        return not warp.waits and not self._ended(warp)

    def _ended(self, warp: Warp) -> bool:
        return int(warp.at.min()) >= len(self.code)

    def _settle(self, number: int) -> None:
        """Open a barrier that all have reached; take away a program that has ended."""
        alive = [warp for warp in self.live[number].warps if not self._ended(warp)]
        if not alive:
            self.drain(number)
            del self.live[number]
        elif all(warp.waits for warp in alive):
            heard = np.maximum.reduce([warp.clock for warp in alive])
            for warp in alive:
                warp.clock, warp.waits = heard.copy(), False
                warp.clock[warp.number] += 1

    def _turn_of(self, warp: Warp) -> int:
        """Let a warp run for a while; the number of instructions."""
        self.turn, steps = self.random.randint(1, QUANTUM), 0
        while self.turn > 0 and self._runs(warp):
            at = int(warp.at.min())
            active = warp.at == at
            step, instruction = self.code[at]
            warp.at[active] = at + 1
            try:
                step(warp, active)
            except Fault as fault:
                where = f"{self.program.name}, program {warp.program}, warp {warp.index}"
                raise Fault(f"{where}: {instruction}: {fault}") from None
            steps += 1
        return steps

    # Operands

    def read(self, text: str, kind: str) -> Read:
        """What reads an operand as a type: a register, a literal, or what is special."""
        if text in self.program.registers:
            return lambda warp: decode(kind, warp.registers[text])
        if (bits := constant(text, kind)) is not None:
            value = decode(kind, bits)
            return lambda _: value
        special = self._special(text)
        return lambda warp: special(warp).astype(dtype_of(kind))

    def _special(self, text: str) -> Read:
        name, _, axis = text.partition(".")
        if axis in ("y", "z"):  # grids have one axis, and so have programs
            return lambda _: np.full(WARP, int(name in ("%nctaid", "%ntid")), np.uint32)
        known: dict[str, Read] = {
            "%tid": lambda warp: np.arange(WARP, dtype=np.uint32) + np.uint32(warp.index * WARP),
            "%laneid": lambda _: np.arange(WARP, dtype=np.uint32),
            "%ctaid": lambda warp: np.full(WARP, warp.program, np.uint32),
            "%nctaid": lambda _: np.full(WARP, self.grid, np.uint32),
            "%ntid": lambda _: np.full(WARP, self.program.threads, np.uint32),
            "global_smem": lambda _: np.full(WARP, SHARED_BASE, np.uint32),
        }
        if name not in known:
            raise UnknownInstructionError(f"operand {text}")
        return known[name]

    def write(self, text: str, kind: str) -> Write:
        """What writes a register, in lanes that are active; "_" is none."""
        if text == "_":
            return lambda *_: None
        width = bits_of(self.program.registers[text])

        def write(warp: Warp, active: Lanes, value: Lanes) -> None:
            warp.registers[text] = np.where(active, encode(kind, value, width), warp.registers[text])

        return write

    def address(self, text: str, kind: str) -> Read:
        """What reads the address "[%rd1 + 16]", as signed integers of 64 bits."""
        match = re.fullmatch(r"\[\s*([%$\w]+)\s*(?:\+\s*(-?\d+))?\s*\]", text)
        if match is None:
            raise UnknownInstructionError(f"address {text}")
        base, offset = self.read(match[1], kind), int(match[2] or 0)
        return lambda warp: base(warp).astype(np.int64) + offset

    # Instructions

    def _guarded(self, instruction: Instruction) -> Step:
        step = self._step(instruction)
        if instruction.guard is None:
            return step
        name, negated = instruction.guard

        def guarded(warp: Warp, active: Lanes) -> None:
            runs = active & (warp.registers[name] ^ negated)
            if runs.any():
                step(warp, runs)

        return guarded

    def _step(self, instruction: Instruction) -> Step:
        name = instruction.op[0]
        if name in ACCESSES:
            return ACCESSES[name](self, instruction)
        if name in ("bra", "ret", "exit"):
            return self._jump(instruction)
        if name in ("bar", "barrier"):
            return _wait
        means = meaning(instruction)
        reads = [self.read(text, kind) for text, kind in means.reads]
        writes = [self.write(text, kind) for text, kind in means.writes]

        def step(warp: Warp, active: Lanes) -> None:
            if name == "shfl" and not active.all():
                raise Fault("lanes of another branch are asked for values")
            with np.errstate(all="ignore"):
                results = means.compute(*(read(warp) for read in reads))
            results = results if isinstance(results, tuple) else (results,)
            for write, result in zip(writes, results, strict=True):
                write(warp, active, result)

        return step

    def _jump(self, instruction: Instruction) -> Step:
        labels, end = self.program.labels, len(self.program.instructions)
        target = labels[instruction.args[0]] if instruction.op[0] == "bra" else end

        def step(warp: Warp, active: Lanes) -> None:
            warp.at[active] = target

        return step


def _wait(warp: Warp, active: Lanes) -> None:
    if not active.all():
        raise Fault("a barrier in a branch that not all lanes take")
    warp.waits = True
