"""Plain numbers in the place of symbolic sizes, so that a chain of calls can be run on indices.

What holds for one size has to hold for all that the compiled code may meet. So whatever of a size is no
polynomial of the symbols, a floor division, a minimum, a remainder, has a number of its own, as a symbol has:
sizes that are equal then are the same polynomial of these, and equal on either side of every corner.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import Any

import sympy  # type: ignore[import-untyped]
import torch
from torch import fx
from torch.fx.node import map_aggregate
from torch.utils._sympy.functions import FloatPow, FloatTrueDiv, IntTrueDiv, PowByNatural, ToFloat

from .graph import expression_of, value

# Two sets: a product of numbers may be right for one of them by a coincidence. Larger ones would only take
# more memory.
LEAST = 211, 401
ATTEMPTS = 64
SMOOTH = (sympy.Add, sympy.Mul, sympy.Pow, ToFloat, IntTrueDiv, FloatTrueDiv, PowByNatural, FloatPow)


class Sizes:
    """Numbers for the symbols of one graph, so that what is right by a coincidence of sizes does not pass.

    No two symbols have a number in common, no number is a factor of one that stands in the graph, and sizes
    that are made of symbols differ from each other and from the other sizes.

    Args:
        graph: The symbols' graph.
        least: The numbers are primes from here on, one of `LEAST`.
    """

    def __init__(self, graph: fx.Graph, least: int = LEAST[0]) -> None:
        self._graph = graph
        self._least = least
        self._numbers: dict[Any, int] | None = None

    def __call__(self, size: Any) -> Any:
        """The stand-in of an int, SymInt or float, or of a tuple of them."""
        if isinstance(size, (tuple, list)):
            numbers = [self(item) for item in size]
            return tuple(numbers) if isinstance(size, tuple) else numbers
        if not isinstance(size, (torch.SymInt, torch.SymFloat)):
            return size
        if self._numbers is None:
            self._numbers = _numbers(self._graph, self._least)
        number = expression_of(size).xreplace(self._numbers)
        return int(number) if isinstance(size, torch.SymInt) else float(number)


def is_dynamic(graph: fx.Graph) -> bool:
    """Return whether a size in the graph is symbolic."""
    return any(isinstance(size, torch.SymInt) for node in graph.nodes for size in _sizes_of(node))


def _numbers(graph: fx.Graph, least: int) -> dict[Any, int]:
    """A prime for each symbol, and for each part of a size that is no polynomial of them."""
    sizes = {
        size for node in graph.nodes for size in (*_constants_of(node), *map(expression_of, _sizes_of(node)))
    }
    parts_of = {size: _parts(size) for size in sizes}
    parts = {part for found in parts_of.values() for part in found}
    known = {size for size, found in parts_of.items() if not found and size > 1}
    # Each polynomial once, however it is written.
    made = {sympy.expand(size) for size, found in parts_of.items() if found and size.is_integer}
    primes = _primes(least)
    for _ in range(ATTEMPTS):
        free = (prime for prime in primes if all(size % prime for size in known))
        numbers = {part: sympy.Integer(next(free)) for part in sorted(parts, key=str)}
        values = {expression.xreplace(numbers) for expression in made}
        if len(values) == len(made) and known.isdisjoint(values):
            return numbers
    raise ArithmeticError("symbolic sizes that no numbers keep apart")


def _parts(expression: Any) -> set[Any]:
    """The symbols and the other parts that an expression is a smooth function of."""
    if expression.is_number:
        return set()
    if not isinstance(expression, SMOOTH):
        return {expression}
    return {part for argument in expression.args for part in _parts(argument)}


def _sizes_of(node: fx.Node) -> list[Any]:
    """Sizes of a node's value, or the size that it is."""
    seen = value(node)
    if isinstance(seen, torch.Tensor):
        return list(seen.shape)
    return [seen] if isinstance(seen, (torch.SymInt, torch.SymFloat)) else []


def _constants_of(node: fx.Node) -> list[Any]:
    found: list[Any] = []

    def note(argument: Any) -> Any:
        if isinstance(argument, (int, float)) and argument == argument // 1:
            found.append(expression_of(int(argument)))
        return argument

    map_aggregate((node.args, node.kwargs), note)
    return found


def _primes(least: int) -> Iterator[int]:
    """All primes from some number on."""
    return (n for n in count(least) if all(n % d for d in range(2, int(n**0.5) + 1)))
