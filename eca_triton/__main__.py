"""Command line: `python -m eca_triton explain MODEL` and `python -m eca_triton doctor`.

Exit codes: 0 fine; 1 the model could not be compiled, or `doctor` found a problem; 2 bad arguments.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Sequence
from typing import TextIO

DESCRIPTION = "Efficient Channel Attention under torch.compile: what is lowered, and on what machine."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    options = _parser().parse_args(arguments)
    out = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):  # whatever libraries print: stdout holds the answer alone
        code: int = options.run(options, out)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m eca_triton", description=DESCRIPTION)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    explain = commands.add_parser(
        "explain", help="list the ECA-like sites of a model and what becomes of each"
    )
    explain.add_argument(
        "model", help="timm:NAME, or FILE.py:FACTORY where FACTORY() -> (model, example_inputs)"
    )
    explain.add_argument("--batch", type=_positive, help="images of one step (timm models; default 1)")
    explain.add_argument("--size", type=_positive, help="height and width of an image (timm models)")
    explain.add_argument("--dtype", choices=("fp32", "fp16", "bf16"), help="cast the model and its inputs")
    explain.add_argument("--channels-last", action="store_true", help="store maps channels-last")
    explain.add_argument("--training", action="store_true", help="a training step instead of inference")
    explain.add_argument(
        "--target", help="also lower the network for this GPU (h200, h100, a100); none is needed"
    )
    explain.add_argument("--json", action="store_true", help="print one JSON object")
    explain.set_defaults(run=_explain)

    doctor = commands.add_parser("doctor", help="show versions, GPUs, the backend and environment variables")
    doctor.add_argument("--json", action="store_true", help="print one JSON object")
    doctor.set_defaults(run=_doctor)
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


def _explain(options: argparse.Namespace, out: TextIO) -> int:
    from .models import ModelNotFoundError, Request, load
    from .report import explain, write

    if options.target is not None:
        from .deviceless import TARGETS

        if options.target not in TARGETS:
            return _complain(2, f"unknown target {options.target!r}; choose {', '.join(TARGETS)}")
    request = Request(
        name=options.model,
        batch=options.batch,
        size=options.size,
        dtype=options.dtype,
        channels_last=options.channels_last,
        training=options.training,
    )
    try:
        model, inputs = load(request)
    except ModelNotFoundError as error:
        return _complain(2, str(error))
    if options.target is not None and sys.stderr.isatty():
        print(f"lowering {options.model} for {options.target}, stock and with our pass ...", file=sys.stderr)
    try:
        report = explain(model, inputs, target=options.target, training=options.training)
    except Exception as error:
        return _complain(1, f"{options.model} could not be compiled: {type(error).__name__}: {error}")
    if options.json:
        print(json.dumps(report.as_dict(), indent=2), file=out)
    else:
        write(report, out)
    return 0


def _doctor(options: argparse.Namespace, out: TextIO) -> int:
    from .doctor import examine, write

    examination = examine()
    if options.json:
        print(json.dumps(examination.as_dict(), indent=2), file=out)
    else:
        write(examination, out)
    return 1 if examination.problems else 0


def _complain(code: int, message: str) -> int:
    print(f"eca_triton: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
