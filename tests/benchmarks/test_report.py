"""`python -m benchmarks report`: the page, its figures, and the results that they are made from."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from benchmarks.__main__ import main
from benchmarks.evidence import charts, report
from benchmarks.evidence.charts import Chart
from benchmarks.network import figures as network_figures
from benchmarks.op import figures, sites
from benchmarks.shared.context import DOCS, RESULTS
from benchmarks.shared.document import save

MACHINE = {"gpu": "NVIDIA H200", "driver": "570.1", "torch": "2.11.0", "triton": "3.6.0", "cpu": "EPYC"}
HEAD = {"machine": MACHINE, "date": "2026-11-23 10:00 UTC", "left_out": []}
OP_US = {"copy": [100.0], "inductor": [200.0], "op": [105.0], "compiled": [100.0]}


def network_document(ours_us: float = 101.0) -> dict[str, Any]:
    us = {"eca/inductor": [124.0], "plain/inductor": [100.0], "eca/ours": [ours_us]}
    row = {
        "family": "ecaresnet50d", "direction": "inference", "layout": "channels_last", "batch": 128,
        "size": 224, "dtype": "bf16", "status": "ok", "checks": {}, "errors": {}, "left_out": [],
        "parameters": {"eca": 25_576_350, "plain": 25_576_270}, **network_figures.figures(us, 128),
    }  # fmt: skip
    return {"command": "network", **HEAD, "rows": [row]}


def op_document(*directions: str) -> dict[str, Any]:
    rows = [
        figures.record(
            row, "tile", status="ok", plan="block", errors={}, checks={}, results=figures.figures(row, OP_US)
        )
        for batch in (128, 8)
        for row in sites.rows(
            [(256, 56, 56), (512, 28, 28)], [batch], variants=["eca"], directions=directions or ("forward",)
        )
    ]
    return {"command": "op", **HEAD, "rows": rows}


def write(folder: Path, **documents: Any) -> Path:
    for name, document in documents.items():
        path = folder / "nvidia-h200-2026-11-23" / f"{name}.json"
        save(document, path)
    return folder


class TestCharts:
    def test_the_tax_in_time_has_a_dot_for_stock_and_one_for_ours(self) -> None:
        chart = charts.tax_in_time(network_document())
        assert chart is not None
        ((panel,),) = chart.panels
        assert (panel.title, panel.labels) == ("inference, channels-last", ["ecaresnet50d"])
        assert panel.series == {"stock": [0.24], "ours": [0.01]}
        assert "inductor +24.0%, ours +1.0%" in chart.alt

    def test_shapes_of_one_batch_the_largest_first(self) -> None:
        chart = charts.share_of_copy(op_document())
        assert chart is not None
        assert [[panel.title for panel in row] for row in chart.panels] == [
            ["ECA, channels-last"],
            ["ECA, contiguous"],
        ]
        panel = chart.panels[0][0]
        assert panel.labels == ["256x56x56", "512x28x28"]
        assert panel.series == {"inductor": [0.5, 0.5], "op": [0.9524, 0.9524], "compiled": [1.0, 1.0]}
        ratio = charts.ratio_to_inductor(op_document())
        assert ratio is not None
        assert ratio.panels[0][0].series == {"op": [1.9048] * 2, "compiled": [2.0] * 2}, (
            "max-autotune: no dot"
        )

    def test_either_direction_has_files_of_its_own(self) -> None:
        found = report.drawn({"op": [op_document(), op_document("backward", "both")]})
        assert [chart.name for chart in found] == [
            "bandwidth-nvidia-h200", "bandwidth-nvidia-h200-training", "ratio-nvidia-h200",
            "ratio-nvidia-h200-training",
        ]  # fmt: skip

    def test_without_figures_there_is_no_chart(self) -> None:
        failed = op_document()
        for row in failed["rows"]:
            row["status"] = "FAIL"
            del row["results"]
        assert charts.share_of_copy(failed) is None
        assert charts.tax_in_time({"command": "network", **HEAD, "rows": []}) is None

    @pytest.mark.parametrize("change", ["figure", "title"])
    def test_a_digest_tells_charts_apart(self, change: str) -> None:
        one, other = charts.tax_in_time(network_document()), charts.tax_in_time(network_document(102.0))
        assert one is not None
        assert other is not None
        if change == "title":
            other = Chart(**{**vars(one), "title": "another"})
        assert one.digest() != other.digest()


class TestPage:
    def test_says_not_measured_and_nothing_else_without_results(self) -> None:
        text = report.page({})
        assert text.count(report.NOT_MEASURED) == 4
        assert text.count("goal not measured") == 3
        assert "<picture>" not in text
        assert "Not counted." in text

    def test_has_goals_tables_and_figures_of_what_was_measured(self) -> None:
        text = report.page({"network": [network_document()], "op": [op_document()]})
        assert (
            "- goal met: ecaresnet50d on an H200: ECA tax in compiled inference at most 2 %: +1.0 %" in text
        )
        assert "- goal met: op at least 0.90 of copy bandwidth" in text
        assert "| ecaresnet50d | inference | channels-last | ours |" in text
        assert "| 128x256x56x56 | channels-last | ECA |" in text
        assert "| 8x256x56x56" not in text
        for name in ("tax-time", "bandwidth", "ratio"):
            assert f'srcset="figures/{name}-nvidia-h200-dark.svg"' in text
        assert text.count(report.NOT_MEASURED) == 2, "host and compile"

    def test_the_newest_results_of_a_gpu_count(self, tmp_path: Path) -> None:
        old = tmp_path / "old" / "network.json"
        save({**network_document(140.0), "date": "2026-11-01 10:00 UTC"}, old)
        write(tmp_path, network=network_document())
        (document,) = report.load(sorted(tmp_path.glob("*/*.json")))["network"]
        assert document["date"] == HEAD["date"]


class TestCommand:
    def test_draws_each_chart_for_light_and_dark_pages_alike_every_time(
        self, tmp_path: Path, capsys: Any
    ) -> None:
        pytest.importorskip("matplotlib")
        write(tmp_path / "results", network=network_document())
        arguments = ["report", "--results", str(tmp_path / "results"), "--docs", str(tmp_path)]
        assert main(arguments) == 0
        files = {path.name: path.read_text() for path in (tmp_path / "figures").iterdir()}
        assert set(files) == {"tax-time-nvidia-h200-light.svg", "tax-time-nvidia-h200-dark.svg"}
        assert all("ecaresnet50d" in text and "-//W3C//DTD SVG" in text for text in files.values())
        assert main(arguments) == 0
        assert files == {path.name: path.read_text() for path in (tmp_path / "figures").iterdir()}
        assert "goal met" in capsys.readouterr().out

    def test_a_missed_goal_is_an_exit_code(self, tmp_path: Path, capsys: Any) -> None:
        pytest.importorskip("matplotlib")
        write(tmp_path / "results", network=network_document(110.0))
        assert main(["report", "--results", str(tmp_path / "results"), "--docs", str(tmp_path)]) == 1
        assert "goal MISSED: ecaresnet50d on an H200: ECA tax" in capsys.readouterr().out

    def test_without_matplotlib_nothing_is_written(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
    ) -> None:
        monkeypatch.setattr("benchmarks.evidence.report_command.find_spec", lambda name: None)
        assert main(["report", "--docs", str(tmp_path)]) == 2
        assert "pip install 'eca_triton[plot]'" in capsys.readouterr().out
        assert not list(tmp_path.iterdir())


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_results_that_git_does_not_have_do_not_count(tmp_path: Path) -> None:
    write(tmp_path, network=network_document(), op=op_document())
    assert report.committed(tmp_path)[1] == [], "without a repository all count, as in an archive of one"
    kept, changed = sorted(tmp_path.glob("*/*.json"))

    def git(*arguments: str) -> None:
        subprocess.run(["git", "-C", str(tmp_path), *arguments], check=True, capture_output=True)

    git("init")
    assert report.committed(tmp_path) == ([], [kept, changed])
    git("add", ".")
    assert report.committed(tmp_path) == ([], [kept, changed]), "what is only staged"
    git("-c", "user.name=one", "-c", "user.email=one@example.org", "commit", "-m", "results")
    assert report.committed(tmp_path) == ([kept, changed], [])
    changed.write_text(json.dumps({"command": "op", "rows": []}))
    assert report.committed(tmp_path) == ([kept], [changed])
    git("add", ".")
    assert report.committed(tmp_path) == ([kept], [changed]), "a change that is only staged"


class TestThisCheckout:
    """If these fail, run `python -m benchmarks report`."""

    def test_the_page_is_that_of_the_results(self) -> None:
        documents = report.load(report.committed(RESULTS)[0])
        assert (DOCS / "results.md").read_text() == report.page(documents)

    def test_the_figures_are_those_of_the_results(self) -> None:
        for chart in report.drawn(report.load(report.committed(RESULTS)[0])):
            for theme in ("light", "dark"):
                text = (DOCS / "figures" / f"{chart.name}-{theme}.svg").read_text()
                assert chart.digest() in text, f"{chart.name}-{theme}.svg is out of date"

    def test_a_figure_for_a_glance_has_some_networks_of_the_whole_one(self) -> None:
        (document,) = report.load(report.committed(RESULTS)[0])["tax"]
        some, whole = charts.tax_at_a_glance(document), charts.tax_in_bytes(document)
        assert some is not None
        assert whole is not None
        assert (some.name, whole.name, some.figures) == ("tax-bytes", "tax-bytes-all", True)
        for few, all_ in zip(some.panels[0], whole.panels[0], strict=True):
            assert few.labels == [*charts.GLANCE]
            for who, dots in few.series.items():
                assert dots == [all_.series[who][all_.labels.index(name)] for name in few.labels]
        (paper,) = report.load(report.committed(RESULTS)[0])["tax --set paper"]
        assert charts.tax_at_a_glance(paper) is None


def test_dots_that_coincide_are_called_a_tie(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from benchmarks.evidence import plots

    panel = charts.Panel("a", ["one", "two"], {"stock": [0.1, 0.2], "ours": [0.1005, -0.1]})
    for figures_too, said in ((True, ["+10 %, tie", "+20 %", "\N{MINUS SIGN}10 %"]), (False, ["tie"])):
        chart = Chart("t", "t", "t", "t", True, 0.0, [[panel]], figures_too)
        text = plots.write(chart, tmp_path)[0].read_text()
        assert [word for word in said if f">{word}</text>" in text] == said
        assert text.count("tie</text>") == 1
