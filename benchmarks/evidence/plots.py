"""Charts as SVG, for light and for dark pages, by matplotlib: the same bytes for the same data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from .charts import Chart, Panel

if TYPE_CHECKING:
    from matplotlib.axes import Axes

THEMES = {
    "light": {"text": "#1f2328", "grid": "#d1d9e0", "back": "#ffffff"},
    "dark": {"text": "#f0f6fc", "grid": "#3d444d", "back": "#0d1117"},
}
# Told apart also without colour: by their marks.
SERIES: dict[str, tuple[str, str]] = {
    "stock": ("#d1762e", "o"),
    "inductor": ("#d1762e", "o"),
    "max-autotune": ("#8f6fd8", "s"),
    "ours": ("#2f81f7", "D"),
    "compiled": ("#2f81f7", "D"),
    "op": ("#3fa66b", "^"),
    "SE": ("#8f6fd8", "s"),
    "CBAM": ("#3fa66b", "^"),
    "ECA, stock": ("#d1762e", "o"),
    "ECA, ours": ("#2f81f7", "D"),
}
SIZE, RING = 22, 0.5  # of a dot, in points squared; how much larger each is below the one above
TIE = 0.002  # of a share: dots so near are one, and are called so
LINE_INCHES, PANEL_INCHES, LEAST_INCHES, HEAD_INCHES = 0.21, 4.6, 6.4, 1.15


def write(chart: Chart, folder: Path) -> list[Path]:
    """Draw a chart once for each theme; returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    return [_write(chart, theme, folder / f"{chart.name}-{theme}.svg") for theme in THEMES]


def _write(chart: Chart, theme: str, path: Path) -> Path:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    colours = THEMES[theme]
    settings: dict[str, Any] = {
        "svg.hashsalt": chart.name,  # else identifiers are random
        "svg.fonttype": "none",
        "font.family": "sans-serif",
        "font.size": 9,
        "axes.edgecolor": colours["grid"],
        "axes.spines.top": False,
        "axes.spines.right": False,
        **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), colours["text"]),
    }
    heights = [max(len(panel.labels) for panel in row) * LINE_INCHES + 0.5 for row in chart.panels]
    widths = max(len(row) for row in chart.panels)
    with mpl.rc_context(rc=cast(Any, settings)):
        size = max(PANEL_INCHES * widths, LEAST_INCHES), sum(heights) + HEAD_INCHES
        figure = Figure(size, layout="constrained")
        figure.set_facecolor(colours["back"])
        grid = figure.add_gridspec(len(chart.panels), widths, height_ratios=heights)
        axes: Axes | None = None
        for down, row in enumerate(chart.panels):
            for across, panel in enumerate(row):
                axes = figure.add_subplot(grid[down, across], sharex=axes)
                _draw(panel, axes, chart, colours)
        figure.suptitle(chart.title, fontweight="bold", x=0.01, horizontalalignment="left")
        figure.supxlabel(chart.axis, fontsize="medium")
        handles = {
            label: mark
            for axis in figure.axes
            for mark, label in zip(*axis.get_legend_handles_labels(), strict=True)
        }
        figure.legend(handles.values(), handles.keys(), loc="outside upper right", ncols=4, frameon=False)
        metadata = {"Date": None, "Creator": "python -m benchmarks report", "Description": chart.digest()}
        figure.savefig(path, format="svg", metadata=metadata)
    return path


def _draw(panel: Panel, axes: Axes, chart: Chart, colours: dict[str, str]) -> None:
    places = range(len(panel.labels))
    axes.set_facecolor(colours["back"])
    axes.set_title(panel.title, fontsize="medium", loc="left")
    axes.axvline(chart.bound, color=colours["text"], linewidth=0.8, linestyle=(0, (4, 3)))
    for place in places:
        dots = [dots[place] for dots in panel.series.values()]
        known = [dot for dot in dots if dot is not None]
        if known:
            axes.plot([min(known), max(known)], [place, place], color=colours["grid"], linewidth=2, zorder=1)
    for order, (name, dots) in enumerate(panel.series.items()):
        colour, mark = SERIES[name]
        there = {place: dot for place, dot in enumerate(dots) if dot is not None}
        # Where dots coincide the ones below are seen around those above.
        size = SIZE * (1 + RING * (len(panel.series) - 1 - order))
        axes.scatter(
            list(there.values()), list(there), s=size, color=colour, marker=mark, label=name, zorder=2
        )
    for place in places:
        _say(axes, place, {name: dots[place] for name, dots in panel.series.items()}, chart, colours)
    if chart.figures:
        axes.margins(x=0.26)  # for the figures
    axes.set_yticks(places, panel.labels)
    axes.set_ylim(len(panel.labels) - 0.5, -0.5)
    axes.tick_params(length=0)
    axes.grid(axis="x", color=colours["grid"], linewidth=0.5)
    axes.set_axisbelow(True)
    if chart.percent:
        axes.xaxis.set_major_formatter("{x:.0%}")


def _say(
    axes: Axes, place: int, dots: dict[str, float | None], chart: Chart, colours: dict[str, str]
) -> None:
    """Write beside the dots of a line that two are one, and where the chart wants it their figures."""
    known = sorted(dot for dot in dots.values() if dot is not None)
    if not chart.percent or len(known) < 2:
        return
    low, high = known[0], known[-1]
    tie = len(known) == 2 and high - low < TIE
    if tie or chart.figures:
        words = ", ".join(filter(None, (_percent(high) * chart.figures, "tie" * tie)))
        _beside(axes, high, place, words, 1, colours)
    if chart.figures and not tie:
        _beside(axes, low, place, _percent(low), -1, colours)


def _percent(share: float) -> str:
    text = f"{share:+.0%}" if abs(share) >= 0.005 else "0%"
    return text.replace("%", " %").replace("-", "\N{MINUS SIGN}")


def _beside(axes: Axes, x: float, place: int, words: str, side: int, colours: dict[str, str]) -> None:
    axes.annotate(
        words, (x, place), xytext=(6 * side, 0), textcoords="offset points", fontsize="small",
        color=colours["text"], verticalalignment="center",
        horizontalalignment="left" if side > 0 else "right",
    )  # fmt: skip
