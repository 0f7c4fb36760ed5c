"""Command line of the measurements: `python -m benchmarks op`, and of the counts: `python -m benchmarks tax`.

Exit codes: 0 measured, counted, or shown; 1 a row failed its check, a contender could not run, or ours moves
more than stock; 2 nothing was measured because there is no CUDA device, or the arguments are wrong.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import TextIO

import torch

from eca_triton.tables import write_table
from eca_triton.timing import Timer, time_in_turn
from eca_triton.tuning.config import Device

from . import results, sites, tax
from .machine import describe, folder_name
from .networks import NETWORKS
from .op import Plan, failed, measure

RESULTS = Path(__file__).parent / "results"
DOCS = Path(__file__).parents[1] / "docs"
DIRECTIONS = {"inference": False, "training": True}
BUDGET_S = 460.0  # eight minutes, less the start of Python and the row in flight
REPEATS = 20
NO_DEVICE = 2


def main(
    arguments: Sequence[str] | None = None, timer: Timer = time_in_turn, device: torch.device | None = None
) -> int:
    """Run the command and return its exit code; a test gives a timer, and the device that it pretends for."""
    options = _parser().parse_args(arguments)
    if options.command == "tax":
        return _tax(options)
    if options.table is not None:
        return _show(options.table)
    if device is None and torch.cuda.is_available():
        device = torch.device("cuda", torch.cuda.current_device())
    shapes = list(dict.fromkeys(shape for named in options.shapes for shape in named))
    directions = ("backward", "both") if options.backward else ("forward",)
    rows = sites.rows(shapes, options.batch, options.layouts, options.variants, options.dtype, directions)
    rows = [row for row in rows if any(map(row.offers, options.contenders or row.contenders))]
    if options.dry_run:
        return _list(rows, options.target, sys.stdout)
    if device is None:
        print("not measured: no CUDA device")
        return NO_DEVICE
    out = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):  # whatever libraries print: stdout holds the answer alone
        return _measure(options, rows, timer, device, out)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Times, on a GPU, checked before each; and counts, on any machine.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    each = commands.add_parser(
        "op", help="ECA and whole tails, forward or in training, against eager and torch.compile"
    )
    each.add_argument(
        "--backward", action="store_true",
        help="a training step of each: backward alone, and forward + backward",
    )  # fmt: skip
    each.add_argument(
        "--shapes", nargs="+", type=_shapes, metavar="SHAPE", default=[list(sites.TAPS)],
        help=f"maps as CxHxW, or networks: {', '.join(sites.NETWORKS)} (default: all of these)",
    )  # fmt: skip
    each.add_argument("--batch", nargs="+", type=_positive, default=list(sites.BATCHES))
    each.add_argument("--layouts", nargs="+", choices=sites.LAYOUTS, default=list(sites.LAYOUTS))
    each.add_argument("--variants", nargs="+", choices=sites.VARIANTS, default=list(sites.VARIANTS))
    each.add_argument("--dtype", choices=sites.DTYPES, default="bf16")
    each.add_argument(
        "--contenders", nargs="+", choices=(*sites.BASELINES, *sites.OURS),
        help="of every row (default: not two_pass, and max-autotune for ResNet's maps at batch 128 alone)",
    )  # fmt: skip
    each.add_argument("--budget-s", type=float, default=BUDGET_S, help="begin no row that would end later")
    each.add_argument("--repeats", type=_positive, default=REPEATS, help="samples per contender")
    each.add_argument("--out", type=Path, help="folder of the JSON (default: in benchmarks/results)")
    each.add_argument("--dry-run", action="store_true", help="list the rows and their kernels; needs no GPU")
    each.add_argument("--target", default="h200", help="GPU whose kernels --dry-run lists: h200, h100, a100")
    each.add_argument("--table", type=Path, metavar="OP_JSON", help="print earlier results as markdown")
    counts = commands.add_parser(
        "tax", help="bytes and kernels of timm's networks: stock, ours, and without ECA"
    )
    counts.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS), metavar="NAME")
    counts.add_argument("--contenders", nargs="+", choices=tax.CONTENDERS, default=list(tax.CONTENDERS))
    counts.add_argument("--modes", nargs="+", choices=tax.MODES, default=list(tax.MODES))
    counts.add_argument("--directions", nargs="+", choices=DIRECTIONS, default=list(DIRECTIONS))
    counts.add_argument("--whole", action="store_true", help="the deepest networks with all their blocks")
    counts.add_argument("--workers", type=_positive, default=2, help="processes")
    counts.add_argument("--out", type=Path, default=RESULTS / "counted" / "tax.json", help="the JSON")
    counts.add_argument("--page", type=Path, default=DOCS / "tax.md", help="the page made of it")
    return parser


def _tax(options: argparse.Namespace) -> int:
    from eca_triton.compile.passes import package_hash

    wanted = tax.jobs(
        options.networks, options.contenders, [DIRECTIONS[each] for each in options.directions], options.modes
    )
    machine = describe(torch.device("cpu"))
    sources = package_hash()[:16]
    document = tax.run(wanted, options.out, machine, sources, options.workers, print, whole=options.whole)
    options.page.write_text(tax.page(document))
    worse, failed = tax.rising(document), [row for row in document["rows"] if "error" in row]
    print(*(f"more than stock: {each}" for each in worse), f"written to {options.page}", sep="\n")
    return int(bool(worse or failed))


def _shapes(text: str) -> list[sites.Shape]:
    try:
        return sites.parse_shapes([text])
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


def _measure(
    options: argparse.Namespace, rows: list[sites.Row], timer: Timer, device: torch.device, out: TextIO
) -> int:
    machine = describe(device)
    date = f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC"
    path = (options.out or RESULTS / folder_name(machine["gpu"], date)) / (
        "op-backward.json" if options.backward else "op.json"
    )
    plan = Plan(rows, options.contenders, options.budget_s, options.repeats)
    document = measure(plan, machine, date, device, timer, path, print)
    columns, cells = results.table(document)
    out.write(results.heading(document) + "\n")
    write_table(columns, cells, out, set(columns) - set(results.TEXT_COLUMNS))
    out.write("\n".join([*results.notes(document), f"written to {path}"]) + "\n")
    return int(failed(document))


def _show(path: Path) -> int:
    try:
        document = results.load(path)
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    columns, cells = results.table(document)
    print(results.heading(document), "", results.markdown(columns, cells, results.TEXT_COLUMNS), "", sep="\n")
    print(*(f"- {note}" for note in results.notes(document)), sep="\n")
    return 0


def _list(rows: list[sites.Row], target: str, out: TextIO) -> int:
    from eca_triton.deviceless import TARGETS  # it imports Inductor, which takes seconds

    if target not in TARGETS:
        print(f"unknown target {target!r}; choose {', '.join(TARGETS)}", file=sys.stderr)
        return 2
    device = Device(num_sms=TARGETS[target].sms, warp_size=TARGETS[target].warp_size)
    cells = [
        [
            sites.shape_name((row.batch, *row.shape)),
            row.layout.replace("_", "-"),
            sites.VARIANTS[row.variant] + sites.DIRECTIONS[row.direction],
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


if __name__ == "__main__":
    sys.exit(main())
