"""Values of the 32 threads of a warp: arrays of 32, and what the types of PTX make of a register's bits.

A register is an array of unsigned integers of its width; a predicate is one of bools. Types of 16-bit floats
are computed in float32 and rounded once, to nearest, ties to even, as one instruction does. Packed types
("f16x2", "f32x2") are arrays [2, 32].
"""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

Lanes = NDArray[np.generic]

WARP = 32
ALL = np.ones(WARP, bool)
UNSIGNED = {8: np.uint8, 16: np.uint16, 32: np.uint32, 64: np.uint64}
SIGNED = {8: np.int8, 16: np.int16, 32: np.int32, 64: np.int64}
FLOATS = {16: np.float16, 32: np.float32, 64: np.float64}
HALVES = ("f16", "bf16")


def bits_of(kind: str) -> int:
    """Width of a type: 64 of "u64", 32 of "f16x2", 1 of "pred"."""
    if kind == "pred":
        return 1
    base, _, times = kind.partition("x")
    return int(re.sub(r"\D", "", base)) * int(times or 1)


def is_float(kind: str) -> bool:
    """Return whether arithmetic on the type is that of floats."""
    return kind.lstrip("b").startswith("f")


def dtype_of(kind: str) -> type[np.generic]:
    """The array's dtype for a type that is not packed: float32 for 16-bit floats."""
    if kind == "pred":
        return np.bool_
    if kind in (*HALVES, "tf32"):
        return np.float32
    return {"f": FLOATS, "s": SIGNED}.get(kind[0], UNSIGNED)[bits_of(kind)]


def decode(kind: str, raw: Lanes) -> Lanes:
    """Read a register, which may be wider than the type, as values of the type."""
    if kind == "pred" or raw.dtype == np.bool_:
        return raw
    if "x" in kind:
        base, half = kind.partition("x")[0], bits_of(kind) // 2
        whole = raw.astype(UNSIGNED[2 * half])
        low, high = whole.astype(UNSIGNED[half]), (whole >> UNSIGNED[2 * half](half)).astype(UNSIGNED[half])
        return np.stack([decode(base, low), decode(base, high)])
    raw = raw.astype(UNSIGNED[bits_of(kind)])
    if kind == "bf16":
        return (raw.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return raw.view(np.float16).astype(np.float32) if kind == "f16" else raw.view(dtype_of(kind))


def encode(kind: str, value: Lanes, width: int) -> Lanes:
    """Values of a type as the bits of a register of `width` bits; narrower integers are extended."""
    if kind == "pred" or width == 1:
        return value.astype(np.bool_)
    if "x" in kind:
        base, half = kind.partition("x")[0], bits_of(kind) // 2
        low, high = (encode(base, part, half).astype(UNSIGNED[width]) for part in value)
        return low | high << UNSIGNED[width](half)
    if kind == "bf16":
        return bf16_bits(value).astype(UNSIGNED[width])
    if kind == "f16":
        return value.astype(np.float16).view(np.uint16).astype(UNSIGNED[width])
    if is_float(kind):
        return value.astype(dtype_of(kind)).view(UNSIGNED[bits_of(kind)])
    exact = value.astype(dtype_of(kind))
    return exact.astype((SIGNED if kind[0] == "s" else UNSIGNED)[width]).view(UNSIGNED[width])


def bf16_bits(value: Lanes) -> Lanes:
    """Round float32 to bf16; NaN becomes 0x7fff, as the hardware has it."""
    bits = value.astype(np.float32).view(np.uint32).astype(np.uint64)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(value), np.uint16(0x7FFF), rounded)


def constant(text: str, kind: str) -> Lanes | None:
    """A literal as bits of the type's width; None where the text is none."""
    width = bits_of(kind)
    if match := re.fullmatch(r"0[fFdD]([0-9a-fA-F]+)", text):
        value = int(match[1], 16)
    elif re.fullmatch(r"-?(0[xX][0-9a-fA-F]+|\d+)U?", text):
        value = int(text.rstrip("U"), 0)
    elif re.fullmatch(r"-?\d+\.\d+([eE][-+]?\d+)?", text):
        return np.full(WARP, float(text), dtype_of(kind)).view(UNSIGNED[width])
    else:
        return None
    if width == 1:
        return np.full(WARP, bool(value))
    return np.full(WARP, value % (1 << width), UNSIGNED[width])
