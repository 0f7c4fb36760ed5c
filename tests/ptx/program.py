"""PTX as Triton writes it, read into instructions; nothing here knows what one of them does."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

_ENTRY = re.compile(r"\.visible \.entry (\w+)\((.*?)\)(.*?)\{\n(.*)\n\}", re.S)
_REGISTERS = re.compile(r"(%?\w+)(?:<(\d+)>)?")
_GUARDED = re.compile(r"@(!?)(%?\w+)\s+(.*)", re.S)


class UnknownInstructionError(Exception):
    """An opcode or operand that the interpreter has no meaning for."""


@dataclass(frozen=True)
class Instruction:
    """One instruction.

    Attributes:
        op: Its name, split at dots: ("ld", "global", "v4", "b32").
        args: Its operands, as they are written.
        guard: A predicate, and whether it is negated; None where it always runs.
        place: Line of the kernel's source: "tile.py:120".
    """

    op: tuple[str, ...]
    args: tuple[str, ...]
    guard: tuple[str, bool] | None
    place: str

    def __str__(self) -> str:
        return f"{'.'.join(self.op)} ({self.place})"


@dataclass
class Program:
    """One kernel.

    Attributes:
        name: Of its entry.
        threads: Of one program of the grid.
        params: Bytes of each parameter.
        registers: Type of each register: "pred", "b16", "b32", "f32", "b64", "f64".
        instructions: In the order of the text; labels are indices of them.
    """

    name: str
    threads: int
    params: list[int]
    registers: dict[str, str] = field(default_factory=dict)
    labels: dict[str, int] = field(default_factory=dict)
    instructions: list[Instruction] = field(default_factory=list)


def operands(text: str) -> tuple[str, ...]:
    """Split at the commas that are in no braces or brackets."""
    found, depth, start = [], 0, 0
    for at, letter in enumerate(text):
        depth += (letter in "{[") - (letter in "}]")
        if letter == "," and not depth:
            found.append(text[start:at].strip())
            start = at + 1
    return tuple(each for each in (*found, text[start:].strip()) if each)


def parse(text: str) -> Program:
    """Read the one kernel of a module.

    Raises:
        UnknownInstructionError: There is no entry, or its number of threads is not said.
    """
    entry = _ENTRY.search(text)
    threads = re.search(r"\.(?:reqntid|maxntid) (\d+)", text)
    if entry is None or threads is None:
        raise UnknownInstructionError("no .entry with .reqntid")
    # ".param .u64 .ptr .global .align 1 name"
    params = [int(bits) // 8 for bits in re.findall(r"\.param\s+\.[busf](\d+)", entry[2])]
    program = Program(entry[1], int(threads[1]), params)
    files = {
        number: name.rpartition("/")[2] for number, name in re.findall(r'\.file\s+(\d+)\s+"([^"]*)"', text)
    }
    _Reader(program, files).read(entry[4])
    return program


class _Reader:
    """Reads the body of a kernel. Inline assembly has registers of its own, in braces."""

    def __init__(self, program: Program, files: dict[str, str]) -> None:
        self.program, self.files = program, files
        self.scopes: list[dict[str, str]] = []
        self.declared = 0
        self.place = "?"

    def read(self, body: str) -> None:
        for line in body.split("\n"):
            rest = line.split("//")[0].strip()
            if location := re.match(r"\.loc\s+(\d+) (\d+)", rest):
                self.place = f"{self.files.get(location[1], '?')}:{location[2]}"
            elif re.fullmatch(r"[$\w]+:", rest):
                self.program.labels[rest[:-1]] = len(self.program.instructions)
            else:
                self._line(rest)

    def _line(self, rest: str) -> None:
        """One line may hold several statements, and open and close scopes."""
        while rest:
            if rest[0] == "{":
                self.scopes.append({})
                rest = rest[1:].strip()
            elif rest[0] == "}":
                self.scopes.pop()
                rest = rest[1:].strip()
            else:
                statement, _, rest = (part.strip() for part in rest.partition(";"))
                self._statement(statement)

    def _statement(self, statement: str) -> None:
        if statement.startswith(".reg"):
            _, kind, names = statement.split(None, 2)
            for name in operands(names):
                self._declare(name, kind[1:])
        elif statement and not statement.startswith("."):  # .pragma and its like
            for scope in self.scopes:
                for name, unique in scope.items():
                    statement = re.sub(rf"(?<![\w%]){re.escape(name)}(?!\w)", unique, statement)
            guarded = _GUARDED.match(statement)
            guard = (guarded[2], guarded[1] == "!") if guarded else None
            op, *args = (guarded[3] if guarded else statement).split(None, 1)
            self.program.instructions.append(
                Instruction(tuple(op.split(".")), operands(args[0]) if args else (), guard, self.place)
            )

    def _declare(self, name: str, kind: str) -> None:
        matched = _REGISTERS.fullmatch(name)
        if matched is None:
            raise UnknownInstructionError(f"register {name}")
        if matched[2] is not None:
            self.program.registers |= {f"{matched[1]}{index}": kind for index in range(int(matched[2]))}
            return
        self.declared += 1
        unique = f"{name}__{self.declared}" if self.scopes else name
        if self.scopes:
            self.scopes[-1][name] = unique
        self.program.registers[unique] = kind
