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

import torch

from eca_triton.report.measure import Clock, cuda_clock
from eca_triton.util.timing import Timer, time_in_turn

from .checkout import found_by_torch
from .commands import Context, Run, compile, copy, detectors, evidence, host, network, op, paper, report, tax

COMMANDS = (op, network, host, compile, report, evidence, copy, tax, paper, detectors)


def main(
    arguments: Sequence[str] | None = None,
    timer: Timer = time_in_turn,
    device: torch.device | None = None,
    clock: Clock = cuda_clock,
) -> int:
    """Run a command and return its exit code; a test gives clocks, and the device that it pretends for."""
    options = parser().parse_args(arguments)
    if device is None and torch.cuda.is_available():
        device = torch.device("cuda", torch.cuda.current_device())
    context = Context(sys.stdout, device, timer, clock)
    run: Run = options.run
    # Whatever libraries print goes to stderr: stdout holds the answer alone.
    with found_by_torch(), contextlib.redirect_stdout(sys.stderr):
        return run(options, context)


def parser() -> argparse.ArgumentParser:
    """Of all commands."""
    whole = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Times, on a GPU, checked before each; and counts, on any machine.",
    )
    commands = whole.add_subparsers(required=True, metavar="COMMAND", dest="command")
    for command in COMMANDS:
        command.add_to(commands)
    return whole


if __name__ == "__main__":
    sys.exit(main())
