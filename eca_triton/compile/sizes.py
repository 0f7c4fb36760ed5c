"""Plain numbers in the place of symbolic sizes, so that a chain of calls can be run on indices."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import Any

import torch
from torch import fx
from torch.fx.node import map_aggregate

from .graph import value

LEAST = 211
ATTEMPTS = 8  # to keep all sizes apart; two that are equal for every number are the same size


class Sizes:
    """Numbers for the symbols of one graph, so that what is right by a coincidence of sizes does not pass.

    No two symbols have a number in common, no number is a factor of one that stands in the graph, and sizes
    that are made of symbols differ from each other and from the other sizes.

    Args:
        graph: The symbols' graph.
        even: Stand-ins are even, not odd: sizes that differ for one of both differ for one of the stand-ins.
    """

    def __init__(self, graph: fx.Graph, even: bool = False) -> None:
        self._graph = graph
        self._even = even
        self._numbers: dict[Any, int] | None = None

    def __call__(self, size: Any) -> Any:
        """The stand-in of an int, SymInt or float, or of a tuple of them."""
        if isinstance(size, (tuple, list)):
            numbers = [self(item) for item in size]
            return tuple(numbers) if isinstance(size, tuple) else numbers
        if not isinstance(size, (torch.SymInt, torch.SymFloat)):
            return size
        if self._numbers is None:
            self._numbers = _numbers(self._graph, 2 if self._even else 1)
        number = size.node.expr.subs(self._numbers)
        return int(number) if isinstance(size, torch.SymInt) else float(number)


def is_dynamic(graph: fx.Graph) -> bool:
    """Whether a size in the graph is symbolic."""
    return any(isinstance(size, torch.SymInt) for node in graph.nodes for size in _sizes_of(node))


def _numbers(graph: fx.Graph, factor: int) -> dict[Any, int]:
    """A number for each symbol: a prime times `factor`."""
    sizes = [size for node in graph.nodes for size in (*_sizes_of(node), *_constants_of(node))]
    expressions = {size.node.expr for size in sizes if not isinstance(size, int)}
    known = {size for size in sizes if isinstance(size, int) and size > 1}
    symbols = sorted({symbol for expression in expressions for symbol in expression.free_symbols}, key=str)
    primes = _primes()
    for _ in range(ATTEMPTS):
        free = (prime for prime in primes if all(size % prime for size in known))
        numbers = {symbol: factor * next(free) for symbol in symbols}
        made = [expression.subs(numbers) for expression in expressions]
        if len(set(made)) == len(made) and known.isdisjoint(made):
            break
    return numbers


def _sizes_of(node: fx.Node) -> list[Any]:
    """Sizes of a node's value, or the size that it is."""
    seen = value(node)
    if isinstance(seen, torch.Tensor):
        return list(seen.shape)
    return [seen] if isinstance(seen, (torch.SymInt, torch.SymFloat)) else []


def _constants_of(node: fx.Node) -> list[int]:
    found: list[int] = []

    def note(argument: Any) -> Any:
        if isinstance(argument, (int, float)) and argument == argument // 1:
            found.append(int(argument))
        return argument

    map_aggregate((node.args, node.kwargs), note)
    return found


def _primes() -> Iterator[int]:
    """All primes from LEAST on: larger stand-ins would only take more memory."""
    return (n for n in count(LEAST) if all(n % d for d in range(2, int(n**0.5) + 1)))
