"""Command line: `python -m eca_triton explain MODEL`, `doctor`, `autotune MODEL` and `tune-cache ACTION`.

Exit codes: 0 fine; 1 the model could not be compiled or ended the program, `doctor` found a problem, or a
table could not be read or written; 2 bad arguments, or a file that is not a table;
3 `explain --diff` found a site that is not lowered any more, or more bytes;
4 `autotune` has no GPU to measure on.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from .cli.arguments import Parser, dtype_name

if TYPE_CHECKING:
    from .cli.named_model import Request

DESCRIPTION = "Efficient Channel Attention under torch.compile: what is lowered, and on what machine."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    options = _parser().parse_args(arguments)
    from . import ops as ops  # what `import eca_triton` does elsewhere

    out = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):  # whatever libraries print: stdout holds the answer alone
        try:
            code: int = options.run(options, out)
        except SystemExit as end:
            return _complain(1, f"the model's code ended the program before there was an answer: {end!r}")
    return code


def _parser() -> argparse.ArgumentParser:
    from .tuning.targets import TARGETS

    targets = ", ".join(TARGETS)
    parser = Parser(prog="python -m eca_triton", description=DESCRIPTION)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    explain = commands.add_parser(
        "explain", help="list the ECA-like sites of a model and what becomes of each"
    )
    _add_model(explain)
    explain.add_argument("--mode", default="default", help="of torch.compile, max-autotune for one")
    explain.add_argument(
        "--target",
        type=str.lower,
        help=f"also lower the network for this GPU ({targets}), which need not be there; by default "
        "for the one that is, if any; `none` lists the sites alone",
    )
    explain.add_argument(
        "--measure", action="store_true", help="also time it on this machine's GPU, with random weights"
    )
    explain.add_argument("--json", action="store_true", help="print one JSON object")
    explain.add_argument("--html", metavar="FILE", type=Path, help="also write a page that stands alone")
    explain.add_argument(
        "--diff",
        metavar="FILE",
        type=Path,
        help="compare with an earlier --json of the same model; exit code 3 if it got worse",
    )
    explain.set_defaults(run=_explain)

    doctor = commands.add_parser("doctor", help="show versions, GPUs, the backend and environment variables")
    doctor.add_argument("--json", action="store_true", help="print one JSON object")
    doctor.set_defaults(run=_doctor)

    autotune = commands.add_parser(
        "autotune", help="measure which kernel configs a model's sites run fastest with, and keep them"
    )
    _add_model(autotune)
    autotune.add_argument(
        "--dry-run", action="store_true", help="list sites, keys and candidates; needs no GPU"
    )
    autotune.add_argument(
        "--target",
        type=str.lower,
        help=f"with --dry-run: the GPU to plan for ({targets}); by default the one that is",
    )
    autotune.add_argument(
        "--out", metavar="FILE", type=Path, help="write this table (merged, if it is there) instead of yours"
    )
    autotune.set_defaults(run=_autotune, measure=False, mode="default")

    _add_tune_cache(commands)
    return parser


def _add_model(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that say what is run, and how."""
    parser.add_argument(
        "model",
        help="timm:NAME, eca_triton:NAME of a network of the paper (eca_triton:eca_resnet50), "
        "or FILE.py:FACTORY where FACTORY() -> (model, example_inputs)",
    )
    parser.add_argument("--batch", type=_positive, help="images of one step (named networks; default 1)")
    parser.add_argument("--size", type=_positive, help="height and width of an image (named networks)")
    parser.add_argument(
        "--dtype", type=dtype_name, choices=("fp32", "fp16", "bf16"),
        help="cast the model and its inputs; torch's names will do, too",
    )  # fmt: skip
    parser.add_argument("--channels-last", action="store_true", help="store maps channels-last")
    parser.add_argument("--training", action="store_true", help="a training step instead of inference")


def _add_tune_cache(commands: Any) -> None:
    tuned = commands.add_parser("tune-cache", help="show, merge, clear and export tuned kernel configs")
    actions = tuned.add_subparsers(required=True, metavar="ACTION", dest="action")
    show = actions.add_parser("show", help="list the configs in force, or those of a file")
    show.add_argument("file", nargs="?", type=Path, help="a table; by default all that are read")
    show.add_argument("--json", action="store_true", help="print one JSON object")
    merge = actions.add_parser("merge", help="put the configs of files into your table, in place of its own")
    merge.add_argument("files", nargs="+", metavar="file", type=Path, help="tables; later ones count more")
    actions.add_parser("clear", help="delete your table")
    export = actions.add_parser("export", help="write your table to a file, to share it")
    export.add_argument("file", type=Path, help="is replaced if it is there")
    tuned.set_defaults(run=_tune_cache)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


def _explain(options: argparse.Namespace, out: TextIO) -> int:
    from .cli.named_model import ModelNotFoundError, load
    from .cli.own_code import OwnCodeError
    from .report import explain
    from .report.diff import NotComparableError, compare_reports, load_report
    from .report.text import write_sites, write_totals
    from .util.progress import Progress

    problem = _impossible(options)
    if problem:
        return _complain(2, problem)
    try:
        earlier = None if options.diff is None else load_report(options.diff)
        model, inputs = load(_request(options))
    except (ModelNotFoundError, NotComparableError) as error:
        return _complain(2, str(error))
    except OwnCodeError as error:
        return _complain(1, str(error))
    shown: list[Any] = []

    def show(early: Any) -> None:
        """Sites and plans, while the network is still being lowered."""
        shown.extend(early.sites)
        progress.clear()
        write_sites(early, out)
        out.flush()

    try:
        with Progress(sys.stderr) as progress:
            report = explain(
                model,
                *inputs,
                target=options.target,
                training=options.training,
                mode=options.mode,
                measure=options.measure,
                name=options.model,
                progress=progress,
                decided=None if options.json or earlier else show,
            )
    except Exception as error:
        return _complain(1, _failed(options.model, "compiled", error))
    answer = report.as_dict()
    try:
        diff = None if earlier is None else compare_reports(earlier, answer)
    except NotComparableError as error:
        return _complain(2, str(error))
    if options.json:
        print(json.dumps(answer | ({} if diff is None else {"diff": diff.as_dict()}), indent=2), file=out)
    elif diff is not None:
        out.write("\n".join(diff.lines()) + "\n")
    elif shown == list(report.sites):
        write_totals(report, out)
    else:
        report.write(out)
    try:
        if options.html is not None:
            report.save_html(options.html)
    except OSError as error:
        return _complain(2, str(error))
    return 3 if diff is not None and diff.worse else 0


def _autotune(options: argparse.Namespace, out: TextIO) -> int:
    import torch

    from .cli.named_model import ModelNotFoundError, load
    from .cli.own_code import OwnCodeError

    problem = _impossible(options)
    if not problem and options.target is not None and not options.dry_run:
        problem = "--target is for --dry-run: kernels are timed on the GPU that is there"
    if not problem and options.target == "none":
        problem = "--target none has no kernels"
    if problem:
        return _complain(2, problem)
    if find_spec("triton") is None:
        return _complain(4, "there is no Triton, and so no kernel to tune")
    if not (options.dry_run or torch.cuda.is_available()):
        return _complain(4, "kernels are timed on a GPU, and there is none; --dry-run lists what would be")
    try:
        model, inputs = load(_request(options))
    except ModelNotFoundError as error:
        return _complain(2, str(error))
    except OwnCodeError as error:
        return _complain(1, str(error))
    from .autotune import command

    try:
        if options.dry_run:
            return command.plan(model, inputs, options.training, options.target, out)
        return command.measure(model, inputs, options.training, options.out, out, sys.stderr)
    except Exception as error:
        return _complain(1, _failed(options.model, "tuned", error))


def _failed(model: str, what: str, error: Exception) -> str:
    """Say that a model could not be compiled or tuned, and at which of the user's lines that began."""
    from .cli.own_code import place_of

    place = place_of(Path(model.rpartition(":")[0]), error)
    return f"{model} could not be {what}{f', at {place}' * bool(place)}: {type(error).__name__}: {error}"


def _impossible(options: argparse.Namespace) -> str:
    """Return what is wrong with the arguments, or ""."""
    from .report.gather import choose_options
    from .tuning.targets import TARGETS
    from .util.near_names import near_names

    try:
        choose_options(options.mode)
    except ValueError as error:
        return str(error)
    if options.target not in (None, "none", *TARGETS):
        near = near_names(options.target, TARGETS)
        return f"unknown target {options.target!r}; choose {', '.join(TARGETS)}{near}"
    html: Path | None = getattr(options, "html", None)
    if html is not None and (html.is_dir() or not os.access(html if html.exists() else html.parent, os.W_OK)):
        return f"--html {html} cannot be written"
    if options.target not in (None, "none") and find_spec("triton") is None:
        return (
            "--target needs Triton, which is not installed: pip install triton; without it, sites are listed"
        )
    if options.measure:
        import torch

        if not torch.cuda.is_available():
            return "--measure needs a GPU, and there is none"
        if options.target == "none":
            return "--measure and --target none contradict each other"
    return ""


def _request(options: argparse.Namespace) -> Request:
    from .cli.named_model import Request

    return Request(
        name=options.model,
        batch=options.batch,
        size=options.size,
        dtype=options.dtype,
        channels_last=options.channels_last,
        training=options.training,
        device="cuda" if options.measure else None,
    )


def _doctor(options: argparse.Namespace, out: TextIO) -> int:
    from .cli.doctor import examine, write

    examination = examine()
    if options.json:
        print(json.dumps(examination.as_dict(), indent=2), file=out)
    else:
        write(examination, out)
    return 1 if examination.problems else 0


def _tune_cache(options: argparse.Namespace, out: TextIO) -> int:
    from .cli import tune_cache

    try:
        if options.action == "show":
            tune_cache.show(options.file, options.json, out)
        elif options.action == "merge":
            tune_cache.merge(options.files, out)
        elif options.action == "clear":
            tune_cache.clear(out)
        else:
            tune_cache.export(options.file, out)
    except ValueError as error:
        return _complain(2, str(error))
    except OSError as error:
        return _complain(1, str(error))
    return 0


def _complain(code: int, message: str) -> int:
    print(f"eca_triton: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    if sys.path[0] == os.getcwd():  # `python -m` puts it there, where its files would hide libraries' modules
        sys.path.append(sys.path.pop(0))
    sys.exit(main())
