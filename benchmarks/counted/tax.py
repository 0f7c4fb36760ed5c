"""What attention costs, counted without a GPU: bytes and kernels of each network with and without it.

Every count is one lowering by `eca_triton.deviceless`, in a process of a pool. They are saved one by one,
and what is in the file already is not counted again: ours for the same torch, Triton and sources, the others
for the same torch and Triton. Ours of earlier sources stand until their turn comes, which is last, and the
page says how many they are.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..shared import twins
from ..shared.document import load, save
from ..shared.networks import NETWORKS, PAPER, attention, images

BATCH = 128
MODES: dict[str, dict[str, Any]] = {
    "default": {},
    # Inductor finds the fastest by timing, so without a GPU it is not known: these are the counts where
    # Triton's wins.
    "max-autotune": {"max_autotune_gemm": True, "max_autotune_gemm_backends": "TRITON"},
}


class Set(NamedTuple):
    """Networks that are counted together, into a file and onto a page of their own.

    Attributes:
        command: What counts them; their document bears it.
        stem: Of the names of the file and the page.
        title: Of the page.
        about: What the page counts, in words.
        networks: Of `networks`.
        contenders: By how rows have them, how tables do. "stock" and "ours" are the ECA network without and
            with our pass; the others are kinds of `twins`, under stock Inductor.
        modes: Of `MODES`.
    """

    command: str
    stem: str
    title: str
    about: str
    networks: Sequence[str]
    contenders: Mapping[str, str]
    modes: Sequence[str]


SETS = {
    "timm": Set(
        "tax",
        "tax",
        "The ECA tax, in bytes",
        f"timm's {len(NETWORKS)} ECA networks on an H200: without ECA (the identity in place of each module: "
        "plain), with ECA under stock Inductor, and with our pass.",
        list(NETWORKS),
        {"plain": "plain", "stock": "stock", "ours": "ours"},
        list(MODES),
    ),
    "paper": Set(
        "tax --set paper",
        "tax-paper",
        "SE, CBAM and ECA in the networks of the ECA-Net paper, in bytes",
        f"the {len(PAPER)} networks of the paper, those of `eca_triton.models` with the taps of the official "
        "checkpoints, on an H200: without attention (plain), with SE, CBAM and ECA under stock Inductor, and "
        "with ECA and our pass.",
        list(PAPER),
        {"plain": "plain", "se": "SE", "cbam": "CBAM", "stock": "ECA, stock", "ours": "ECA, ours"},
        ["default"],
    ),
}


def set_of(document: Mapping[str, Any]) -> Set:
    """The set that a document is of."""
    return next(each for each in SETS.values() if each.command == document["command"])


SOURCES = ("compile", "deviceless", "kernels", "launch", "ops", "reference", "tuning")
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
    networks: Iterable[str],
    contenders: Iterable[str],
    training: Iterable[bool],
    channels_last: Iterable[bool],
    modes: Iterable[str],
) -> list[Job]:
    """All of them, the settings that tell most first."""
    order = product(training, modes, channels_last, networks, contenders)
    return [Job(name, who, train, layout, mode) for train, mode, layout, name, who in order]


def count(job: Job, *, batch: int = BATCH, whole: bool = False) -> Count:
    """Lower one network and count; what went wrong instead, if anything did."""
    from eca_triton.compile.record import recording
    from eca_triton.deviceless import lower

    started = time.perf_counter()
    sites = len(attention(twins.build(job.network, "eca", whole=whole)))
    kind = "eca" if job.contender in ("stock", "ours") else job.contender
    model = twins.build(job.network, kind, whole=whole)
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
    command: str = "tax",
    batch: int = BATCH,
    whole: bool = False,
) -> dict[str, Any]:
    """Count what `path` does not hold yet, then what it holds of other sources, and return its document."""
    same = {"command": command, "target": "h200", "batch": batch, "dtype": "bf16", "whole": whole}
    same |= {"torch": machine["torch"], "triton": machine["triton"]}
    document: dict[str, Any] = {**same, "rows": []}
    if path.exists():
        before = load(path, command)
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
            save(document, path)
            what = row.get("error") or f"{row['bytes'] / 1e9:.2f} GB, {row['kernels']} kernels"
            name, who, *setting = job_of(row)
            progress(f"{done}/{len(missing)} {name}, {who}, {setting_name(*setting)}: {what}")
    return document


def job_of(row: Count) -> Job:
    """The job that made a row."""
    return Job(*(row[name] for name in Job._fields))


def setting_name(training: bool, channels_last: bool, mode: str) -> str:
    """Name a setting in words."""
    direction = "a training step" if training else "inference"
    return f"{direction}, {'channels-last' if channels_last else 'contiguous'}, {mode}"
