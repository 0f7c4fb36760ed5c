"""`python -m benchmarks op`: rows within a time budget, each checked before it is timed."""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._functorch import config as aot_config

from eca_triton.compile.record import recording
from eca_triton.tuning.config import Device
from eca_triton.util.timing import Call, Timer, input_sets

from ..shared.checks import exact_convolutions, short
from ..shared.document import save
from .contenders import Inputs, Tail, check, contender, inputs_of, tail_of
from .figures import COPY, Record, figures, record
from .sites import Row
from .training import backward_alone, check_step, step


@dataclass(frozen=True)
class Plan:
    """Measurements to make, and their limits.

    Attributes:
        rows: Most telling first.
        contenders: Of every row; None: each row's own.
        budget_s: Seconds after which no row is begun that is not expected to be over by then.
        repeats: Samples per contender.
    """

    rows: Sequence[Row]
    contenders: Sequence[str] | None
    budget_s: float
    repeats: int


def measure(
    plan: Plan,
    machine: dict[str, Any],
    date: str,
    device: torch.device,
    timer: Timer,
    path: Path,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Measure row after row, with the document saved to `path` after each; returns the document.

    A document has `rows`, one record each, and the names of the rows `left_out`, for lack of time or because
    the GPU no longer works.
    """
    begin = time.monotonic()
    document: dict[str, Any] = {
        "command": "op",
        "date": date,
        "machine": machine,
        "settings": {"budget_s": plan.budget_s, "repeats": plan.repeats, "contenders": plan.contenders},
        "left_out": [str(row) for row in plan.rows],
        "rows": [],
    }
    # By contenders, the latest rows: the first ones also pay for the start of compilers and libraries.
    lasted_s: defaultdict[tuple[str, ...], deque[float]] = defaultdict(lambda: deque(maxlen=10))
    for index, row in enumerate(plan.rows):
        names = tuple(name for name in plan.contenders or row.contenders if row.offers(name))
        started = time.monotonic()
        if started - begin + max(lasted_s[names], default=0.0) > plan.budget_s:
            break
        # A backward that runs again must not write into what it was given.
        with exact_convolutions(), aot_config.patch(donated_buffer=row.direction != "backward"):
            measured = measure_row(row, names, machine, device, timer, plan.repeats)
        measured["wall_s"] = round(time.monotonic() - started, 1)
        document["rows"].append(measured)
        document["left_out"].pop(0)
        save(document, path)
        lasted_s[names].append(measured["wall_s"])
        elapsed_s = time.monotonic() - begin
        say(f"{elapsed_s:5.0f} s  {index + 1}/{len(plan.rows)}  {row}: {_outcome(measured)}")
        if not _works(device):
            say("the GPU no longer answers: stopping")
            break
    return document


def measure_row(
    row: Row, names: Sequence[str], machine: dict[str, Any], device: torch.device, timer: Timer, repeats: int
) -> Record:
    """Build, check, and only then time the contenders of one row.

    The record's `status` is "ok", "FAIL" where an error is too large, or "ERROR" where timing broke off; only
    the first has `results`. A contender that cannot be built or run is named in `errors`, without a figure.
    """
    torch.compiler.reset()
    torch.manual_seed(0)
    kernel = row.kernel(tables_know(device))
    calls: dict[str, Callable[..., Tensor]] = {}
    errors: dict[str, str] = {}
    more: dict[str, Any] = {"plan": None, "errors": errors}
    try:
        with torch.set_grad_enabled(row.trains):
            tail = tail_of(row, device)
            first = inputs_of(row, device)
            with recording() as sites:
                for name in names:
                    call = contender(name, tail)
                    try:
                        _ = step(call, tail, first) if row.trains else call(*first)
                    except Exception as error:
                        errors[name] = short(error)
                    else:
                        calls[name] = call
            more["plan"] = sites[-1].decision.plan if sites else None
            checks = (check_step if row.trains else check)(calls, tail, first)
            more["checks"] = {name: found.as_dict() for name, found in checks.items()}
            if not all(found.passed for found in checks.values()):
                return record(row, kernel, status="FAIL", **more)
            samples = _samples(row, tail, calls, first, machine, device, timer, repeats)
    except Exception as error:
        errors["row"] = short(error)
        return record(row, kernel, status="ERROR", **more)
    return record(row, kernel, status="ok", results=figures(row, samples), **more)


def tables_know(device: torch.device) -> Device:
    """A GPU by the name that tuned tables have for it; an H200 without one where a test pretends."""
    if device.type != "cuda":
        return Device(num_sms=132, warp_size=32)
    return Device.of(torch.cuda.get_device_properties(device))


def failed(document: dict[str, Any]) -> bool:
    """Return whether any row failed its check, or any contender could not run."""
    return any(row["status"] != "ok" or row["errors"] for row in document["rows"])


def _samples(
    row: Row,
    tail: Tail,
    calls: dict[str, Callable[..., Tensor]],
    first: Inputs,
    machine: dict[str, Any],
    device: torch.device,
    timer: Timer,
    repeats: int,
) -> dict[str, list[float]]:
    input_bytes = sum(tensor.nbytes for tensor in first)
    sets = input_sets(input_bytes, machine.get("l2_bytes", 0))
    inputs = [first, *(inputs_of(row, device) for _ in range(sets - 1))]

    def on_set(call: Callable[..., Tensor]) -> Call:
        if row.direction == "backward":
            return backward_alone(call, tail, inputs)
        return lambda index: step(call, tail, inputs[index]) if row.trains else call(*inputs[index])

    timed: dict[str, Call] = {COPY: lambda index: inputs[index][0].detach().clone()}
    return timer(timed | {name: on_set(call) for name, call in calls.items()}, sets, repeats)


def _works(device: torch.device) -> bool:
    """A fault in a kernel makes every later call fail."""
    try:
        return device.type != "cuda" or torch.zeros(1, device=device).item() == 0
    except RuntimeError:
        return False


def _outcome(measured: Record) -> str:
    """For the line of progress."""
    if measured["status"] != "ok":
        return str(measured["status"])
    shown = [f"{name} {found['median_us']:.1f} us" for name, found in measured["results"].items()]
    return ", ".join([*shown, *(f"{name} failed" for name in measured["errors"])])
