"""What instructions compute that touch nothing but registers.

Source: NVIDIA's "PTX ISA", chapter "Instruction Set". A fused multiply-add is computed in the next wider type
and rounded once more; approximations (`ex2.approx` and its like) are exact here: their error is not seen.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from .lanes import HALVES, WARP, Lanes, bits_of, decode, dtype_of, is_float
from .program import Instruction, UnknownInstructionError, operands

Compute = Callable[..., Any]
LANE = np.arange(WARP)
U32 = np.uint32


@dataclass(frozen=True)
class Meaning:
    """An instruction as a function of lanes.

    Attributes:
        writes: Registers and their types.
        reads: Operands and their types.
        compute: Lanes of `reads` to lanes of `writes`, a tuple where there are several.
    """

    writes: tuple[tuple[str, str], ...]
    reads: tuple[tuple[str, str], ...]
    compute: Compute


def meaning(of: Instruction) -> Meaning:
    """The meaning of an instruction.

    Raises:
        UnknownInstructionError: It has none here.
    """
    name = of.op[0]
    make = _SPECIAL.get(name, _arithmetic)
    try:
        return make(of)
    except (KeyError, IndexError, ValueError) as error:
        raise UnknownInstructionError(f"{of}: {', '.join(of.args)}") from error


def _simple(of: Instruction, writes: str, reads: tuple[str, ...], compute: Compute) -> Meaning:
    """One result and as many operands as there are types."""
    destination, *sources = of.args
    return Meaning(((destination, writes),), tuple(zip(sources, reads, strict=True)), compute)


def _arithmetic(of: Instruction) -> Meaning:
    name, kind = of.op[0], of.op[-1]
    compute = _float(of) if is_float(kind) else _integer(of)
    if of.op[-2:-1] == ("f32",) and kind in HALVES:  # of mixed types: the summand and the result are float32
        return _simple(of, "f32", (*[kind] * (len(of.args) - 2), "f32"), compute)
    if "wide" in of.op:
        wide = f"{kind[0]}{2 * bits_of(kind)}"
        return _simple(of, wide, (kind, kind, wide)[: len(of.args) - 1], partial(compute, dtype_of(wide)))
    reads = (kind, "u32") if name in ("shl", "shr") else (kind,) * (len(of.args) - 1)
    return _simple(of, kind, reads, compute)


# Floats


def _fma(kind: str, a: Lanes, b: Lanes, c: Lanes) -> Lanes:
    wide: Any = np.longdouble if kind == "f64" else np.float64
    return (a.astype(wide) * b.astype(wide) + c.astype(wide)).astype(dtype_of(kind.partition("x")[0]))


def _exactly(function: Compute) -> Compute:
    """In float64, rounded to float32."""
    return lambda x: function(x.astype(np.float64)).astype(x.dtype)


_FLOAT: dict[str, Compute] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "neg": np.negative,
    "abs": np.abs,
    "sqrt": np.sqrt,
    "rcp": _exactly(np.reciprocal),
    "rsqrt": _exactly(lambda x: 1 / np.sqrt(x)),
    "ex2": _exactly(np.exp2),
    "lg2": _exactly(np.log2),
    "tanh": _exactly(np.tanh),
    "sin": _exactly(np.sin),
    "cos": _exactly(np.cos),
}


def _float(of: Instruction) -> Compute:
    name, kind = of.op[0], of.op[-1]
    if name in ("min", "max"):
        propagates = "NaN" in of.op
        return {
            ("min", True): np.minimum,
            ("max", True): np.maximum,
            ("min", False): np.fmin,
            ("max", False): np.fmax,
        }[name, propagates]
    compute = partial(_fma, kind) if name in ("fma", "mad") else _FLOAT[name]
    return _flushed(compute) if "ftz" in of.op else compute


def _flushed(compute: Compute) -> Compute:
    """Subnormal results become zeros of their sign."""

    def flush(*values: Lanes) -> Lanes:
        result = compute(*values)
        return np.where(
            np.abs(result) < np.finfo(np.float32).tiny, np.copysign(np.float32(0), result), result
        )

    return flush


# Integers


def _integer(of: Instruction) -> Compute:
    name, kind = of.op[0], of.op[-1]
    if name in ("shl", "shr"):
        return partial(_shift, name, kind)
    if name in ("mul", "mad"):
        form = next(part for part in of.op if part in ("lo", "hi", "wide"))
        return {"lo": _low, "hi": partial(_high, kind), "wide": _wide}[form]
    if name in ("div", "rem"):
        return partial(_divide, name)
    return _INTEGER[name]


def _low(a: Lanes, b: Lanes, *c: Lanes) -> Lanes:
    return a * b + c[0] if c else a * b


def _wide(dtype: Any, a: Lanes, b: Lanes, *c: Lanes) -> Lanes:
    return _low(a.astype(dtype), b.astype(dtype), *c)


def _high(kind: str, a: Lanes, b: Lanes, *c: Lanes) -> Lanes:
    product = a.astype(object) * b.astype(object) >> bits_of(kind)
    return (product + (c[0].astype(object) if c else 0)).astype(np.int64 if kind[0] == "s" else np.uint64)


def _divide(name: str, a: Lanes, b: Lanes) -> Lanes:
    """Rounds to zero; a lane that divides by zero has any value, and is masked."""
    x, y = a.astype(object), np.where(b == 0, 1, b).astype(object)
    quotient = abs(x) // abs(y) * np.where((x < 0) == (y < 0), 1, -1)
    return (quotient if name == "div" else x - quotient * y).astype(a.dtype)


def _shift(name: str, kind: str, a: Lanes, count: Lanes) -> Lanes:
    """Counts are clamped to the width; a signed value is filled with its sign."""
    width = bits_of(kind)
    beyond, count = count >= width, np.minimum(count, width - 1).astype(a.dtype)
    shifted = a << count if name == "shl" else a >> count
    fill = a >> a.dtype.type(width - 1) if name == "shr" and kind[0] == "s" else np.zeros_like(a)
    return np.where(beyond, fill, shifted)


_INTEGER: dict[str, Compute] = {
    "add": np.add,
    "sub": np.subtract,
    "neg": np.negative,
    "abs": np.abs,
    "min": np.minimum,
    "max": np.maximum,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "not": np.invert,
    "popc": lambda x: np.array([int(value).bit_count() for value in x]),
}


def _funnel(of: Instruction) -> Meaning:
    """shf: 64 bits of two registers, shifted."""
    left, wraps = of.op[1] == "l", of.op[2] == "wrap"

    def shift(low: Lanes, high: Lanes, count: Lanes) -> Lanes:
        count = (count & U32(31) if wraps else np.minimum(count, U32(32))).astype(np.uint64)
        both = low.astype(np.uint64) | high.astype(np.uint64) << np.uint64(32)
        return (both << count) >> np.uint64(32) if left else both >> count

    return _simple(of, "b32", ("b32",) * 3, shift)


def _extract(of: Instruction) -> Meaning:
    """bfe: a field of bits, extended."""
    kind = of.op[-1]

    def extract(value: Lanes, start: Lanes, length: Lanes) -> Lanes:
        start, length = (np.minimum(each & U32(255), 63).astype(np.int64) for each in (start, length))
        field = value.astype(np.int64) >> start & (np.int64(1) << length) - 1
        negative = (length > 0) & (field >> np.maximum(length - 1, 0) & 1 == 1) & (kind[0] == "s")
        return np.where(negative, field - (np.int64(1) << length), field)

    return _simple(of, kind, (kind, "u32", "u32"), extract)


def _permute(of: Instruction) -> Meaning:
    """prmt: four bytes of eight, each by a nibble, whose highest bit copies the byte's sign."""

    def permute(low: Lanes, high: Lanes, selector: Lanes) -> Lanes:
        both = low.astype(np.uint64) | high.astype(np.uint64) << np.uint64(32)
        result = np.zeros(WARP, np.uint32)
        for index in range(4):
            nibble = selector >> U32(4 * index) & U32(15)
            byte = (both >> (nibble & U32(7)).astype(np.uint64) * np.uint64(8) & np.uint64(255)).astype(
                np.uint32
            )
            signs = np.where(byte & U32(128), U32(255), U32(0))
            result |= np.where(nibble & U32(8), signs, byte) << U32(8 * index)
        return result

    return _simple(of, "b32", ("b32",) * 3, permute)


def _logic(of: Instruction) -> Meaning:
    """lop3: any function of three bits, by its table of eight."""
    table = int(of.args[-1], 0)

    def logic(a: Lanes, b: Lanes, c: Lanes) -> Lanes:
        result = np.zeros(WARP, np.uint32)
        for index in range(8):
            if table >> index & 1:
                terms = (x if index & bit else ~x for x, bit in ((a, 4), (b, 2), (c, 1)))
                result |= np.bitwise_and.reduce(list(terms))
        return result

    destination, *sources = of.args[:-1]
    return Meaning(((destination, "b32"),), tuple((source, "b32") for source in sources), logic)


# Predicates and selection

_COMPARE: dict[str, Compute] = {
    "eq": operator.eq,
    "ne": operator.ne,
    "lt": operator.lt,
    "le": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
    "lo": operator.lt,
    "ls": operator.le,
    "hi": operator.gt,
    "hs": operator.ge,
}
_COMBINE: dict[str, Compute] = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}


def _compare(name: str, floats: bool) -> Compute:
    def unordered(a: Lanes, b: Lanes) -> Lanes:
        return np.isnan(a) | np.isnan(b)

    if not floats:
        return _COMPARE[name]
    if name in ("nan", "num"):
        return unordered if name == "nan" else lambda a, b: ~unordered(a, b)
    if name in _COMPARE:
        return lambda a, b: _COMPARE[name](a, b) & ~unordered(a, b)
    return lambda a, b: _COMPARE[name[:-1]](a, b) | unordered(a, b)  # "ltu": or unordered


def _set_predicate(of: Instruction) -> Meaning:
    kind = of.op[-1]
    compare = _compare(of.op[1], is_float(kind))
    combine = next((_COMBINE[part] for part in of.op[2:-1] if part in _COMBINE), None)
    if combine is None:
        return _simple(of, "pred", (kind, kind), compare)
    return _simple(of, "pred", (kind, kind, "pred"), lambda a, b, c: combine(compare(a, b), c))


def _select(of: Instruction) -> Meaning:
    kind = f"b{bits_of(of.op[-1])}"
    return _simple(of, kind, (kind, kind, "pred"), lambda a, b, c: np.where(c, a, b))


# Moves and conversions


def _move(of: Instruction) -> Meaning:
    """mov, also of several registers into a wider one, and back."""
    kind = of.op[-1]
    destination, source = of.args[:2]
    if source.startswith("{"):
        parts = operands(source[1:-1])
        narrow = bits_of(kind) // len(parts)

        def pack(*values: Lanes) -> Lanes:
            wide = [
                value.astype(np.uint64) << np.uint64(narrow * index) for index, value in enumerate(values)
            ]
            return np.bitwise_or.reduce(wide)

        return Meaning(((destination, kind),), tuple((part, f"b{narrow}") for part in parts), pack)
    if destination.startswith("{"):
        parts = operands(destination[1:-1])
        narrow = bits_of(kind) // len(parts)

        def unpack(value: Lanes) -> tuple[Lanes, ...]:
            return tuple(value >> value.dtype.type(narrow * index) for index in range(len(parts)))

        return Meaning(tuple((part, f"b{narrow}") for part in parts), ((source, kind),), unpack)
    plain = kind if kind == "pred" else f"b{bits_of(kind)}"
    return _simple(of, plain, (plain,), lambda value: value)


def _convert(of: Instruction) -> Meaning:
    to, source = of.op[-2:]
    if "x" in to:  # the first operand is the upper half
        return _simple(of, to, (source, source), lambda upper, lower: np.stack([lower, upper]))
    if to == "tf32":  # the ten bits that matrix units read
        return _simple(of, "b32", ("b32",), lambda bits: bits + U32(0x1000) & U32(0xFFFFE000))
    if is_float(source) and not is_float(to):
        limits = np.iinfo(dtype_of(to))
        round_ = {"rni": np.rint, "rmi": np.floor, "rpi": np.ceil, "rzi": np.trunc}
        rounding = next(round_[part] for part in of.op if part in round_)
        return _simple(
            of,
            to,
            (source,),
            lambda x: np.clip(np.nan_to_num(rounding(x.astype(np.float64))), limits.min, limits.max),
        )
    return _simple(of, to, (source,), lambda value: value)


# Across lanes


def _shuffle(of: Instruction) -> Meaning:
    """shfl.sync: a value of another lane, of one's own where that is outside the segment."""
    mode = of.op[2]
    first, _, inside = of.args[0].partition("|")

    def shuffle(value: Lanes, offset: Lanes, control: Lanes) -> tuple[Lanes, ...]:
        segment, clamp = control.astype(np.int64) >> 8 & 31, control.astype(np.int64) & 31
        step = offset.astype(np.int64)
        last = LANE & segment | clamp & ~segment & 31
        source = {
            "bfly": LANE ^ step,
            "idx": LANE & segment | step & ~segment & 31,
            "up": LANE - step,
            "down": LANE + step,
        }[mode]
        valid = source >= last if mode == "up" else source <= last
        result = value[np.where(valid, source, LANE) & 31]
        return (result, valid) if inside else (result,)

    writes = ((first, "b32"), *(((inside, "pred"),) if inside else ()))
    return Meaning(writes, tuple((each, "b32") for each in of.args[1:4]), shuffle)


def _multiply(of: Instruction) -> Meaning:
    """mma.sync.m16n8k8 and k16, row times column: how lanes hold fragments is in the ISA's figures."""
    depth = int(next(part for part in of.op if part.startswith("m16n8k"))[6:])
    kind = of.op[-3]
    d, a, b, c = (operands(each[1:-1]) for each in of.args[:4])
    row, column = LANE // 4, LANE % 4

    def values(register: Lanes) -> list[tuple[int, Lanes]]:
        """Elements of a register along the depth, each with its offset."""
        if kind == "tf32":
            return [(0, (register & U32(0xFFFFE000)).view(np.float32))]
        return list(enumerate(decode(f"{kind}x2", register)))

    step = 1 if kind == "tf32" else 2  # elements of a register
    stride = 4 * step  # of the depth, from one register to the next

    def multiply(*registers: Lanes) -> tuple[Lanes, ...]:
        first, second, summand = np.zeros((16, depth)), np.zeros((depth, 8)), np.zeros((16, 8))
        for index in range(len(a)):
            for offset, value in values(registers[index]):
                first[row + 8 * (index % 2), column * step + stride * (index // 2) + offset] = value
        for index in range(len(b)):
            for offset, value in values(registers[len(a) + index]):
                second[column * step + stride * index + offset, row] = value
        for index in range(4):
            at = row + 8 * (index // 2), column * 2 + index % 2
            summand[at] = registers[len(a) + len(b) + index].view(np.float32)
        result = (first @ second + summand).astype(np.float32)
        return tuple(result[row + 8 * (i // 2), column * 2 + i % 2] for i in range(4))

    reads = tuple((register, "b32") for register in (*a, *b, *c))
    return Meaning(tuple((register, "f32") for register in d), reads, multiply)


_SPECIAL: dict[str, Callable[[Instruction], Meaning]] = {
    "mov": _move,
    "cvta": _move,
    "cvt": _convert,
    "setp": _set_predicate,
    "selp": _select,
    "shf": _funnel,
    "bfe": _extract,
    "prmt": _permute,
    "lop3": _logic,
    "shfl": _shuffle,
    "mma": _multiply,
}
