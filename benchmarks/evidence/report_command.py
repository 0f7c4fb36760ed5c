"""`python -m benchmarks report`: the page of results and its figures."""

from __future__ import annotations

import argparse
from importlib.util import find_spec
from pathlib import Path

from ..shared.context import DOCS, NOTHING_MEASURED, RESULTS, Context
from . import plots, report


def add_to(parser: argparse.ArgumentParser) -> None:
    """The arguments."""
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of folders of JSON")
    parser.add_argument("--docs", type=Path, default=DOCS, help="where results.md and figures/ are written")


def run(options: argparse.Namespace, context: Context) -> int:
    """Write, and say which goals are met; exit code 1 if one is missed."""
    if find_spec("matplotlib") is None:
        context.say("nothing was written: matplotlib is not installed; pip install 'eca_triton[plot]'")
        return NOTHING_MEASURED
    files, others = report.committed(options.results)
    documents = report.load(files)
    written = [
        path for chart in report.drawn(documents) for path in plots.write(chart, options.docs / "figures")
    ]
    text = report.page(documents)
    (options.docs / "results.md").write_text(text)
    verdicts = [line.removeprefix("- ") for line in text.splitlines() if line.startswith("- goal ")]
    for line in (
        *verdicts,
        *(f"left out, for it is not committed: {path}" for path in others),
        f"written to {options.docs / 'results.md'}, with {len(written)} figures",
    ):
        context.say(line)
    return int(any(line.startswith("goal MISSED") for line in verdicts))
