"""On a terminal of 80 columns nothing is wider, no word is broken, and progress leaves nothing behind."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import pytest
from own_model import OWN_MODEL

from eca_triton.report import explain
from eca_triton.report.text import write
from eca_triton.util.progress import CLEAR, Progress
from eca_triton.util.tables import plain_table, wrapped, write_table


class Terminal(io.StringIO):
    """Text that goes to a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("NO_COLOR", "1")


PAINT = re.compile(r"\x1b\[[0-9;]*m")


@pytest.mark.parametrize("rich", [True, False], ids=["rich", "plain"])
def test_a_table_fits_and_keeps_its_words(rich: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not rich:
        monkeypatch.setitem(__import__("sys").modules, "rich.console", None)
    columns = ("site", "absorbed", "before")
    rows = [
        ("layer1.0.se", "convolution, batch_norm, residual, activation, and a few more words", "5.00"),
        ("layer10.10.attention.module", "batch_norm", "-"),
        ("one_word_that_is_longer_than_the_whole_terminal_is_wide" * 2, "", "7"),
    ]
    for some, fits in ((rows[:2], True), (rows, False)):
        out = Terminal()
        write_table(columns, some, out, {"before"})
        shown = PAINT.sub("", out.getvalue())
        assert (max(map(len, shown.splitlines())) <= 80) == fits
        assert sorted(shown.split()) == sorted(plain_table(columns, some).split())


def test_a_line_is_broken_at_spaces_and_indented() -> None:
    line = "    " + "some-words and " * 10
    assert [each[:6] for each in wrapped(line, 40).splitlines()[:2]] == ["    so", "      "]
    assert max(map(len, wrapped(line, 40).splitlines())) <= 40
    assert wrapped(line, 40).split() == line.split()
    assert wrapped(line, None) == line


def test_a_report_fits(tmp_path: Path) -> None:
    namespace: dict[str, Any] = {}
    exec(OWN_MODEL, namespace)
    model, images = namespace["network"]()
    narrow, wide = Terminal(), io.StringIO()
    report = explain(model, images, target="none")
    write(report, narrow)
    write(report, wide)
    shown = PAINT.sub("", narrow.getvalue())
    assert sorted(shown.split()) == sorted(wide.getvalue().split()), "the same words"
    too_wide = [line for line in shown.splitlines() if len(line) > 80]
    assert all(len(line.split()) <= 2 for line in too_wide), "only a path may be wider"


def test_progress_is_redrawn_on_a_terminal_and_lines_elsewhere() -> None:
    terminal, pipe = Terminal(), io.StringIO()
    for out in (terminal, pipe):
        with Progress(out) as progress:
            progress("tracing")
            progress("lowering")
    assert re.fullmatch(r"\[\d s\] tracing \.\.\.\n\[\d s\] lowering \.\.\.\n", pipe.getvalue())
    assert terminal.getvalue().count(CLEAR) == 3
    assert terminal.getvalue().endswith(CLEAR)
    assert "\n" not in terminal.getvalue()
