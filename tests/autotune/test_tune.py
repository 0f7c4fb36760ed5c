"""What a search finds is shown and written, key by key, and is not lost where nothing can be written."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from autotune_machine import H200, Bench, faster, plain, task

from eca_triton.autotune.progress import Lines, shown
from eca_triton.autotune.search import Task, name_of, tasks_of
from eca_triton.autotune.tune import tune
from eca_triton.tuning import files, store
from eca_triton.tuning.candidates import candidates


def test_every_result_is_written_as_soon_as_it_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = tasks_of({plain(): 1, plain((2, 128, 8, 8)): 1}, H200)
    path, tables = tmp_path / "tuned.json", []
    winners = {name_of(candidates(each.problem)[1]) for each in (first, second)}
    monkeypatch.setenv("TRITON_PRINT_AUTOTUNING", "1")

    class Watching(Lines):
        def begin(self, task: Task, number: int) -> None:
            tables.append(store.load(path)[0] if path.exists() else {})
            super().begin(task, number)

    out, said = io.StringIO(), io.StringIO()
    bench = Bench(lambda name: 50.0 if name in winners else 100.0)
    outcomes, *unsaved = tune([first, second], bench.machine(), Watching(2, said), out, path)
    assert unsaved == [{}, ""]
    table, problems = store.load(path)
    assert [set(each) for each in (*tables, table)] == [set(), {first.key}, {first.key, second.key}]
    assert not problems
    assert table[first.key].choice == outcomes[0].choice
    assert (table[first.key].time_us, table[first.key].heuristic_us) == (50.0, 100.0)
    assert f"best config selected: {name_of(outcomes[1].choice)};" in out.getvalue()
    assert f"2/2 {second.key}" in said.getvalue()
    assert "100.0 us by the heuristic -> 50.0 us (50.0% less)" in said.getvalue()


@pytest.mark.parametrize(
    "error", [OSError("disk full"), NotImplementedError("no locks"), ValueError()], ids=repr
)
def test_what_could_not_be_saved_is_told_and_saved_with_the_next_key(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tasks = tasks_of({plain((2, channels, 8, 8)): 1 for channels in (64, 128)}, H200)
    winners = {name_of(candidates(each.problem)[1]) for each in tasks}
    bench = Bench(lambda name: 50.0 if name in winners else 100.0)
    path, saved = tmp_path / "tuned.json", []

    def save(entries, *, path):
        saved.append([*entries])
        if len(saved) <= failures:
            raise error
        return store.save(entries, path=path)

    monkeypatch.setattr("eca_triton.autotune.tune.save", save)
    keys, said = [each.key for each in tasks], io.StringIO()
    failures = 1
    _, *unsaved = tune(tasks, bench.machine(), Lines(2, said), said, path)
    assert unsaved == [{}, ""]
    assert saved == [keys[:1], keys]
    assert store.load(path)[0].keys() == {*keys}
    assert f"not saved yet: {keys[0]} ({error.args[0] if error.args else 'ValueError'})" in caplog.text
    failures = 4
    outcomes, unsaved, problem = tune(tasks, bench.machine(), Lines(2, said), said, path)
    assert unsaved == {each.task.key: each.entry for each in outcomes}
    assert problem


def test_a_search_goes_on_while_another_process_holds_the_tables_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "LOCK_SECONDS", 0.05)
    path, said, each = tmp_path / "tuned.json", io.StringIO(), task()
    bench = Bench(faster(candidates(each.problem)[1]))
    with files.locked(path):
        outcomes, unsaved, problem = tune([each], bench.machine(), Lines(1, said), said, path)
    assert unsaved == {each.key: outcomes[0].entry}
    assert "lock" in problem
    assert not path.exists()


def test_on_a_terminal_bars_show_the_best_time_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("rich", reason="bars are drawn by rich")
    monkeypatch.setenv("COLUMNS", "300")

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    out = Terminal()
    with shown(1, out) as progress:
        outcomes, *_ = tune([task()], Bench().machine(), progress, io.StringIO())
    assert str(outcomes[0].task.key) in out.getvalue()
    assert "best 100.0 us" in out.getvalue()
    assert "100.0 us by the heuristic, which stays" in out.getvalue()
