"""`python -m benchmarks network`: whole networks with ECA, without, with SE or CBAM; checked, then timed."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._dynamo import config as dynamo_config

from eca_triton.report.measure import Clock, in_turn

from ..shared import twins
from ..shared.checks import Check, exact_convolutions, short
from ..shared.document import save
from ..shared.tensors import DTYPES, LAYOUTS
from . import timm_counts, weights
from .agreement import Groups, Step, agrees, outcome, worst
from .figures import Record, figures

DIRECTIONS = ("inference", "training")
BACKENDS: dict[str, dict[str, Any]] = {
    "eager": {},
    "inductor": {"backend": "inductor"},
    "ours": {"backend": "eca_triton"},
    # Without CUDA graphs, whose memory pools of so many networks would not fit beside each other.
    "max-autotune": {"backend": "inductor", "mode": "max-autotune-no-cudagraphs"},
    "ours-max-autotune": {"backend": "eca_triton", "mode": "max-autotune-no-cudagraphs"},
}
SOME = 8  # images that gates are set by
VERSIONS = 64  # of a method that Dynamo keeps: twins share classes
CONTENDERS = ("eager", "inductor", "ours")  # unless others are asked for


class Setting(NamedTuple):
    """One row: a family of networks, and how they are run.

    Attributes:
        family: Key of `twins.FAMILIES`.
        direction: One of `DIRECTIONS`.
        layout: Key of `LAYOUTS`.
        batch: Images of a step.
        size: Their side.
        dtype: Key of `DTYPES`, of weights and images.
    """

    family: str
    direction: str
    layout: str
    batch: int
    size: int
    dtype: str

    def __str__(self) -> str:
        return f"{self.family} {self.direction} {self.layout} {self.batch}x{self.size} {self.dtype}"

    @property
    def training(self) -> bool:
        """Return whether a row is of training steps."""
        return self.direction == "training"


@dataclass(frozen=True)
class Plan:
    """Measurements to make, and their limits.

    Attributes:
        settings: Most telling first.
        kinds: Of `twins.KINDS`.
        contenders: Keys of `BACKENDS`; of the twins only those that are not ours, which leaves them alone.
        budget_s: Seconds after which nothing is begun that is not expected to be over by then.
        repeats: Samples of each.
    """

    settings: Sequence[Setting]
    kinds: Sequence[str]
    contenders: Sequence[str]
    budget_s: float
    repeats: int

    @property
    def entries(self) -> list[tuple[str, str]]:
        """(kind, contender), most telling first: without the last of them the first still make ratios."""
        pairs = product(self.contenders, self.kinds)
        first, last = {"inductor": 0, "ours": 0}, {"se": 2, "cbam": 4}
        return sorted(
            (
                (kind, contender)
                for contender, kind in pairs
                if kind == "eca" or not contender.startswith("ours")
            ),
            key=lambda pair: first.get(pair[1], 1) + last.get(pair[0], 0),
        )


def settings(
    families: Iterable[str],
    directions: Iterable[str],
    layouts: Iterable[str],
    batch: int,
    size: int | None,
    dtype: str,
) -> list[Setting]:
    """Every combination; `size` None: each network's own."""
    order = product(directions, families, layouts)
    return [
        Setting(family, direction, layout, batch, size or twins.own_size(family), dtype)
        for direction, family, layout in order
    ]


def measure(
    plan: Plan,
    machine: dict[str, Any],
    date: str,
    device: torch.device,
    clock: Clock,
    path: Path,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Measure setting after setting, with the document saved to `path` after each; returns the document."""
    deadline = time.monotonic() + plan.budget_s
    document: dict[str, Any] = {
        "command": "network",
        "date": date,
        "machine": machine,
        "settings": {
            "budget_s": plan.budget_s, "repeats": plan.repeats, "kinds": list(plan.kinds),
            "contenders": list(plan.contenders),
        },
        "left_out": [str(setting) for setting in plan.settings],
        "rows": [],
    }  # fmt: skip
    slowest_s = 0.0
    for setting in plan.settings:
        started = time.monotonic()
        if started + slowest_s > deadline:
            break
        say(f"{setting}:")
        with dynamo_config.patch(recompile_limit=VERSIONS):
            row = measure_setting(setting, plan, device, clock, deadline, say)
        row["wall_s"] = round(time.monotonic() - started, 1)
        slowest_s = max(slowest_s, row["wall_s"])
        document["rows"].append(row)
        document["left_out"].pop(0)
        save(document, path)
    return document


def measure_setting(
    setting: Setting,
    plan: Plan,
    device: torch.device,
    clock: Clock,
    deadline: float,
    say: Callable[[str], None],
) -> Record:
    """Compile and check each entry, then time in turn those that agree with eager float32.

    What fails is named: in `checks` where results differ, in `errors` where it does not run, in `left_out`
    where time was short. Only entries without such a mark have figures.
    """
    torch.compiler.reset()
    row: Record = {**setting._asdict(), "status": "ok", "checks": {}, "errors": {}, "left_out": []}
    steps: dict[tuple[str, str], Callable[[], Any]] = {}
    checks: dict[str, Check] = {}
    slowest_s = 0.0
    batch = batch_of(setting, device)
    truths: dict[str, tuple[nn.Module, Groups, Groups]] = {}
    for kind, contender in plan.entries:
        name, started = f"{kind}/{contender}", time.monotonic()
        if steps and started + slowest_s > deadline:
            row["left_out"].append(name)
            continue
        try:
            if kind not in truths:
                truths[kind] = truth(setting, kind, device, batch)
            model, native, exact = truths[kind]
            module = copy.deepcopy(model)
            step = Step(module, _compiled(module, contender), *batch)
            checks[name] = agrees(outcome(step, setting.training), native, exact)
            if checks[name].passed:
                steps[kind, contender] = _timed(step, setting.training)
        except Exception as error:
            row["errors"][name] = short(error)
        slowest_s = max(slowest_s, time.monotonic() - started)
        say(f"  {name}: {_state(name, checks, row['errors'])} after {time.monotonic() - started:.0f} s")
    row["checks"] = {name: check.as_dict() for name, check in checks.items()}
    row["parameters"] = {
        kind: sum(weight.numel() for weight in model.parameters()) for kind, (model, _, _) in truths.items()
    }
    row["counts"] = {
        kind: timm_counts.count(twins.build(setting.family, kind), setting.size)._asdict() for kind in truths
    }
    truths.clear()
    try:
        times = in_turn({f"{kind}/{who}": step for (kind, who), step in steps.items()}, clock, plan.repeats)
        row |= figures(times, setting.batch)
    except Exception as error:
        row["errors"]["timing"] = short(error)
    if row["errors"]:
        row["status"] = "ERROR"
    if worst(checks):
        row["status"] = "FAIL"
    return row


def failed(document: dict[str, Any]) -> bool:
    """Return whether any entry failed its check, or could not run."""
    return any(row["status"] != "ok" for row in document["rows"])


def batch_of(setting: Setting, device: torch.device) -> tuple[Tensor, Tensor]:
    """Images and labels."""
    torch.manual_seed(0)
    shape = (setting.batch, 3, setting.size, setting.size)
    images = torch.randn(shape, device=device, dtype=DTYPES[setting.dtype])
    labels = torch.randint(1000, (setting.batch,), device=device)
    return images.contiguous(memory_format=LAYOUTS[setting.layout]), labels


def truth(
    setting: Setting, kind: str, device: torch.device, batch: tuple[Tensor, Tensor]
) -> tuple[nn.Module, Groups, Groups]:
    """A network with its weights, and what eager computes of it in its dtype and in float32."""
    images, labels = batch
    model = weights.vary_gates(weights.fill(twins.build(setting.family, kind), device), images[:SOME])
    model = model.to(DTYPES[setting.dtype]).to(memory_format=LAYOUTS[setting.layout]).train(setting.training)
    native, exact = (copy.deepcopy(model), copy.deepcopy(model).float())
    groups = outcome(Step(native, native, images, labels), setting.training)
    with exact_convolutions():
        truth = outcome(Step(exact, exact, images.float(), labels), setting.training)
    return model, groups, truth


def setting_of(row: Record) -> Setting:
    """The setting that made a row."""
    return Setting(*(row[name] for name in Setting._fields))


def _timed(step: Step, training: bool) -> Callable[[], Any]:
    """A step as timm's benchmark takes it: forward alone, or with the loss, its gradients and SGD."""
    if not training:
        return step.infer
    optimizer = torch.optim.SGD(step.module.parameters(), lr=1e-4, momentum=0.9, nesterov=True)

    def train() -> None:
        optimizer.zero_grad()
        step.loss()[1].backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return train


def _compiled(module: nn.Module, contender: str) -> Callable[..., Any]:
    options = BACKENDS[contender]
    return torch.compile(module, dynamic=False, fullgraph=True, **options) if options else module


def _state(name: str, checks: dict[str, Check], errors: dict[str, str]) -> str:
    if name in errors:
        return errors[name]
    return "agrees" if checks[name].passed else f"WRONG, {worst({name: checks[name]})[0]}"
