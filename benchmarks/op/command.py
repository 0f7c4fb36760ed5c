"""`python -m benchmarks op`: ECA and whole tails on a GPU."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TextIO

import torch

from eca_triton.tuning.targets import TARGETS
from eca_triton.util.tables import write_table

from ..shared.context import NOTHING_MEASURED, RESULTS, Context, now, positive
from ..shared.document import heading, load, markdown
from ..shared.machine import describe, folder_name
from ..shared.tensors import DTYPES, LAYOUTS, shape_name
from . import figures, sites
from .measure import Plan, failed, measure
from .tails import HEADLINE, TAILS

BUDGET_S = 460.0  # eight minutes, less the start of Python and the row in flight
REPEATS = 20


def add_to(parser: argparse.ArgumentParser) -> None:
    """The arguments."""
    parser.add_argument(
        "--backward", action="store_true",
        help="a training step of each: backward alone, and forward + backward",
    )  # fmt: skip
    parser.add_argument(
        "--shapes", nargs="+", type=_shapes, metavar="SHAPE", default=[list(sites.TAPS)],
        help=f"maps as CxHxW, or networks: {', '.join(sites.NETWORKS)} (default: all of these)",
    )  # fmt: skip
    parser.add_argument("--batch", nargs="+", type=positive, default=list(sites.BATCHES))
    parser.add_argument("--layouts", nargs="+", choices=LAYOUTS, default=list(LAYOUTS))
    parser.add_argument(
        "--variants", nargs="+", choices=(*TAILS, "all"), default=list(HEADLINE), metavar="VARIANT",
        help=f"what is around ECA: {', '.join(TAILS)}, or all (default: the first {len(HEADLINE)})",
    )  # fmt: skip
    parser.add_argument("--dtype", choices=DTYPES, default="bf16")
    parser.add_argument(
        "--contenders", nargs="+", choices=(*sites.BASELINES, *sites.OURS),
        help="of every row (default: not two_pass, and max-autotune for ResNet's maps at batch 128 alone)",
    )  # fmt: skip
    parser.add_argument("--budget-s", type=float, default=BUDGET_S, help="begin no row that would end later")
    parser.add_argument("--repeats", type=positive, default=REPEATS, help="samples per contender")
    parser.add_argument("--out", type=Path, help="folder of the JSON (default: in benchmarks/results)")
    parser.add_argument(
        "--dry-run", action="store_true", help="list the rows and their kernels; needs no GPU"
    )
    parser.add_argument(
        "--target", default="h200", help=f"GPU whose kernels --dry-run lists: {', '.join(TARGETS)}"
    )
    parser.add_argument("--table", type=Path, metavar="OP_JSON", help="print earlier results as markdown")


def run(options: argparse.Namespace, context: Context) -> int:
    """Measure, list, or show."""
    if options.table is not None:
        return _show(options.table, context.out)
    shapes = list(dict.fromkeys(shape for named in options.shapes for shape in named))
    directions = ("backward", "both") if options.backward else ("forward",)
    variants = list(TAILS) if "all" in options.variants else options.variants
    rows = sites.rows(shapes, options.batch, options.layouts, variants, options.dtype, directions)
    rows = [row for row in rows if any(map(row.offers, options.contenders or row.contenders))]
    if options.dry_run:
        return _list(rows, options.target, context.out)
    if context.device is None:
        context.say("not measured: no CUDA device")
        return NOTHING_MEASURED
    return _measure(options, rows, context, context.device)


def _shapes(text: str) -> list[sites.Shape]:
    try:
        return sites.parse_shapes([text])
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _measure(
    options: argparse.Namespace, rows: list[sites.Row], context: Context, device: torch.device
) -> int:
    machine, date, out = describe(device), now(), context.out
    path = (options.out or RESULTS / folder_name(machine["gpu"], date)) / (
        "op-backward.json" if options.backward else "op.json"
    )
    plan = Plan(rows, options.contenders, options.budget_s, options.repeats)
    document = measure(plan, machine, date, device, context.timer, path, print)
    columns, cells = figures.table(document)
    out.write(heading(document) + "\n")
    write_table(columns, cells, out, set(columns) - set(figures.TEXT_COLUMNS))
    out.write("\n".join([*figures.notes(document), f"written to {path}"]) + "\n")
    return int(failed(document))


def _show(path: Path, out: TextIO) -> int:
    try:
        document = load(path, "op")
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    columns, cells = figures.table(document)
    shown = [heading(document), "", markdown(columns, cells, figures.TEXT_COLUMNS), ""]
    out.write("\n".join([*shown, *(f"- {note}" for note in figures.notes(document))]) + "\n")
    return 0


def _list(rows: list[sites.Row], target: str, out: TextIO) -> int:
    if target not in TARGETS:
        print(f"unknown target {target!r}; choose {', '.join(TARGETS)}", file=sys.stderr)
        return 2
    device = TARGETS[target].device
    cells = [
        [
            shape_name((row.batch, *row.shape)),
            row.layout.replace("_", "-"),
            row.tail.label + sites.DIRECTIONS[row.direction],
            str(row.taps),
            f"{row.map_bytes / 1e6:.2f}",
            f"{row.least_bytes / 1e6:.2f}",
            row.kernel(device),
        ]
        for row in rows
    ]
    columns = ("map", "layout", "variant", "taps", "S, MB", "least MB", f"kernel on {target}")
    write_table(columns, cells, out, columns[3:6])
    out.write(f"{len(rows)} rows, most telling first\n")
    return 0
