"""Instructions that touch memory: what each reads and writes, and whom it is ordered with."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from .lanes import UNSIGNED, WARP, Lanes, bits_of, dtype_of
from .memory import LANES, Buffer, Fault
from .program import Instruction, UnknownInstructionError, operands

if TYPE_CHECKING:
    from .machine import Machine, Step, Warp

ROW, COLUMN = np.arange(WARP) // 4, np.arange(WARP) % 4 * 2  # of the pair that a lane has of an 8x8 matrix
MATRIX_ROW = 16  # bytes
GPU_WIDE = {"gpu", "sys"}


def _is_shared(of: Instruction) -> bool:
    return any(part.startswith("shared") for part in of.op)


def _nothing(machine: Machine, of: Instruction) -> Step:
    """Hints for caches, and fences: all orders that the kernels need are on atomics and barriers."""
    return lambda *_: None


def _load(machine: Machine, of: Instruction) -> Step:
    destination, source = of.args[:2]  # a third one is the cache's policy
    kind = f"b{bits_of(of.op[-1])}" if of.op[-1][0] in "bf" else of.op[-1]
    writes = [machine.write(register, kind) for register in operands(destination.strip("{}"))]
    if "param" in of.op:
        index = int(re.findall(r"_param_(\d+)", source)[0])
        value = np.full(WARP, machine.params[index], UNSIGNED[bits_of(kind)])
        return lambda warp, active: writes[0](warp, active, value)
    shared = _is_shared(of)
    address = machine.address(source, "u32" if shared else "u64")
    size = bits_of(kind) // 8 * len(writes)
    strong = bool({"acquire", "relaxed", "volatile"} & set(of.op))

    def step(warp: Warp, active: Lanes) -> None:
        places = address(warp)[active]
        if "acquire" in of.op:
            _acquire(machine, warp, places)
        past_l1 = strong or "cg" in of.op
        data = _loaded(machine, warp, places, size, of, shared=shared, past_l1=past_l1, atomic=strong)
        parts = np.ascontiguousarray(data).view(UNSIGNED[bits_of(kind)])
        for index, write in enumerate(writes):
            whole = np.zeros(WARP, parts.dtype)
            whole[active] = parts[:, index]
            write(warp, active, whole.view(dtype_of(kind)))

    return step


def _store(machine: Machine, of: Instruction) -> Step:
    if {"release", "relaxed", "volatile"} & set(of.op):
        raise UnknownInstructionError(str(of))
    destination, source = of.args[:2]
    shared, kind = _is_shared(of), f"b{bits_of(of.op[-1])}"
    address = machine.address(destination, "u32" if shared else "u64")
    reads = [machine.read(register, kind) for register in operands(source.strip("{}"))]

    def step(warp: Warp, active: Lanes) -> None:
        values = np.stack([read(warp)[active] for read in reads], 1)
        data = np.ascontiguousarray(values).view(np.uint8)
        _stored(machine, warp, address(warp)[active], data, of, shared=shared)

    return step


def _copy(machine: Machine, of: Instruction) -> Step:
    """cp.async: to shared memory, zeros where nothing of the source is to be read; it is there at once."""
    if {"commit_group", "wait_group", "wait_all"} & set(of.op):
        return _nothing(machine, of)
    if of.op[1] != "async" or "bulk" in of.op:
        raise UnknownInstructionError(str(of))
    to, source = machine.address(of.args[0], "u32"), machine.address(of.args[1], "u64")
    size = int(of.args[2], 0)
    wanted = machine.read(of.args[3] if len(of.args) > 3 else str(size), "u32")

    def step(warp: Warp, active: Lanes) -> None:
        some = active & (wanted(warp) > 0)
        if np.any(wanted(warp)[some] != size):
            raise Fault("a part of an asynchronous copy")
        data = np.zeros((WARP, size), np.uint8)
        if some.any():
            data[some] = _loaded(machine, warp, source(warp)[some], size, of, shared=False, past_l1=True)
        _stored(machine, warp, to(warp)[active], data[active], of, shared=True)

    return step


def _load_matrix(machine: Machine, of: Instruction) -> Step:
    """ldmatrix: 8x8 matrices of 16 bits, whose rows are at the addresses of eight lanes each."""
    writes = [machine.write(each, "b32") for each in operands(of.args[0].strip("{}"))]
    address = machine.address(of.args[1], "u32")

    def step(warp: Warp, active: Lanes) -> None:
        for index, write in enumerate(writes):
            rows = address(warp)[8 * index : 8 * index + 8]
            data = _loaded(machine, warp, rows, MATRIX_ROW, of, shared=True)
            matrix = np.ascontiguousarray(data).view(np.uint16).astype(np.uint32)
            matrix = matrix.T if "trans" in of.op else matrix
            write(warp, active, matrix[ROW, COLUMN] | matrix[ROW, COLUMN + 1] << np.uint32(16))

    return step


def _store_matrix(machine: Machine, of: Instruction) -> Step:
    """stmatrix: the other way round."""
    reads = [machine.read(each, "b32") for each in operands(of.args[1].strip("{}"))]
    address = machine.address(of.args[0], "u32")

    def step(warp: Warp, active: Lanes) -> None:
        for index, read in enumerate(reads):
            matrix, value = np.zeros((8, 8), np.uint16), read(warp)
            matrix[ROW, COLUMN], matrix[ROW, COLUMN + 1] = value & np.uint32(0xFFFF), value >> np.uint32(16)
            data = np.ascontiguousarray(matrix.T if "trans" in of.op else matrix).view(np.uint8)
            _stored(machine, warp, address(warp)[8 * index : 8 * index + 8], data, of, shared=True)

    return step


def _atomic(machine: Machine, of: Instruction) -> Step:
    """atom.add, and red.add, which has no result; each lane by itself, as a GPU may do it."""
    op = set(of.op)
    if not {"add", "global"} <= op or not GPU_WIDE & op:
        raise UnknownInstructionError(str(of))
    *destination, place, operand = of.args
    kind = of.op[-1]
    write = machine.write(destination[0], kind) if destination else None
    address, summand = machine.address(place, "u64"), machine.read(operand, kind)
    acquires, releases = bool({"acquire", "acq_rel"} & op), bool({"release", "acq_rel"} & op)

    def step(warp: Warp, active: Lanes) -> None:
        old = np.zeros(WARP, dtype_of(kind))
        places, values = address(warp), summand(warp)
        for lane in np.flatnonzero(active):
            at = places[lane : lane + 1]
            if releases:
                _release(machine, warp, int(at[0]))
            if acquires:
                _acquire(machine, warp, at)
            buffer = machine.memory.find(at)
            offsets = buffer.bytes_at(at, bits_of(kind) // 8)
            if not buffer.defined[offsets].all():
                machine.memory.report("an atomic on what nobody wrote", buffer, of.place)
            race = buffer.stored(offsets, warp.number, warp.clock, atomic=True)
            _report(machine, race, buffer, of)
            old[lane] = buffer.data[offsets[0]].view(dtype_of(kind))[0]
            result = np.array([old[lane] + values[lane]], dtype_of(kind))
            buffer.data[offsets[0]] = buffer.newest[offsets[0]] = result.view(np.uint8)
            if releases:
                warp.clock[warp.number] += 1
        if write is not None:
            write(warp, active, old)
        machine.turn = 0  # others' turn

    return step


ACCESSES: dict[str, Callable[[Machine, Instruction], Step]] = {
    "ld": _load,
    "st": _store,
    "cp": _copy,
    "ldmatrix": _load_matrix,
    "stmatrix": _store_matrix,
    "atom": _atomic,
    "red": _atomic,
    **dict.fromkeys(("createpolicy", "prefetch", "applypriority", "discard", "fence"), _nothing),
}
"""By the first part of the name."""


def _release(machine: Machine, warp: Warp, address: int) -> None:
    """Leave what the warp knows for whoever acquires at this address."""
    machine.drain(warp.program)
    known = machine.released.get(address)
    machine.released[address] = warp.clock.copy() if known is None else np.maximum(known, warp.clock)


def _acquire(machine: Machine, warp: Warp, addresses: Lanes) -> None:
    for address in addresses:
        if (known := machine.released.get(int(address))) is not None:
            warp.clock = np.maximum(warp.clock, known)
    if machine.caches:
        machine.caches.acquire(warp.program % machine.sms)


def _buffer(machine: Machine, warp: Warp, addresses: Lanes, shared: bool) -> Buffer:
    return machine.live[warp.program].shared if shared else machine.memory.find(addresses)


def _loaded(
    machine: Machine, warp: Warp, addresses: Lanes, size: int, of: Instruction,
    *, shared: bool, past_l1: bool = False, atomic: bool = False,
) -> Lanes:  # fmt: skip
    """Bytes [lanes, size] at some addresses."""
    buffer = _buffer(machine, warp, addresses, shared)
    offsets = buffer.bytes_at(addresses, size)
    machine.turn -= 1
    _report(machine, buffer.loaded(offsets, warp.number, warp.clock, atomic=atomic), buffer, of)
    if machine.caches and not shared:
        sm = warp.program % machine.sms
        data, defined = machine.caches.load(warp.program, sm, buffer, offsets, past_l1)
    else:
        data, defined = buffer.data[offsets], buffer.defined[offsets]
    if not defined.all():
        machine.memory.report("a read of what nobody wrote", buffer, of.place)
    return data


def _stored(
    machine: Machine, warp: Warp, addresses: Lanes, data: Lanes, of: Instruction, *, shared: bool
) -> None:
    """Store bytes [lanes, size] at some addresses."""
    buffer = _buffer(machine, warp, addresses, shared)
    offsets = buffer.bytes_at(addresses, data.shape[1])
    machine.turn -= 1
    there = (buffer.newest[offsets] == data).all(1)
    for some, same in ((there, True), (~there, False)):
        if some.any():
            race = buffer.stored(offsets[some], warp.number, warp.clock, same=same)
            _report(machine, race, buffer, of)
    buffer.newest[offsets] = data
    if np.any(buffer.newest[offsets] != data):
        machine.memory.report(LANES, buffer, of.place)
    if machine.caches and not shared:
        machine.caches.store(warp.program, warp.program % machine.sms, buffer, offsets, data)
        return
    buffer.data[offsets], buffer.defined[offsets] = data, True


def _report(machine: Machine, race: str, buffer: Buffer, of: Instruction) -> None:
    if race:
        machine.memory.report(f"race of {race}", buffer, of.place)
