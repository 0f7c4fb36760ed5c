"""A search's progress and its best time so far: by rich on a terminal, where installed, else in lines."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TextIO

from ..tuning.config import Choice
from .search import Outcome, Task, name_of


class Progress(Protocol):
    """Listener to a search."""

    def begin(self, task: Task, candidates: int) -> None:
        """The next key's candidates are compiled."""

    def tried(self, choice: Choice, time_us: float, best_us: float) -> None:
        """One of them was timed; the least of the key so far."""

    def end(self, outcome: Outcome) -> None:
        """The key is done."""


@contextmanager
def shown(tasks: int, out: TextIO) -> Iterator[Progress]:
    """Progress through so many keys, written to `out`."""
    bar = _rich(out) if out.isatty() else None
    if bar is None:
        yield Lines(tasks, out)
        return
    with bar:
        yield Bar(tasks, bar)


class Lines:
    """A line when a key begins, for every better time, and when the key is done."""

    def __init__(self, tasks: int, out: TextIO) -> None:
        self.tasks, self.out = tasks, out
        self.number = 0

    def begin(self, task: Task, candidates: int) -> None:
        """See `Progress`."""
        self.number += 1
        self._say(f"{self.number}/{self.tasks} {task.key}: {candidates} candidates")

    def tried(self, choice: Choice, time_us: float, best_us: float) -> None:
        """See `Progress`."""
        if time_us == best_us:
            self._say(f"  {time_us:8.1f} us  {name_of(choice)}")

    def end(self, outcome: Outcome) -> None:
        """See `Progress`."""
        self._say(f"  {summary(outcome)}")

    def _say(self, text: str) -> None:
        self.out.write(text + "\n")
        self.out.flush()


class Bar:
    """Two bars, of the keys and of the candidates of one; done keys are lines above them."""

    def __init__(self, tasks: int, bar: Any) -> None:
        self.bar = bar
        self.keys = bar.add_task("keys", total=tasks)
        self.candidates = bar.add_task("", total=None)

    def begin(self, task: Task, candidates: int) -> None:
        """See `Progress`."""
        self.bar.reset(self.candidates, total=candidates, description=f"{task.key}: compiling")

    def tried(self, choice: Choice, time_us: float, best_us: float) -> None:
        """See `Progress`."""
        self.bar.update(self.candidates, advance=1, description=f"best {best_us:.1f} us")

    def end(self, outcome: Outcome) -> None:
        """See `Progress`."""
        self.bar.console.print(f"{outcome.task.key}: {summary(outcome)}", markup=False, highlight=False)
        self.bar.update(self.keys, advance=1)


def summary(outcome: Outcome) -> str:
    """Return what became of a key, in one line."""
    if outcome.choice is None:
        return "no candidate computes the right result; nothing is written"
    if outcome.heuristic_us is None:
        return f"the heuristic's choice fails ({outcome.problem}); nothing is written"
    times = f"{outcome.heuristic_us:.1f} us by the heuristic"
    if outcome.entry is None:
        return f"{times}, which stays: {outcome.timed} timed, none faster by more than noise"
    return f"{times} -> {outcome.time_us:.1f} us ({outcome.gain:.1%} less) with {name_of(outcome.choice)}"


def _rich(out: TextIO) -> Any:
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
    except ImportError:
        return None
    text = TextColumn("{task.description}", markup=False)
    columns = text, BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    return Progress(*columns, console=Console(file=out))
