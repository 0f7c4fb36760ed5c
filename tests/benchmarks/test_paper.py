"""`python -m benchmarks paper`: the counts, the published values, and the arithmetic of docs/paper.md."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from contextlib import redirect_stdout
from decimal import Decimal
from functools import partial
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

pytest.importorskip("timm", reason="the networks of the paper are timm's")
pytest.importorskip("torchvision", reason="MobileNetV2 is torchvision's")

from benchmarks.__main__ import main
from benchmarks.paper import counts as paper_counts
from benchmarks.paper import facts
from benchmarks.paper import page as paper_page
from benchmarks.paper import rows as paper
from benchmarks.paper.counts import THOP, Counts, count
from benchmarks.paper.rows import README, ROWS, Line, Published, Row
from benchmarks.shared.context import DOCS
from eca_triton.models import create
from eca_triton.models.attention import ECA, SE
from eca_triton.models.mobilenetv2 import mobilenet_v2

EXCEPTIONS = {
    ("3", "A2-Net-50", "parameters"): "quoted",
    ("3", "A2-Net-50", "flops"): "quoted",
    ("3", "SE-MobileNetV2", "flops"): "se-mobilenetv2",
    ("README", "ECA-Net-152", "parameters"): "readme",
}
NOT_BUILT = {"GCNet-50", "GSoP-Net1-50", "AA-Net-50"}

MEASURED = {
    ("README", "ECA-Net-18"): 1826867200,
    ("README", "ECA-Net-34"): 3682837248,
    ("3", "ResNet-50"): 4142111744,
    ("3", "SENet-50"): 4152660992,
    ("3", "CBAM-50"): 4151575552,
    ("3", "ECA-Net-50"): 4147732480,
    ("3", "MobileNetV2"): 334871520,
    ("3", "SE-MobileNetV2"): 335557696,
    ("3", "ECA-MobileNetV2"): 335449024,
}
"""What thop 0.0.23.post1908021522 counts of these networks, written with the layers of the official code."""


def only(table: str, label: str) -> Line:
    return next(iter(paper.lines(row for row in ROWS if (row.table, row.label) == (table, label))))


def counts(label: str) -> Counts:
    found = only("3", label).counts
    assert found is not None
    return found


def sample(published: str, reasons: tuple[tuple[str, str], ...] = ()) -> Line:
    row = Row("3", "sample", torch.nn.Identity, Published(published, "Mi"), reasons=reasons)
    return Line(row, Counts(parameters=3 * 2**20, multiply_adds=0, thop=0))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.table}-{row.label}")
def test_a_row_rounds_to_what_was_published_or_is_a_known_exception(row: Row) -> None:
    (line,) = paper.lines([row])
    expected = {
        name: why
        for (table, label, name), why in EXCEPTIONS.items()
        if (table, label) == (row.table, row.label)
    }
    assert line.differing() == set(expected)
    assert dict(row.reasons) == expected
    assert not line.off()


def test_what_is_not_built_is_printed_as_published() -> None:
    unbuilt = [row for row in ROWS if row.build is None]
    assert {row.label for row in unbuilt} == NOT_BUILT
    for line in paper.lines(unbuilt):
        assert line.note() == "not built"
        assert row_of(line)["paper"] != "-"
        assert line.counts is None


def row_of(line: Line) -> dict[str, str]:
    return dict(
        zip(reversed(paper_page.columns(line.row.table)), reversed(paper_page.cells(line)), strict=True)
    )


@pytest.mark.parametrize(
    ("published", "reasons", "off"),
    [
        ("3.00", (), False),
        ("3.01", (), True),
        ("2.99", (), True),
        ("3.01", (("parameters", README),), False),
        ("3.00", (("parameters", README),), True),
    ],
    ids=["agrees", "more", "less", "with its reason", "with a reason that it does not need"],
)
def test_a_row_is_off_if_it_differs_without_a_reason_or_has_one_in_vain(
    published: str, reasons: tuple[tuple[str, str], ...], off: bool
) -> None:
    line = sample(published, reasons)
    assert line.off() is off
    assert (line.note() == "OFF") is off


def test_rounding_knows_no_tolerance() -> None:
    half = Published("3.34", "Mi")
    assert half.rounded(int(3.3449 * 2**20)) == "3.34"
    assert half.rounded(int(3.3451 * 2**20)) == "3.35"
    assert half.difference(int(3.34 * 2**20)) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("row", MEASURED, ids="-".join)
def test_the_rules_are_those_of_thop(row: tuple[str, str]) -> None:
    """Whose sums are float32: off by an ulp for each of some layers."""
    counted = only(*row).counts
    assert counted is not None
    assert counted.thop == pytest.approx(MEASURED[row], abs=1024)


def test_counts_of_torch_are_half_its_flops() -> None:
    with torch.device("meta"):
        model, image = create("eca_resnet18", k_size=(3, 5, 7, 7)).eval(), torch.empty(1, 3, 224, 224)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(image)
    counted = count(partial(create, "eca_resnet18", k_size=(3, 5, 7, 7)))
    assert 2 * counted.multiply_adds == counter.get_total_flops()
    convolved = 2 * (64 * 3 + 128 * 5 + 256 * 7 + 512 * 7)
    assert counted.multiply_adds == count(partial(create, "resnet18")).multiply_adds + convolved


def thop_of(build: Callable[[], torch.nn.Module], operator: object) -> int:
    """All that one of the formulas counts."""
    with torch.device("meta"):
        model, image = build().eval(), torch.empty(1, 3, 224, 224)
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=THOP) as counter:
        model(image)
    return counter.get_flop_counts()["Global"][operator]


class TestThePage:
    def test_the_sum_for_resnet50_is_the_count(self) -> None:
        plain, parts = counts("ResNet-50"), facts.THOP_RESNET50
        assert sum(parts.values()) == plain.thop
        convolutions, classifier, norms, relu, pooling = parts.values()
        assert convolutions + 2048 * 1000 == plain.multiply_adds
        assert classifier == (2 * 2048 - 1) * 1000
        assert norms == 4 * 11_113_984
        stem = 64 * 112 * 112
        assert relu == stem + facts.elements()
        assert pooling == 2048 * (7 * 7 + 1)

    def test_without_relu_resnet50_and_mobilenetv2_would_not_be_as_published(self) -> None:
        plain = counts("ResNet-50").thop - facts.THOP_RESNET50[facts.RELU]
        assert f"{plain / 2**30:.2f}" == "3.85"
        mobile = counts("MobileNetV2").thop - thop_of(
            partial(create, "mobilenet_v2"), torch.ops.aten.hardtanh_
        )
        assert f"{mobile / 2**20:.1f}" == "313.5"

    def test_se_is_of_linear_layers_and_cbam_of_convolutions(self) -> None:
        with torch.device("meta"):
            layers = [module for module in create("se_resnet152").modules() if isinstance(module, SE)]
        outputs = sum(layer.fc1.out_channels + layer.fc2.out_channels for layer in layers)
        weights = sum(paper_counts.parameters(layer) for layer in layers)
        assert facts.linear_excess(152) == weights - outputs
        se, cbam = counts("SENet-152").thop, counts("CBAM-101").thop
        assert f"{(se - facts.linear_excess(152)) / 2**30:.2f}" == "10.84"
        assert f"{(cbam + facts.linear_excess(101)) / 2**30:.2f}" == "7.36"

    @pytest.mark.parametrize(
        ("k_sizes", "parameters"),
        [((3, 5, 5, 7), 80), ((5, 5, 5, 7), 86), ((3, 5, 5, 5), 74), ((3, 3, 7, 7), 84), ((3, 3, 3, 3), 48)],
    )
    def test_parameters_of_eca_by_taps(self, k_sizes: tuple[int, ...], parameters: int) -> None:
        assert k_sizes in facts.TAPS.values()
        assert facts.taps(k_sizes) == parameters
        with torch.device("meta"):
            model = create("eca_resnet50", k_size=k_sizes)
        assert sum(paper_counts.parameters(m) for m in model.modules() if isinstance(m, ECA)) == parameters

    def test_the_adaptive_rule_gives_86(self) -> None:
        with torch.device("meta"):
            model = create("eca_resnet50")
        assert paper_counts.parameters(model) - counts("ResNet-50").parameters == 86

    def test_no_count_of_ecas_cost_is_the_published_one(self) -> None:
        plain, eca = counts("ResNet-50"), counts("ECA-Net-50")
        convolved = facts.convolved((3, 5, 5, 7))
        assert convolved == eca.multiply_adds - plain.multiply_adds == 86_272
        added = eca.thop - plain.thop
        assert added == facts.elements() + 15_104 + convolved == 5_620_736
        for cost in (convolved, 2 * facts.elements(), added):
            for unit in (1e9, 2**30):
                assert not 4.65e-4 <= cost / unit < 4.75e-4

    def test_table_3_has_the_accuracy_of_the_senet_paper_and_table_2_two_digits_exchanged(self) -> None:
        for network, errors in facts.SENET_ERRORS.items():
            assert tuple(str(100 - Decimal(error)) for error in errors) == facts.TABLE_3_ACCURACY[network]
        assert facts.TABLE_3_ACCURACY["ResNet-50"][1] == "92.52" != "92.25"

    def test_taps_of_mobilenetv2_do_not_show_in_the_published_digits(self) -> None:
        assert [*facts.MOBILE_TAPS.values()] == [
            (1, 1, 1, 1, 3, 3, 3), (1, 1, 1, 1, 1, 3, 3), (3, 3, 3, 3, 3, 5, 5)
        ]  # fmt: skip
        official, published = counts("ECA-MobileNetV2"), only("3", "ECA-MobileNetV2").row
        assert published.parameters is not None
        assert published.flops is not None
        for k_sizes in facts.MOBILE_TAPS.values():
            other = count(partial(create, "eca_mobilenet_v2", k_size=k_sizes))
            assert other.parameters == counts("MobileNetV2").parameters + facts.mobile_parameters(k_sizes)
            assert other.thop == facts.mobile_thop(official, k_sizes)
            assert published.parameters.rounded(other.parameters) == "3.34"
            assert published.flops.rounded(other.thop) == "319.9"

    @pytest.mark.parametrize("reduction", [4, 8, 16])
    def test_the_bound_of_se_mobilenetv2_holds_and_is_below_what_was_published(self, reduction: int) -> None:
        plain, eca = counts("MobileNetV2"), counts("ECA-MobileNetV2")
        se = count(partial(mobilenet_v2, partial(SE, reduction=reduction)))
        assert se.parameters == plain.parameters + facts.mobile_se(reduction)
        assert se.thop == facts.most_of_mobile_se(plain, eca, se.parameters - plain.parameters)
        most = int(3.405 * 2**20) - plain.parameters
        assert facts.most_of_mobile_se(plain, eca, most) / 2**20 < 320.05

    def test_a2_adds_two_modules_of_512_channels_and_three_of_1024(self) -> None:
        added = counts("A2-Net-50").parameters - counts("ResNet-50").parameters
        assert added == 2 * 2 * 512**2 + 3 * 2 * 1024**2

    def test_it_explains_every_reason(self) -> None:
        text = (DOCS / "paper.md").read_text()
        for reason in (*paper.REASONS, "not built"):
            assert f"**{reason}**: " in text

    def test_it_is_what_the_command_writes(self, tmp_path: Path) -> None:
        written, out = tmp_path / "paper.md", io.StringIO()
        with redirect_stdout(out):
            assert main(["paper", "--json", "--page", str(written)]) == 0
        assert written.read_text() == (DOCS / "paper.md").read_text()
        rows = json.loads(out.getvalue())
        assert [(row["table"], row["row"]) for row in rows] == [(row.table, row.label) for row in ROWS]
        assert {(row["table"], row["row"], name) for row in rows for name in row["differing"]} == set(
            EXCEPTIONS
        )


def test_the_command_fails_if_a_row_is_off(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(paper, "lines", lambda: [sample("3.01")])
    assert main(["paper"]) == 1
    assert "OFF" in capsys.readouterr().out
