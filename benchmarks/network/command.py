"""`python -m benchmarks network`: whole networks on a GPU; without one, what was counted of them."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from eca_triton.util.tables import write_table

from ..counted import page as tax_page
from ..counted import tax
from ..shared.context import COUNTED, NOTHING_MEASURED, RESULTS, Context, now, positive
from ..shared.document import heading, load
from ..shared.machine import describe, folder_name
from ..shared.tensors import LAYOUTS
from ..shared.twins import FAMILIES, KINDS
from . import figures
from .measure import BACKENDS, CONTENDERS, DIRECTIONS, Plan, failed, measure
from .options import add_settings, settings_of

BUDGET_S = 3600.0
REPEATS = 20


def add_to(parser: argparse.ArgumentParser) -> None:
    """The arguments."""
    add_settings(parser, list(FAMILIES), list(LAYOUTS))
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument(
        "--contenders", nargs="+", choices=BACKENDS, default=list(CONTENDERS),
        help="(default: without max-autotune, whose compilation takes longest)",
    )  # fmt: skip
    parser.add_argument("--budget-s", type=float, default=BUDGET_S, help="begin nothing that would end later")
    parser.add_argument("--repeats", type=positive, default=REPEATS, help="samples of each")
    parser.add_argument("--out", type=Path, help="folder of JSON and CSV (default: in benchmarks/results)")


def run(options: argparse.Namespace, context: Context) -> int:
    """Measure and write; without a GPU, show counts instead."""
    if context.device is None:
        context.say("not measured: no CUDA device")
        _show_counts(options, context)
        return NOTHING_MEASURED
    return _measure(options, context, context.device)


def _measure(options: argparse.Namespace, context: Context, device: torch.device) -> int:
    machine, date = describe(device), now()
    folder = options.out or RESULTS / folder_name(machine["gpu"], date)
    plan = Plan(settings_of(options), options.kinds, options.contenders, options.budget_s, options.repeats)
    document = measure(plan, machine, date, device, context.clock, folder / "network.json", print)
    context.say(heading(document))
    columns = figures.COLUMNS
    write_table(columns, figures.table(document), context.out, set(columns) - set(figures.TEXT))
    written = [folder / "network.json", *figures.write_csv(document, folder)]
    for line in (*figures.notes(document), f"written to {', '.join(map(str, written))}"):
        context.say(line)
    return int(failed(document))


def _show_counts(options: argparse.Namespace, context: Context) -> None:
    """Bytes and kernels of the networks that were asked for, as far as they were counted."""
    for counted in tax.SETS.values():
        document = load(COUNTED / f"{counted.stem}.json", counted.command)
        for setting in tax_page.settings(document):
            training, channels_last, mode = setting
            direction, layout = DIRECTIONS[training], "channels_last" if channels_last else "contiguous"
            if direction not in options.directions or layout not in options.layouts or mode != "default":
                continue
            found = [each for each in tax_page.lines(document, *setting) if each.network in options.networks]
            if found:
                images = f"{document['batch']} images of {tax_page.sizes(each.network for each in found)}"
                how = f"bf16, {images}, torch {document['torch']}, for an H200"
                columns = tax_page.columns(counted)
                context.say(f"\n{tax_page.heading(document, setting)}; {how}; GB, tax, kernels")
                write_table(columns, list(tax_page.cells(found)), context.out, {*columns} - {"network"})
                context.say(f"counted by `python -m benchmarks {counted.command}`")
