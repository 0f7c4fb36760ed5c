"""Command line of the measurements and the counts: `python -m benchmarks COMMAND`.

Exit codes: 0 measured, counted, or shown; 1 a result was wrong, something could not run, or ours is worse
than stock where it must not be; 2 there is no CUDA device, and nothing was measured on one, or the arguments
are wrong, a folder is not empty, or a package is missing.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from eca_triton.report.measure import Clock
    from eca_triton.util.timing import Timer

    from .shared.context import Run

COMMANDS = {
    "op": ("op.command", "ECA and whole tails, forward or in training, against eager and torch.compile"),
    "network": (
        "network.command",
        "whole networks beside their twins without attention, with SE and with CBAM",
    ),
    "host": ("host.command", "what a call costs the host: microseconds, on any machine"),
    "compile": ("network.compile_command", "seconds that our pass adds to torch.compile, on any machine"),
    "report": ("evidence.report_command", "the page of committed results, its figures, and the goals"),
    "evidence": ("evidence.command", "everything that counts, within ten minutes, into one folder"),
    "copy": ("op.copy_command", "bandwidth of a copy, by its size"),
    "tax": ("counted.command", "bytes and kernels of networks: stock, ours, and without ECA"),
    "paper": ("paper.command", "parameters and FLOPs of the ECA-Net paper's tables 2 and 3"),
    "detectors": ("paper.detectors_command", "parameters of the detectors beside the official table"),
}
"""By name the module, of which only the one that runs is imported, and what it does."""


def main(
    arguments: Sequence[str] | None = None,
    timer: Timer | None = None,
    device: torch.device | None = None,
    clock: Clock | None = None,
) -> int:
    """Run a command and return its exit code; a test gives clocks, and the device that it pretends for."""
    options = parser(sys.argv[1:] if arguments is None else arguments).parse_args(arguments)
    import torch

    from eca_triton.report.measure import cuda_clock
    from eca_triton.util.timing import time_in_turn

    from .shared.checkout import found_by_torch
    from .shared.context import Context

    if device is None and torch.cuda.is_available():
        device = torch.device("cuda", torch.cuda.current_device())
    context = Context(sys.stdout, device, timer or time_in_turn, clock or cuda_clock)
    run: Run = options.run
    # Whatever libraries print goes to stderr: stdout holds the answer alone.
    with found_by_torch(), contextlib.redirect_stdout(sys.stderr):
        return run(options, context)


def parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    """Make the parser of all commands, with the options of the one that the arguments name."""
    whole = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Times, on a GPU, checked before each; and counts, on any machine.",
    )
    commands = whole.add_subparsers(required=True, metavar="COMMAND", dest="command")
    for name, (module, text) in COMMANDS.items():
        each = commands.add_parser(name, help=text)
        if name in arguments[:1]:
            command = import_module(f".{module}", __package__)
            command.add_to(each)
            each.set_defaults(run=command.run)
    return whole


if __name__ == "__main__":
    sys.exit(main())
