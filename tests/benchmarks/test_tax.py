"""`python -m benchmarks tax`: what it counts, keeps, and says."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks.__main__ import main
from benchmarks.counted import page as tax_page
from benchmarks.counted import published, tax
from benchmarks.counted.tax import Job
from benchmarks.shared.context import COUNTED, DOCS
from benchmarks.shared.document import load, save
from benchmarks.shared.machine import describe
from benchmarks.shared.networks import NETWORKS, PAPER, attention, network, without_attention

MACHINE = {"torch": "2.14.1", "triton": "3.8.0"}
HEAD = {
    "command": "tax",
    "target": "h200",
    "batch": 128,
    "dtype": "bf16",
    "whole": False,
    **MACHINE,
    "sources": "now",
}
IN_S = {"plain": 10, "se": 13, "cbam": 15, "stock": 12, "ours": 11}
KERNELS = {"plain": 100, "se": 160, "cbam": 260, "stock": 130, "ours": 101}


def row(name: str, who: str, training: bool = False, **more: Any) -> tax.Count:
    job = Job(name, who, training, True, "default")
    counted = {"sites": 16, "plans": {}, "bytes": IN_S[who] * 10**9, "kernels": KERNELS[who], "external": 9}
    return {**job._asdict(), **counted, **({"sources": "now"} if who == "ours" else {}), **more}


class Counted:
    """In the place of `tax.count`: a pool's processes can be sent it."""

    def __call__(self, job: Job, **_: Any) -> tax.Count:
        return {**row(job.network, job.contender), "bytes": 1}


def document(*rows: tax.Count) -> dict[str, Any]:
    return {**HEAD, "rows": list(rows)}


def complete(**ours: Any) -> dict[str, Any]:
    rows = [row("ecaresnet50d", who) for who in ("plain", "stock")]
    return document(*rows, row("ecaresnet50d", "ours", **ours))


def resume(path: Path, wanted: list[Job], sources: str = "now") -> tuple[dict[str, Any], list[str]]:
    said: list[str] = []
    return tax.run(wanted, path, MACHINE, sources, 1, said.append), said


def test_the_page_has_the_tax_before_and_after() -> None:
    page = tax_page.page(complete())
    assert "## Inference, channels-last, default (1 of 23 counted): counted, not timed" in page
    assert "| ecaresnet50d | 16 | 10.00 | 12.00 | 11.00 | +20.0 % | +10.0 % | 100 | 130 | 101 |" in page
    assert "More bytes or kernels than stock: in none of these." in page
    assert (
        "Batch 128, images of 224 x 224 (eca_botnext26ts_256 256 x 256, eca_halonext26ts 256 x 256), " in page
    )
    assert "Not counted in a training step, contiguous, max-autotune: any network." in page


def test_the_papers_page_has_se_and_cbam_and_says_what_is_published_and_what_is_not_counted() -> None:
    rows = [row("eca_resnet50", who) for who in tax.SETS["paper"].contenders]
    page = tax_page.page({**document(*rows), "command": "tax --set paper"})
    assert (
        "| eca_resnet50 | 16 | 10.00 | 13.00 | 15.00 | 12.00 | 11.00 | +30.0 % | +50.0 % | +20.0 % | +10.0 % "
        "| 100 | 160 | 260 | 130 | 101 |" in page
    )
    assert "| network | sites | plain | SE | CBAM | ECA, stock | ECA, ours | tax, SE | CBAM |" in page
    others = "eca_resnet18, eca_resnet34, eca_resnet101, eca_resnet152, eca_mobilenet_v2"
    assert f"- Not counted in inference, channels-last, default: {others}." in page
    assert "- Not counted in inference, contiguous, default: any network." in page
    headings = [line for line in page.splitlines() if line.startswith("#")]
    assert [line.endswith((": counted, not timed", ", not measured here")) for line in headings] == [True] * 3
    assert "max-autotune" not in page
    assert "Batch 128, images of 224 x 224, bfloat16" in page
    assert published.table() in page
    assert published.table() not in tax_page.page(complete())


def test_ratios_of_published_figures_are_of_step_times() -> None:
    assert "| eca_resnet50 | inference | 1855 | 1620 | 1213 | 1805 | +2.8 % | +11.4 % |" in published.table()
    assert "| eca_resnet152 | training | 281 | 268 | - | 279 |" in published.table()
    assert all(networks.keys() <= PAPER.keys() for networks in published.PUBLISHED.values())


@pytest.mark.parametrize("worse", [{"bytes": 13 * 10**9}, {"kernels": 131}], ids=["bytes", "kernels"])
def test_the_page_names_what_is_more_than_stock(worse: dict[str, int]) -> None:
    assert "stock: ecaresnet50d, inference, channels-last, default." in tax_page.page(complete(**worse))


def test_a_network_with_a_contender_missing_or_failed_is_not_in_the_page() -> None:
    rows = complete()["rows"]
    failed = {**rows[2], "error": "RuntimeError: no"}
    for lacking in (rows[:2], [*rows[:2], failed]):
        assert "ecaresnet50d" not in tax_page.page(document(*lacking))


def test_what_was_counted_is_not_counted_again(tmp_path: Path) -> None:
    path = tmp_path / "tax.json"
    save(complete(), path)
    wanted = [tax.job_of(each) for each in complete()["rows"]]
    found, said = resume(path, wanted)
    assert (found["rows"], said) == (complete()["rows"], [])


def test_failures_are_tried_again(tmp_path: Path) -> None:
    path = tmp_path / "tax.json"
    rows = complete()["rows"]
    save(document({**rows[0], "error": "RuntimeError: no"}, *rows[1:]), path)
    assert [each["contender"] for each in resume(path, [])[0]["rows"]] == ["stock", "ours"]


def test_ours_of_earlier_sources_stands_until_it_is_counted_anew_and_the_page_says_so(tmp_path: Path) -> None:
    path = tmp_path / "tax.json"
    save(complete(), path)
    found, _ = resume(path, [], sources="later")
    assert found["rows"] == complete()["rows"]
    says = "1 of the 1 counts of ours were made from earlier sources"
    assert says in tax_page.page(found)
    assert says not in tax_page.page(complete())


def test_what_is_missing_is_counted_first_and_what_is_stale_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "tax.json"
    save(document(*complete()["rows"][1:]), path)
    monkeypatch.setattr(tax, "count", Counted())
    found, said = resume(path, [tax.job_of(each) for each in complete()["rows"][::-1]], sources="later")
    assert [line.split(",")[1].strip() for line in said] == ["plain", "ours"]
    counted = {each["contender"]: (each["bytes"], each.get("sources")) for each in found["rows"]}
    assert counted == {"stock": (12 * 10**9, None), "plain": (1, None), "ours": (1, "later")}


def test_another_torch_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "tax.json"
    save({**complete(), "torch": "2.11.0"}, path)
    assert resume(path, [])[0]["rows"] == []


def test_a_job_is_lowered_and_counted() -> None:
    counted = tax.count(Job("ecaresnet26t", "ours", False, True, "default"), batch=2)
    assert counted["sites"] == sum(counted["plans"].values()) == 8
    assert counted["bytes"] > 10**8
    assert counted["kernels"] > counted["external"] > 30


@pytest.mark.parametrize(
    ("contender", "inside", "backend"),
    [
        ("plain", {}, "inductor"),
        ("se", {"SE": 8}, "inductor"),
        ("cbam", {"CBAM": 8}, "inductor"),
        ("stock", {"ECA": 8}, "inductor"),
        ("ours", {"ECA": 8}, "eca_triton"),
    ],
)
def test_each_contender_is_its_own_network(
    monkeypatch: pytest.MonkeyPatch, contender: str, inside: dict[str, int], backend: str
) -> None:
    found: list[Any] = []

    def lower(model: torch.nn.Module, images: torch.Tensor, **options: Any) -> Any:
        found.append((Counter(type(each).__name__ for each in model.modules()), options["backend"]))
        return SimpleNamespace(bytes_moved=1, kernels=[], external_calls=0)

    monkeypatch.setattr("eca_triton.deviceless.lower", lower)
    counted = tax.count(Job("eca_resnet18", contender, False, True, "default"))
    ((classes, chosen),) = found
    assert {name: classes[name] for name in ("ECA", "SE", "CBAM") if classes[name]} == inside
    assert (counted["sites"], chosen) == (8, backend)


def test_what_cannot_be_lowered_leaves_a_row_that_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(tax.MODES, "default", {"no_such_option": True})
    assert "no_such_option" in tax.count(Job("ecaresnet26t", "stock", False, True, "default"))["error"]


def test_the_command_writes_the_page_of_what_was_counted(tmp_path: Path, capsys: Any) -> None:
    written, page = tmp_path / "tax.json", tmp_path / "tax.md"
    machine = describe(torch.device("cpu"))
    rows = [row("ecaresnet50d", who) for who in ("plain", "stock")]
    rows += [{**each, "channels_last": False} for each in rows]
    save({**document(*rows), "torch": machine["torch"], "triton": machine["triton"]}, written)
    wanted = ["--networks", "ecaresnet50d", "--modes", "default", "--directions", "inference"]
    where = ["--out", str(written), "--page", str(page)]
    assert main(["tax", *wanted, "--contenders", "plain", "stock", *where]) == 0
    assert f"written to {page}" in capsys.readouterr().out
    assert page.read_text().startswith("# The ECA tax")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--networks", "eca_resnet50"], "--networks must be of the set timm, got eca_resnet50"),
        (["--contenders", "se", "cbam"], "--contenders must be of the set timm, got se, cbam"),
    ],
)
def test_the_sets_are_kept_apart(tmp_path: Path, capsys: Any, arguments: list[str], says: str) -> None:
    assert main(["tax", *arguments, "--out", str(tmp_path / "tax.json")]) == 2
    assert capsys.readouterr().out.strip() == says
    assert not list(tmp_path.iterdir())


def test_a_file_of_one_set_is_not_written_by_another(tmp_path: Path) -> None:
    path = tmp_path / "tax.json"
    save(complete(), path)
    with pytest.raises(ValueError, match="tax --set paper"):
        tax.run([], path, MACHINE, "now", 1, print, command="tax --set paper")


@pytest.mark.parametrize("name", tax.SETS)
def test_the_page_is_that_of_the_counts(name: str) -> None:
    """If this fails, `python -m benchmarks tax --set NAME` writes it."""
    counted = tax.SETS[name]
    document = load(COUNTED / f"{counted.stem}.json", counted.command)
    assert (DOCS / f"{counted.stem}.md").read_text() == tax_page.page(document)


def test_what_is_committed_is_read() -> None:
    """Counts outlive the code that made them."""
    for each in tax.SETS.values():
        document = load(COUNTED / f"{each.stem}.json", each.command)
        assert tax_page.set_of(document) is each
        assert tax_page.rising(document) == []
        assert list(tax_page.lines(document, training=False, channels_last=True, mode="default"))


@pytest.mark.parametrize("name", [*NETWORKS, "eca_resnet50", "eca_mobilenet_v2"])
def test_the_twin_has_no_attention_and_is_otherwise_the_same(name: str) -> None:
    model = network(name)
    taps = sum(p.numel() for path in attention(model) for p in model.get_submodule(path).parameters())
    size = sum(p.numel() for p in model.parameters())
    assert taps > 0
    twin = without_attention(model)
    assert attention(twin) == []
    assert sum(p.numel() for p in twin.parameters()) == size - taps
