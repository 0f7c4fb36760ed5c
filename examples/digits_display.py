"""What train_digits.py shows: bars while it trains, lines of text without a terminal, and the plot."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from train_digits import Run

INK, MUTED, RULE, PAPER = "#1f2328", "#6e7781", "#d8dee4", "#ffffff"
STOCK, LOWERED = ("#c3cad2", "#98a2ad", "#6b7681"), "#d9480f"


@contextmanager
def progress(names: Sequence[str], steps: int) -> Iterator[Callable[[Run], None]]:
    """A function to call after each step and test: bars on a terminal with rich, else a line per test."""
    try:
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
    except ImportError:
        yield plain
        return
    if not sys.stdout.isatty():
        yield plain
        return
    columns = (
        TextColumn("{task.description:<15}"),
        BarColumn(32, complete_style="grey62", finished_style="green"),
        TextColumn("{task.percentage:>3.0f} %  {task.fields[state]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns) as bars:
        tasks = {name: bars.add_task(name, total=steps, start=False, state="waiting") for name in names}

        def show(run: Run) -> None:
            task = tasks[run.name]
            bars.start_task(task)
            bars.update(task, completed=len(run.losses), state=state(run))

        yield show


def state(run: Run) -> str:
    """Loss and accuracy as far as they are known."""
    if not run.losses:
        return "compiling"
    accuracy = f"{100 * run.accuracies[-1]:5.1f} %" if run.accuracies else "    ?"
    return f"loss {run.losses[-1]:.4f}  test {accuracy}"


def plain(run: Run) -> None:
    """A line after each test."""
    if not run.losses:
        print(f"{run.name}: compiling", flush=True)
    elif run.tested:
        print(f"{run.name:<15} epoch {len(run.accuracies):2d}  {state(run)}", flush=True)


def draw(stock: Sequence[Run], lowered: Run, title: str, subtitle: str, target: float, path: Path) -> None:
    """Losses, their differences and test accuracies over the epochs, into the file `path`."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    plt.rcParams.update(
        {"font.size": 10, "axes.edgecolor": RULE, "text.color": INK, "svg.hashsalt": "train_digits"}
        | {"axes.spines.top": False, "axes.spines.right": False, "xtick.color": MUTED, "ytick.color": MUTED}
        | {"axes.grid": True, "axes.grid.axis": "y", "grid.color": "#eff2f5", "axes.axisbelow": True}
    )
    figure, (loss, drift, test) = plt.subplots(1, 3, figsize=(13, 4.7), facecolor=PAPER)
    figure.subplots_adjust(left=0.05, right=0.975, top=0.74, bottom=0.12, wspace=0.2)
    figure.text(0.018, 0.925, title, size=16, weight="bold")
    figure.text(0.018, 0.865, subtitle, color=MUTED)

    epochs = len(lowered.accuracies)
    steps = np.arange(1, len(lowered.losses) + 1) * epochs / len(lowered.losses)
    tests = np.arange(1, epochs + 1)
    # Wide below, narrow on top: curves that coincide are all seen.
    styles = [(run, color, width) for run, color, width in zip(stock, STOCK, (6.0, 4.0, 2.4), strict=True)]
    styles.append((lowered, LOWERED, 1.2))
    for run, color, width in styles:
        line = {"color": color, "linewidth": width, "solid_capstyle": "round"}
        loss.plot(steps, run.losses, **line)
        test.plot(tests, 100 * np.array(run.accuracies), marker="o", markersize=width + 2, **line)
        if run is not stock[0]:
            differences = np.abs(np.array(run.losses) / np.array(stock[0].losses) - 1)
            drift.plot(steps, np.maximum.accumulate(np.maximum(differences, 2.0**-24)), **line)
    loss.set_yscale("log")
    drift.set_yscale("log")
    test.set_ylim(max(0.0, min(100 * target - 5, 100 * sorted(lowered.accuracies)[epochs // 4] - 3)), 100.6)
    test.axhline(100 * target, color=MUTED, linewidth=1, dashes=(4, 3))
    test.text(epochs, 100 * target - 0.15, f"{100 * target:.0f} % asked", color=MUTED, ha="right", va="top")
    heads = ("Training loss", "Largest relative difference from stock so far", "Test accuracy, %")
    for axes, head in zip((loss, drift, test), heads, strict=True):
        axes.set_title(head, loc="left", size=11, pad=10)
        axes.set_xlabel("epoch", color=MUTED)
        axes.set_xlim(0, epochs * 1.02)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.tick_params(length=0, which="both")
    label = {"ha": "right", "va": "top", "transform": loss.transAxes}
    loss.text(0.97, 0.97, "stock, three orders of summation", color=STOCK[-1], **label)
    loss.text(0.97, 0.90, "lowered by eca_triton", color=LOWERED, **label)
    label = {"ha": "right", "va": "bottom", "transform": drift.transAxes}
    drift.text(0.97, 0.10, "stock, another order", color=STOCK[-1], **label)
    drift.text(0.97, 0.03, "lowered by eca_triton", color=LOWERED, **label)
    figure.savefig(path, dpi=160, facecolor=PAPER, metadata={"Date": None} if path.suffix == ".svg" else None)
    plt.close(figure)
