"""The ECA tax, counted without a GPU: bytes and kernels of each network, stock, ours, and without ECA.

Every count is one lowering by `eca_triton.deviceless`, in a process of a pool. They are saved one by one,
and what is in the file already is not counted again: the plain and the stock network's for the same torch
and Triton, ours for the same sources besides. Ours of earlier sources stand until their turn comes, which is
last, and the page says how many they are.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch

from . import results
from .networks import DEEP, NETWORKS, attention, images, network, without_attention

COMMAND = "tax"
CONTENDERS = ("plain", "stock", "ours")
BATCH = 128
MODES: dict[str, dict[str, Any]] = {
    "default": {},
    # Inductor finds the fastest by timing, so without a GPU it is not known: these are the counts where
    # Triton's wins.
    "max-autotune": {"max_autotune_gemm": True, "max_autotune_gemm_backends": "TRITON"},
}

SOURCES = ("compile", "deviceless", "kernels", "ops", "tuning")
"""Folders of the package that a count of ours depends on."""

Count = dict[str, Any]
"""One row of the JSON."""


class Job(NamedTuple):
    """One lowering: of which network, as whom, in which setting."""

    network: str
    contender: str
    training: bool
    channels_last: bool
    mode: str


def jobs(
    networks: Iterable[str], contenders: Iterable[str], training: Iterable[bool], modes: Iterable[str]
) -> list[Job]:
    """All of them, the settings that tell most first."""
    order = product(training, modes, (True, False), networks, contenders)
    return [Job(name, who, train, layout, mode) for train, mode, layout, name, who in order]


def count(job: Job, *, batch: int = BATCH, whole: bool = False) -> Count:
    """Lower one network and count; what went wrong instead, if anything did."""
    from eca_triton.compile.record import recording
    from eca_triton.deviceless import lower

    model, started = network(job.network, whole=whole), time.perf_counter()
    sites = len(attention(model))
    if job.contender == "plain":
        model = without_attention(model)
    try:
        with recording() as records:
            lowering = lower(
                model,
                images(job.network, batch),
                backend="eca_triton" if job.contender == "ours" else "inductor",
                training=job.training,
                channels_last=job.channels_last,
                dtype=torch.bfloat16,
                options=dict(MODES[job.mode]),
            )
    except Exception as error:  # a network that one version of torch cannot lower leaves the others standing
        return {**job._asdict(), "error": f"{type(error).__name__}: {error}"[:300]}
    plans = [record.decision.plan for record in records]
    return {
        **job._asdict(),
        "sites": sites,
        "plans": {plan: plans.count(plan) for plan in sorted(set(plans))},
        "bytes": lowering.bytes_moved,
        "kernels": len(lowering.kernels),
        "external": lowering.external_calls,
        "seconds": round(time.perf_counter() - started, 1),
    }


def run(
    wanted: Sequence[Job],
    path: Path,
    machine: Mapping[str, Any],
    sources: str,
    workers: int,
    progress: Callable[[str], None],
    *,
    batch: int = BATCH,
    whole: bool = False,
) -> dict[str, Any]:
    """Count what `path` does not hold yet, then what it holds of other sources, and return its document."""
    same = {"command": COMMAND, "target": "h200", "batch": batch, "dtype": "bf16", "whole": whole}
    same |= {"torch": machine["torch"], "triton": machine["triton"]}
    document: dict[str, Any] = {**same, "rows": []}
    if path.exists():
        before = results.load(path, COMMAND)
        if all(before[key] == value for key, value in same.items()):
            document = before
    rows = {job_of(row): row for row in document["rows"] if "error" not in row}
    stale = {job for job, row in rows.items() if row.get("sources") not in (None, sources)}
    missing = [job for job in wanted if job not in rows] + [job for job in wanted if job in stale]
    document |= {"sources": sources, "rows": list(rows.values())}
    # A pool of multiprocessing, for that of concurrent.futures can wait for ever when it replaces a worker.
    with multiprocessing.get_context("spawn").Pool(workers, maxtasksperchild=8) as pool:
        counting = pool.imap_unordered(partial(count, batch=batch, whole=whole), missing)
        for done, row in enumerate(counting, 1):
            if row["contender"] == "ours":
                row["sources"] = sources
            rows[job_of(row)] = row
            document["rows"] = list(rows.values())
            results.save(document, path)
            what = row.get("error") or f"{row['bytes'] / 1e9:.2f} GB, {row['kernels']} kernels"
            progress(f"{done}/{len(missing)} {_label(job_of(row))}: {what}")
    return document


def job_of(row: Count) -> Job:
    """The job that made a row."""
    return Job(*(row[name] for name in Job._fields))


class Line(NamedTuple):
    """A network in one setting: bytes and kernels of the contenders, in their order."""

    network: str
    sites: int
    bytes: tuple[int, int, int]
    kernels: tuple[int, int, int]

    @property
    def taxes(self) -> tuple[float, float]:
        """What ECA adds to the bytes of the plain network, stock and ours."""
        plain, stock, ours = self.bytes
        return stock / plain - 1, ours / plain - 1


def lines(document: Mapping[str, Any], training: bool, channels_last: bool, mode: str) -> Iterator[Line]:
    """The networks of which all contenders were counted in a setting."""
    rows = {job_of(row): row for row in document["rows"] if "error" not in row}
    for name in NETWORKS:
        found = [rows.get(Job(name, who, training, channels_last, mode)) for who in CONTENDERS]
        each = [row for row in found if row is not None]
        if len(each) == len(CONTENDERS):
            plain, stock, ours = each
            yield Line(
                name,
                plain["sites"],
                (plain["bytes"], stock["bytes"], ours["bytes"]),
                (plain["kernels"], stock["kernels"], ours["kernels"]),
            )


def rising(document: Mapping[str, Any]) -> list[str]:
    """Settings in which ours moves more bytes, or launches more kernels, than stock: there should be none."""
    found = []
    for training, channels_last, mode in _settings(document):
        for line in lines(document, training, channels_last, mode):
            if line.bytes[2] > line.bytes[1] or line.kernels[2] > line.kernels[1]:
                found.append(f"{line.network}, {_setting(training, channels_last, mode)}")
    return found


def page(document: Mapping[str, Any]) -> str:
    """docs/tax.md."""
    parts = [
        "# The ECA tax, in bytes",
        "",
        "`python -m benchmarks tax` writes this page; it needs no GPU.",
        "",
        f"What `torch.compile` moves in a step of timm's {len(NETWORKS)} ECA networks on an H200: without "
        'ECA ("plain": the identity in place of each module), with ECA under stock Inductor, and with our '
        f"pass. Batch {document['batch']}, bfloat16, torch {document['torch']}, Triton {document['triton']}. "
        "GB are Inductor's own count of the code that it generates: each buffer once for every kernel that "
        "touches it, whatever the caches do. The tax is what ECA adds to the plain network. Nothing here is "
        "a time.",
        "",
    ]
    if not document["whole"]:
        parts += [
            "Networks with a star are cut to three blocks in each stage (the first two and the last: those "
            "between are the same again); `--whole` counts them in full.",
            "",
        ]
    if any(row["mode"] != "default" for row in document["rows"]):
        parts += [
            "Under max-autotune Inductor times its implementations of a matrix product; these are the counts "
            f"where Triton's win ({_options('max-autotune')}), for all three alike.",
            "",
        ]
    for training, channels_last, mode in _settings(document):
        found = list(lines(document, training, channels_last, mode))
        if found:
            heading = _setting(training, channels_last, mode).capitalize()
            some = "" if len(found) == len(NETWORKS) else f" ({len(found)} of {len(NETWORKS)} counted)"
            parts += [f"## {heading}{some}", "", _table(found), ""]
    ours = [row["sources"] for row in document["rows"] if row["contender"] == "ours"]
    earlier = sum(sources != document["sources"] for sources in ours)
    if earlier:
        parts += [
            f"{earlier} of the {len(ours)} counts of ours were made from earlier sources of this package.",
            "",
        ]
    worse = rising(document)
    parts.append(f"More bytes or kernels than stock: {'; '.join(worse) if worse else 'in none of these'}.")
    return "\n".join(parts) + "\n"


COLUMNS = ("network", "sites", "plain", "stock", "ours", "tax, stock", "ours", "kernels", "stock", "ours")


def _table(found: Sequence[Line]) -> str:
    cells = []
    for line in found:
        taxes = [f"{tax:+.1%}".replace("%", " %") for tax in line.taxes]
        name = line.network + ("\\*" if line.network in DEEP else "")
        gigabytes = [f"{each / 1e9:.2f}" for each in line.bytes]
        cells.append([name, str(line.sites), *gigabytes, *taxes, *map(str, line.kernels)])
    return results.markdown(COLUMNS, cells, ("network",))


def _settings(document: Mapping[str, Any]) -> list[tuple[bool, bool, str]]:
    return list(dict.fromkeys((job.training, job.channels_last, job.mode) for job in _in_order(document)))


def _in_order(document: Mapping[str, Any]) -> list[Job]:
    modes = list(MODES)
    found = map(job_of, document["rows"])
    return sorted(found, key=lambda job: (job.training, modes.index(job.mode), not job.channels_last))


def _setting(training: bool, channels_last: bool, mode: str) -> str:
    direction = "a training step" if training else "inference"
    return f"{direction}, {'channels-last' if channels_last else 'contiguous'}, {mode}"


def _options(mode: str) -> str:
    return ", ".join(f"`{name}={value!r}`" for name, value in MODES[mode].items())


def _label(job: Job) -> str:
    return f"{job.network}, {job.contender}, {_setting(job.training, job.channels_last, job.mode)}"
