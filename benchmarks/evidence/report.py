"""docs/results.md and its figures, from committed results alone."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..counted import tax
from ..host import measure as host
from ..network import compiling
from ..network import figures as network_figures
from ..op import figures
from ..shared.document import heading, markdown
from . import charts, goals
from .charts import Chart

Document = Mapping[str, Any]
NOT_MEASURED = "Not measured."


def committed(folder: Path) -> tuple[list[Path], list[Path]]:
    """JSON files that are as the last commit has them, and the others, which do not count.

    Without git, or outside of a repository, all count.
    """
    files = sorted(folder.glob("*/*.json"))
    tracked = _git(folder, "ls-files", "-z")
    if tracked is None:
        return files, []
    changed = _git(folder, "diff", "--name-only", "--relative", "-z", "HEAD")  # None: there is no commit
    kept = {folder / name for name in tracked - changed} if changed is not None else set()
    return [file for file in files if file in kept], [file for file in files if file not in kept]


def load(files: Sequence[Path]) -> dict[str, list[Document]]:
    """Documents by the command that wrote them, the newest of each GPU, the newest first."""
    found: dict[str, dict[str, Document]] = {}
    for file in files:
        document = json.loads(file.read_text())
        if isinstance(document, dict) and "rows" in document:
            machine = document.get("machine", {})
            kind = f"{machine.get('gpu')} {file.stem}"
            of_command = found.setdefault(document.get("command", ""), {})
            if kind not in of_command or of_command[kind].get("date", "") < document.get("date", ""):
                of_command[kind] = document
    return {
        command: sorted(each.values(), key=lambda document: document.get("date", ""), reverse=True)
        for command, each in found.items()
    }


def drawn(documents: Mapping[str, Sequence[Document]]) -> list[Chart]:
    """Every chart that the documents have figures for."""
    makers: list[tuple[str, Callable[[Document], Chart | None]]] = [
        *((each.command, charts.tax_in_bytes) for each in tax.SETS.values()),
        (tax.SETS["timm"].command, charts.tax_at_a_glance),
        ("network", charts.tax_in_time),
        ("op", charts.share_of_copy),
        ("op", charts.ratio_to_inductor),
    ]
    made = [make(document) for command, make in makers for document in documents.get(command, ())]
    return [chart for chart in made if chart is not None]


def page(documents: Mapping[str, Sequence[Document]]) -> str:
    """docs/results.md."""
    pictures = {chart.name: picture(chart) for chart in drawn(documents)}
    parts = [
        "# Results",
        "",
        "`python -m benchmarks report` writes this page and its figures from the results that are committed "
        "in [benchmarks/results](../benchmarks/results); [benchmarks](../benchmarks/README.md) says how each "
        "was taken and what its columns mean.",
        "",
        "## Goals",
        "",
        *(f"- {line}" for line in goals.verdicts(documents.get("network", ()))),
        *(f"- {line}" for each in documents.get("op", ()) for line in figures.goals(each["rows"])),
        "",
        "## The ECA tax in bytes, counted",
        "",
        *_shown(pictures, "tax-bytes-all", "Not counted."),
        "[The table](tax.md) has every network and setting.",
        "",
        "## Beside SE and CBAM in the paper's networks, in bytes: counted, not timed",
        "",
        *_shown(pictures, "tax-paper-bytes", "Not counted."),
        "[The table](tax-paper.md) has every network and setting, and what the paper's authors measured.",
        "",
        "## Whole networks",
        "",
        *_section(documents, "network", _network, pictures, "tax-time"),
        "## Share of copy bandwidth, and speed against stock torch.compile",
        "",
        *_section(documents, "op", _op, pictures, "bandwidth", "ratio"),
        "## Host time of a call",
        "",
        *_section(documents, "host", _host, pictures),
        "## Seconds added to torch.compile",
        "",
        *_section(documents, "compile", _compile, pictures),
    ]
    return "\n".join(parts).rstrip() + "\n"


def picture(chart: Chart) -> str:
    """For a page on GitHub, which follows its reader's theme."""
    return (
        f'<picture><source media="(prefers-color-scheme: dark)" srcset="figures/{chart.name}-dark.svg">'
        f'<img src="figures/{chart.name}-light.svg" alt="{chart.alt}"></picture>'
    )


def _git(folder: Path, *arguments: str) -> set[str] | None:
    """Names that git prints, relative to the folder; None where there is no git, or no repository."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True, timeout=30
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return {name for name in done.stdout.split("\0") if name}


def _section(
    documents: Mapping[str, Sequence[Document]],
    command: str,
    write: Callable[[Document], list[str]],
    pictures: Mapping[str, str],
    *names: str,
) -> list[str]:
    lines: list[str] = []
    for document in documents.get(command, ()):
        for name in names:
            lines += _shown(pictures, f"{name}-{charts.slug(document)}", "")
        lines += [*write(document), ""]
    return lines or [NOT_MEASURED, ""]


def _shown(pictures: Mapping[str, str], name: str, without: str) -> list[str]:
    found = pictures.get(name, without)
    return [found, ""] if found else []


def _network(document: Document) -> list[str]:
    table = network_figures.as_markdown(document)
    return [heading(document), "", table, "", *_notes(network_figures.notes(document))]


def _op(document: Document) -> list[str]:
    """Write the table of the largest batch; the JSON has all."""
    rows = [row for row in document["rows"] if row["shape"][0] == charts.OP_BATCH]
    columns, cells = figures.table({**document, "rows": rows})
    table = markdown(columns, cells, figures.TEXT_COLUMNS)
    return [f"{heading(document)}; here those of batch {charts.OP_BATCH}", "", table]


def _host(document: Document) -> list[str]:
    return [_where(document), "", markdown(host.COLUMNS, host.table(document), host.TEXT)]


def _compile(document: Document) -> list[str]:
    table = markdown(compiling.COLUMNS, compiling.table(document), compiling.TEXT)
    return [f"{_where(document)}: {document['how']}", "", table, "", *_notes(compiling.notes(document))]


def _where(document: Document) -> str:
    machine = document["machine"]
    gpu = "" if machine["gpu"] == "none" else f"{machine['gpu']}, "
    return f"{gpu}{machine['cpu']}, torch {machine['torch']}, Triton {machine['triton']}, {document['date']}"


def _notes(lines: Sequence[str]) -> list[str]:
    return [f"- {line}" for line in lines]
