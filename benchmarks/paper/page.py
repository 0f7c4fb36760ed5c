"""Tables of the paper's rows, and docs/paper.md: the prose of page.md with figures computed anew."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..shared.document import markdown
from . import facts
from .counts import Counts
from .rows import QUOTED, README, REASONS, SE_MOBILE, UNITS, Line, Published

PROSE = Path(__file__).with_suffix(".md")
NONE = "-"
VARIANTS = (
    "attention", "of a module", "in ResNet-50", "counted", "parameters, M", "Mi", "multiply-adds, G",
    "thop's", "note",
)  # fmt: skip
NETWORKS = (
    "network", "parameters, M", "Mi", "paper", "difference", "multiply-adds, G", "thop's", "paper",
    "difference", "note",
)  # fmt: skip
TEXT = ("attention", "of a module", "network", "note")
TITLES = {
    "2": "Table 2: attention in ResNet-50",
    "3": "Table 3: networks",
    "README": "Rows that only the official README has, or has otherwise",
}


def columns(table: str) -> Sequence[str]:
    """Headings of a table."""
    return VARIANTS if table == "2" else NETWORKS


def cells(line: Line) -> list[str]:
    """A row of a table."""
    row, counts = line.row, line.counts
    million = mebi = giga = thop = NONE
    if counts is not None:
        million, mebi = (f"{counts.parameters / UNITS[unit]:.3f}" for unit in ("M", "Mi"))
        giga = f"{counts.multiply_adds / 1e9:.3f}"
        small = counts.thop < UNITS["Gi"]
        thop = f"{counts.thop / UNITS['Mi']:.2f} Mi" if small else f"{counts.thop / UNITS['Gi']:.4f} Gi"
    if row.table == "2":
        return [
            row.label, row.formula, f"{line.by_formula:,}", f"{line.attention:,}", million, mebi, giga, thop,
            line.note(),
        ]  # fmt: skip
    parameters = _compared(row.parameters, None if counts is None else counts.parameters)
    return [row.label, million, mebi, *parameters, giga, thop, *_compared(row.flops, line.flops), line.note()]


def _compared(published: Published | None, counted: int | None) -> list[str]:
    """Return what was published, with its unit, and the count less that."""
    if published is None:
        return [NONE, NONE]
    difference = NONE if counted is None else f"{published.difference(counted):+.4f}"
    return [f"{published.digits} {published.unit}", difference]


def record(line: Line) -> dict[str, Any]:
    """A row as JSON."""
    row, counts = line.row, line.counts
    return {
        "table": row.table,
        "row": row.label,
        "parameters": None if counts is None else counts.parameters,
        "multiply_adds": None if counts is None else counts.multiply_adds,
        "thop": None if counts is None else counts.thop,
        "attention_parameters": line.attention,
        "published_attention_parameters": line.by_formula,
        "published_parameters": None if row.parameters is None else row.parameters._asdict(),
        "published_flops": None if row.flops is None else row.flops._asdict(),
        "differing": sorted(line.differing()),
        "note": line.note(),
    }


def page(found: Sequence[Line]) -> str:
    """docs/paper.md."""
    counted = {line.row.label: line.counts for line in found if line.row.table == "3" and line.counts}
    tables = {
        f"table_{table.lower()}": markdown(
            columns(table), [cells(line) for line in found if line.row.table == table], TEXT
        )
        for table in TITLES
    }
    return PROSE.read_text().format(
        **tables, **_counting(counted), **_reasons(counted), **_contradictions(counted)
    )


def _counting(counted: Mapping[str, Counts]) -> dict[str, str]:
    plain = counted["ResNet-50"]
    parts = [[what, f"{number:,}"] for what, number in facts.THOP_RESNET50.items()]
    without_relu = plain.thop - facts.THOP_RESNET50[facts.RELU]
    return {
        "thop_resnet50": markdown(("what", "count"), [*parts, ["sum", f"{plain.thop:,}"]], ("what",)),
        "thop_giga": f"{plain.thop / 1e9:.4f}",
        "thop_gibi": f"{plain.thop / 2**30:.4f}",
        "adds_giga": f"{plain.multiply_adds / 1e9:.4f}",
        "adds_gibi": f"{plain.multiply_adds / 2**30:.4f}",
        "no_relu_gibi": f"{without_relu / 2**30:.4f}",
        "se_as_convolutions": f"{(counted['SENet-152'].thop - facts.linear_excess(152)) / 2**30:.2f}",
        "cbam_as_linear": f"{(counted['CBAM-101'].thop + facts.linear_excess(101)) / 2**30:.2f}",
    }


def _reasons(counted: Mapping[str, Counts]) -> dict[str, str]:
    a2, plain, mobile = (counted[name] for name in ("A2-Net-50", "ResNet-50", "MobileNetV2"))
    least, most = ((number * 2**20 - mobile.parameters) for number in (3.395, 3.405))
    deep = counted["ECA-Net-152"].parameters
    bound = facts.most_of_mobile_se(mobile, counted["ECA-MobileNetV2"], int(most))
    return {
        "quoted": _sentence(QUOTED),
        "a2_modules": f"{a2.parameters - plain.parameters:,}",
        "plain": f"{plain.parameters:,}",
        "a2": f"{a2.parameters:,}",
        "a2_less": f"{100 - a2.parameters / 33.00e4:.1f}",
        "a2_less_binary": f"{100 - a2.parameters / (33.00 * 2**20) * 100:.1f}",
        "a2_giga": f"{a2.multiply_adds / 1e9:.2f}",
        "a2_more": f"{a2.multiply_adds / 6.50e7 - 100:.1f}",
        "se_mobilenetv2": _sentence(SE_MOBILE),
        "se_least": f"{least:,.0f}",
        "se_most": f"{most:,.0f}",
        "se_8": f"{counted['SE-MobileNetV2'].parameters - mobile.parameters:,}",
        "se_8_flops": f"{counted['SE-MobileNetV2'].thop / 2**20:.3f}",
        "se_16": f"{facts.mobile_se(16):,}",
        "se_16_network": f"{(mobile.parameters + facts.mobile_se(16)) / 2**20:.2f}",
        "se_bound": f"{bound / 2**20:.3f}",
        "readme": _sentence(README),
        "deep": f"{deep:,}",
        "deep_mebi": f"{deep / 2**20:.4f}",
    }


def _contradictions(counted: Mapping[str, Counts]) -> dict[str, str]:
    added = counted["ECA-Net-50"].thop - counted["ResNet-50"].thop
    convolved = facts.convolved(facts.CHECKPOINT)
    taps = [[what, ", ".join(map(str, ks)), _sum(ks), str(facts.taps(ks))] for what, ks in facts.TAPS.items()]
    mobile = [
        [
            what,
            ", ".join(map(str, ks)),
            str(facts.mobile_parameters(ks)),
            f"{(counted['MobileNetV2'].parameters + facts.mobile_parameters(ks)) / 2**20:.4f}",
            f"{facts.mobile_thop(counted['ECA-MobileNetV2'], ks) / 2**20:.3f}",
        ]
        for what, ks in facts.MOBILE_TAPS.items()
    ]
    top1, top5 = facts.SENET_ERRORS["ResNet-50"]
    return {
        "taps": markdown(("taps", "by stage", "sum", "parameters"), taps, ("taps", "by stage", "sum")),
        "convolved": f"{convolved:,}",
        "convolved_giga": _power(convolved / 1e9),
        "elements": f"{facts.elements():,}",
        "around_giga": _power(2 * facts.elements() / 1e9),
        "thop_added": f"{added:,}",
        "thop_added_giga": _power(added / 1e9),
        "top1_error": top1,
        "top5_error": top5,
        "mobile_taps": markdown(
            ("taps", "by stage", "parameters of ECA", "of the network, Mi", "thop's, Mi"), mobile,
            ("taps", "by stage"),
        ),
    }  # fmt: skip


def _sentence(reason: str) -> str:
    return REASONS[reason][0].upper() + REASONS[reason][1:]


def _power(number: float) -> str:
    """Two digits and the power of ten, as the paper writes it: 4.7e-4."""
    digits, power = f"{number:.1e}".split("e")
    return f"{digits}e{int(power)}"


def _sum(k_sizes: Sequence[int]) -> str:
    return " + ".join(f"{number} * {k}" for (_, _, number), k in zip(facts.SITES, k_sizes, strict=True))
