"""Tables from counts of networks, and the page of each set: pure, tested without lowering anything."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

from ..shared.document import markdown
from ..shared.networks import DEEP, NETWORKS, PAPER
from . import published
from .tax import MODES, SETS, Job, Set, job_of, set_of, setting_name

Document = Mapping[str, Any]
NOT_TIMED = "counted, not timed"


class Line(NamedTuple):
    """A network in one setting: how many attention modules it has; bytes and kernels by contender."""

    network: str
    sites: int
    bytes: dict[str, int]
    kernels: dict[str, int]

    @property
    def taxes(self) -> dict[str, float]:
        """Return what attention adds to the bytes of the plain network, by contender."""
        return {who: each / self.bytes["plain"] - 1 for who, each in self.bytes.items() if who != "plain"}


def lines(document: Document, training: bool, channels_last: bool, mode: str) -> Iterator[Line]:
    """The networks of which all contenders were counted in a setting."""
    rows = {job_of(row): row for row in document["rows"] if "error" not in row}
    counted = set_of(document)
    for name in counted.networks:
        found = {who: rows.get(Job(name, who, training, channels_last, mode)) for who in counted.contenders}
        each = {who: row for who, row in found.items() if row is not None}
        if len(each) == len(found):
            yield Line(
                name,
                each["plain"]["sites"],
                {who: row["bytes"] for who, row in each.items()},
                {who: row["kernels"] for who, row in each.items()},
            )


def rising(document: Document) -> list[str]:
    """Settings in which ours moves more bytes, or launches more kernels, than stock: there should be none."""
    return [
        f"{line.network}, {setting_name(*setting)}"
        for setting in settings(document)
        for line in lines(document, *setting)
        if line.bytes["ours"] > line.bytes["stock"] or line.kernels["ours"] > line.kernels["stock"]
    ]


def page(document: Document) -> str:
    """The page of a document's set."""
    counted = set_of(document)
    parts = [
        f"# {counted.title}: {NOT_TIMED}",
        "",
        f"`python -m benchmarks {counted.command}` writes this page; it needs no GPU.",
        "",
        f"What `torch.compile` moves in a step of {counted.about} Batch {document['batch']}, images of "
        f"{sizes(counted.networks)}, bfloat16, torch "
        f"{document['torch']}, Triton {document['triton']}. GB are Inductor's own count of the code that it "
        "generates: each buffer once for every kernel that touches it, whatever the caches do. The tax is "
        "what attention adds to the bytes of the plain network. Tables have the GB of each, then the taxes, "
        "then the kernels, in one order. Nothing here is a time.",
        "",
    ]
    if not document["whole"] and not DEEP.isdisjoint(counted.networks):
        parts += [
            "Networks with a star are cut to three blocks in each stage (the first two and the last: those "
            "between are the same again); `--whole` counts them in full.",
            "",
        ]
    if any(row["mode"] != "default" for row in document["rows"]):
        parts += [
            "Under max-autotune Inductor times its implementations of a matrix product; these are the counts "
            f"where Triton's win ({_options('max-autotune')}), for all contenders alike.",
            "",
        ]
    for setting in settings(document):
        found = list(lines(document, *setting))
        if found:
            parts += [f"## {heading(document, setting)}", "", table(counted, found), ""]
    parts += [f"- {line}" for line in remarks(document)]
    if counted is SETS["paper"]:
        parts += ["", "## Published by the authors of the paper, not measured here", "", *_published()]
    return "\n".join(parts) + "\n"


def heading(document: Document, setting: tuple[bool, bool, str]) -> str:
    """Head a table: its setting, how many networks of the set it lacks, and that it has no time."""
    there, most = len(list(lines(document, *setting))), len(set_of(document).networks)
    some = "" if there == most else f" ({there} of {most} counted)"
    return f"{setting_name(*setting).capitalize()}{some}: {NOT_TIMED}"


def sizes(networks: Iterable[str]) -> str:
    """Say the sizes of their images: most have one, and the others are named."""
    sides = {name: {**NETWORKS, **PAPER}[name] for name in networks}
    most = max(sides.values(), key=[*sides.values()].count)
    others = [f"{name} {side} x {side}" for name, side in sides.items() if side != most]
    return f"{most} x {most}" + (f" ({', '.join(others)})" if others else "")


def columns(counted: Set) -> list[str]:
    """Gigabytes, taxes and kernels of each contender."""
    plain, *others = counted.contenders.values()
    first, *more = others
    return ["network", "sites", plain, *others, f"tax, {first}", *more, "kernels", *others]


def cells(found: Sequence[Line]) -> Iterator[list[str]]:
    """Under `columns`."""
    for line in found:
        taxes = [f"{tax:+.1%}".replace("%", " %") for tax in line.taxes.values()]
        name = line.network + ("\\*" if line.network in DEEP else "")
        gigabytes = [f"{each / 1e9:.2f}" for each in line.bytes.values()]
        yield [name, str(line.sites), *gigabytes, *taxes, *map(str, line.kernels.values())]


def table(counted: Set, found: Sequence[Line]) -> str:
    """For a page."""
    return markdown(columns(counted), cells(found), ("network",))


def settings(document: Document) -> list[tuple[bool, bool, str]]:
    """(training, channels-last, mode) of which there are counts, the most telling first."""
    modes = list(MODES)
    found = {job_of(row)[2:] for row in document["rows"]}
    return sorted(found, key=lambda each: (each[0], modes.index(each[2]), not each[1]))


def remarks(document: Document) -> list[str]:
    """Return what was not counted, what is out of date, and where ours is worse than stock."""
    found = []
    counted = set_of(document)
    for setting in product((False, True), (True, False), counted.modes):
        there = {line.network for line in lines(document, *setting)}
        lacking = [name for name in counted.networks if name not in there]
        if lacking:
            names = ", ".join(lacking) if there else "any network"
            found.append(f"Not counted in {setting_name(*setting)}: {names}.")
    ours = [row["sources"] for row in document["rows"] if row["contender"] == "ours" and "error" not in row]
    earlier = sum(sources != document.get("sources") for sources in ours)
    if earlier:
        made = f"{earlier} of the {len(ours)} counts of ours were made"
        found.append(f"{made} from earlier sources of this package.")
    worse = rising(document)
    found.append(f"More bytes or kernels than stock: {'; '.join(worse) if worse else 'in none of these'}.")
    return found


def _published() -> list[str]:
    return [
        f"Images per second by {published.SOURCE}, of other hardware, software and batches than those above; "
        "the last columns are the ratios of step times that follow from them.",
        "",
        published.table(),
    ]


def _options(mode: str) -> str:
    return ", ".join(f"`{name}={value!r}`" for name, value in MODES[mode].items())
