"""The calls that a model's sites become: what is tuned is what runs, with what Inductor puts around it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from autotune_machine import H200
from deviceless_models import Tail
from torch import Tensor, nn
from tuned import entry

from eca_triton import deviceless
from eca_triton.autotune.examples import Example
from eca_triton.autotune.search import Task, tasks_of
from eca_triton.autotune.sites import sites_of
from eca_triton.compile.record import recording
from eca_triton.ops.schema import ECA, GATE
from eca_triton.tuning import store
from eca_triton.tuning.candidates import candidates
from eca_triton.tuning.choice import choose
from eca_triton.tuning.config import Choice
from eca_triton.tuning.select import select


class Ended(Tail):
    """A bottleneck whose attention is followed by something else than a residual and ReLU."""

    def __init__(self, channels: int, end: Any) -> None:
        super().__init__(channels)
        self.end = end

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return self.end(self.eca(self.bn(self.conv(x))), residual)


def tasks(
    module: nn.Module, channels: int = 1024, side: int = 14, residual: torch.dtype = torch.bfloat16
) -> list[Task]:
    """Of inference in bf16, channels-last, batch 128."""
    module = module.to(device="meta", dtype=torch.bfloat16, memory_format=torch.channels_last).eval()
    x = channels_last(128, channels // 4, side)
    return tasks_of(
        sites_of(module, (x, channels_last(128, channels, side, residual)), training=False).examples, H200
    )


def channels_last(n: int, channels: int, side: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    x = torch.empty(n, channels, side, side, dtype=dtype, device="meta")
    return x.to(memory_format=torch.channels_last)


def tail_of(task: Task) -> tuple[float, Any, str]:
    """Its gain, the dtype of its residual, its activation."""
    a = task.example.call(torch.device("meta")).a
    return a.gain, None if a.residual is None else a.residual.dtype, a.activation


@pytest.mark.parametrize(
    ("end", "residual", "expected"),
    [
        (lambda y, r: torch.relu(y + r), torch.bfloat16, (1.0, torch.bfloat16, "relu")),
        (lambda y, r: torch.relu(y + r), torch.float32, (1.0, None, "relu")),
        (lambda y, r: nn.functional.silu(2 * y), torch.bfloat16, (2.0, None, "silu")),
        (lambda y, r: y.mul(0.5) + r, torch.bfloat16, (0.5, torch.bfloat16, "identity")),
        (lambda y, r: y, torch.bfloat16, (1.0, None, "identity")),
        (lambda y, r: torch.tanh(y), torch.bfloat16, (1.0, None, "identity")),
    ],
    ids=[
        "residual and ReLU", "residual of wider vectors", "gain and SiLU", "gain and residual", "nothing",
        "something else",
    ],
)  # fmt: skip
def test_a_template_is_timed_with_what_inductor_fuses_behind_it(
    end: Any, residual: torch.dtype, expected: tuple[Any, ...]
) -> None:
    """A residual that would ask for narrower vectors is left out."""
    (task,) = tasks(Ended(1024, end), residual=residual)
    assert str(task.key) == "forward/bfloat16/channels_last/c1024/hw196/k5/maps2+front/9.0/many"
    assert tail_of(task) == expected
    assert task.problem.maps == 2
    assert task.asked.maps == (2 if expected[1] is None else 3)


def test_equal_sites_are_one_key_and_are_timed_with_a_residual_if_one_has_it() -> None:
    ends = (lambda y, r: y), (lambda y, r: torch.relu(y + r)), (lambda y, r: torch.relu(y))

    class Three(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.third = (Ended(1024, end) for end in ends)

        def forward(self, x: Tensor, residual: Tensor) -> tuple[Tensor, ...]:
            return self.first(x, residual), self.second(x, residual), self.third(x, residual)

    (task,) = tasks(Three())
    assert task.sites == 3
    assert tail_of(task) == (1.0, torch.bfloat16, "relu")


def test_where_no_kernel_takes_the_map_its_pooling_is_tuned() -> None:
    pruned = Ended(684, lambda y, r: torch.relu(y))
    pruned.conv, pruned.bn = nn.Conv2d(171, 171, 3, padding=1, bias=False), nn.BatchNorm2d(171)
    (task,) = tasks(pruned, 684, 28)
    assert str(task.key) == "pool/bfloat16/channels_last/c171/hw784/maps1/9.0/few"
    assert list(task.example.call(torch.device("meta")).outputs) == ["out"]


class Calls(nn.Module):
    """A call of the operator alone."""

    def __init__(self, own_residual: bool = False) -> None:
        super().__init__()
        self.own_residual = own_residual

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        added = residual if self.own_residual else None
        return 2 * torch.ops.eca_triton.eca.default(residual, x.new_empty(1, 1, 5), residual=added)


def test_a_call_of_the_operator_has_its_own_residual() -> None:
    (task,) = tasks(Calls(own_residual=True))
    assert tail_of(task) == (1.0, torch.bfloat16, "identity")
    assert task.problem.maps == 3
    assert task.asked == task.problem
    assert not task.example.templated


def large() -> list[Task]:
    """Of 16 maps of 2048 x 48 x 48 in float32: sums of so many channels are not ahead for long."""
    x = channels_last(16, 2048, 48, torch.float32)
    return tasks_of(sites_of(Calls(), (x, x), training=False).examples, H200)


def test_where_the_heuristic_takes_two_passes_and_a_kernel_could_take_the_map_both_are_tuned() -> None:
    found = {task.key.kernel: task for task in large()}
    assert list(found) == ["pool", "forward", "rescale"], "of the template, then of the eager call besides"
    assert str(found["pool"].key) == "pool/float32/channels_last/c2048/hw2304/maps1/9.0/many"
    assert choose(found["forward"].problem).config is None


def test_what_is_in_force_changes_no_tasks(table_folder: Path) -> None:
    before = large()
    (whole,) = (task for task in before if task.key.kernel == "forward")
    for choice in (candidates(whole.problem)[1], Choice("two_pass", None)):
        store.save({whole.key: entry(choice)})
        assert select(whole.problem) == choice
        assert large() == before


@pytest.mark.parametrize("shape", [(4, 0, 8, 8), (2, 16, 2, 2, 2, 2)], ids=["empty", "four dims"])
def test_maps_that_the_reference_computes_have_no_keys(shape: tuple[int, ...]) -> None:
    x = torch.empty(shape, dtype=torch.bfloat16, device="meta")
    for operator in (ECA, GATE):
        assert tasks_of({Example.of(operator, [x, x.new_empty(1, 1, 3)], {}): 1}, H200) == []
    double = Example.of(ECA, [x.new_empty(2, 64, 8, 8, dtype=torch.float64), x.new_empty(1, 1, 3)], {})
    assert tasks_of({double: 1}, H200) == []


@pytest.mark.parametrize(
    ("target", "dtype", "plan"),
    [("h200", torch.float32, "convfold"), ("a100", torch.bfloat16, "convblock")],
    ids=["h200 fp32", "a100 bf16"],
)
def test_plans_are_those_of_the_compiler_on_that_gpu(target: str, dtype: torch.dtype, plan: str) -> None:
    class Bottleneck(Tail):
        def forward(self, x: Tensor, residual: Tensor) -> Tensor:
            return super().forward(torch.relu(x), residual)

    with torch.device("meta"):
        module = Bottleneck(512).to(dtype=dtype, memory_format=torch.channels_last).eval()
    inputs = channels_last(128, 128, 28, dtype), channels_last(128, 512, 28, dtype)
    with recording() as records:
        deviceless.lower(module, inputs, target=target, backend="eca_triton")
    (found,) = sites_of(module, inputs, training=False, target=target).records
    assert [found.decision] == [record.decision for record in records], "with the times that are predicted"
    assert found.decision.plan == plan
