"""Tuning with the kernels themselves: every candidate is right, and the calls found are the calls made."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from unittest import mock

import pytest
import torch
from autotune_machine import Bench
from torch import nn

import eca_triton
from eca_triton.autotune.examples import Example
from eca_triton.autotune.machine import launch_as
from eca_triton.autotune.search import Task, search, tasks_of
from eca_triton.autotune.sites import sites_of
from eca_triton.autotune.verify import disagreement
from eca_triton.launch import devices
from eca_triton.ops.outputs import mask_order_for
from eca_triton.ops.schema import ECA, ECA_BACKWARD, ECA_FORWARD, GATE, RESCALED_PROJECTION
from eca_triton.tuning.candidates import candidates
from eca_triton.tuning.choice import choose
from eca_triton.tuning.config import Choice, Device
from eca_triton.tuning.problem import Problem
from eca_triton.tuning.select import select

CPU = torch.device("cpu")
FEW = Device(num_sms=4, warp_size=32, name="interpreter", capability="9.0", shared_bytes=227 << 10)


def example(operator: object, shape: tuple[int, ...], channels_last: bool, dtype: torch.dtype) -> Example:
    """With batch norm, a gain, residual and ReLU."""
    x = torch.empty(shape, dtype=dtype, device="meta")
    x = x.to(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    band, vectors = x.new_empty(1, 1, 5), [x.new_empty(shape[1]) for _ in range(4)]
    order = mask_order_for(x, x, "relu")
    args = [x, band, None, *vectors, x]
    options = {"activation": "relu", "gain": 0.5} | ({} if operator is ECA else {"mask_order": order})
    if operator is GATE:
        args, options = args[:-1], {"pre_activation": "relu"}
    if operator is ECA_BACKWARD:
        bits = None if order == "none" else x.new_empty(shape[0], x[0].numel() // 8, dtype=torch.uint8)
        pooled = x.new_empty(shape[:2], dtype=torch.float32)
        args = [x, *args[:7], x if bits is None else None, pooled, bits]
        options |= {"wants_residual": True, "wants_bn": True}
    return Example.of(operator, args, options)


def assert_right(task: Task, choice: Choice) -> None:
    call = task.example.call(CPU)
    with mock.patch("eca_triton.autotune.verify.RUNS", 1):
        assert not disagreement(call, partial(launch_as, call, task.asked, choice)), choice


@pytest.mark.parametrize("operator", [ECA_FORWARD, ECA_BACKWARD], ids=lambda op: op._opname)
@pytest.mark.parametrize(
    ("shape", "channels_last", "dtype"),
    [
        ((1, 24, 7, 7), False, torch.bfloat16),  # read by windows
        ((1, 8, 16, 16), False, torch.float32),
        ((1, 32, 8, 8), True, torch.float16),
    ],
    ids=["7x7", "16x16", "8x8 last"],
)
def test_one_candidate_of_each_kernel_and_the_farthest_compute_what_the_reference_does(
    operator: object, shape: tuple[int, ...], channels_last: bool, dtype: torch.dtype
) -> None:
    (task,) = tasks_of({example(operator, shape, channels_last, dtype): 1}, FEW)
    found = candidates(task.problem)
    for choice in {*{choice.kernel: choice for choice in found}.values(), found[1]}:
        assert_right(task, choice)


@pytest.mark.parametrize("operator", [GATE, ECA, ECA_FORWARD, ECA_BACKWARD], ids=lambda op: op._opname)
def test_some_candidates_of_every_launch_of_two_passes_compute_what_the_reference_does(
    operator: object,
) -> None:
    """Of a map that no kernel takes whole, for its channels make no vector."""
    tasks = tasks_of({example(operator, (2, 30, 9, 9), True, torch.float32): 1}, FEW)
    passes = [task for task in tasks if task.key.kernel not in ("forward", "backward")]
    assert [task.key.kernel for task in passes] == {
        GATE: ["pool"],
        ECA: ["pool", "rescale"],
        ECA_FORWARD: ["pool", "affine"],
        ECA_BACKWARD: ["moments", "affine_backward"],
    }[operator]
    for task in passes:
        found = candidates(task.problem)
        for choice in (found[1], found[-1]):
            assert_right(task, choice)


def convolution(n: int, reduced: int, c: int, side: int, dtype: torch.dtype) -> Example:
    """That is rescaled, with a summand."""
    x = torch.empty(n, reduced, side, side, dtype=dtype, device="meta").to(memory_format=torch.channels_last)
    terms = x.new_empty(n, c, dtype=torch.float32)
    return Example.of(RESCALED_PROJECTION, [x, x.new_empty(c, reduced, 1, 1), terms, terms], {})


def test_the_nearest_and_the_farthest_candidates_of_a_product_compute_what_the_reference_does() -> None:
    (task,) = tasks_of({convolution(2, 72, 80, 12, torch.float16): 1}, FEW)
    found = candidates(task.problem)
    assert len(found) > 3
    for choice in (*found[:2], *found[-2:]):
        assert_right(task, choice)


@pytest.mark.parametrize("summand", [False, True], ids=["factor", "and summand"])
def test_the_problem_of_a_product_is_the_one_that_its_launch_asks_about(summand: bool) -> None:
    x = torch.randn(2, 24, 6, 6, dtype=torch.float16).to(memory_format=torch.channels_last)
    terms = torch.rand(2, 40)
    args = [x, torch.randn(40, 24, 1, 1, dtype=torch.float16), terms, terms if summand else None]
    options = {"out_dtype": torch.float32}
    with mock.patch.object(devices, "select", side_effect=select) as asked:
        RESCALED_PROJECTION(*args, **options)
    made = Example.of(RESCALED_PROJECTION, args, options).call(torch.device("meta"))
    assert asked.call_args.args == (made.problem(devices.device_of(CPU)),)


def test_a_search_runs_to_its_end_with_the_kernels() -> None:
    (task,) = tasks_of({example(ECA, (1, 8, 4, 4), False, torch.float32): 1}, FEW)
    outcome = search(task, replace(Bench(properties=FEW).machine(), launch=launch_as))
    assert outcome.choice == choose(task.problem)
    assert not outcome.problem
    assert outcome.entry is None


class Network(nn.Module):
    """A site with nothing after it, and one with a tail."""

    def __init__(self) -> None:
        super().__init__()
        self.first = eca_triton.ECA(channels=16)
        self.weight = nn.Parameter(torch.randn(1, 1, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return eca_triton.eca(self.first(x), self.weight, residual=x, activation="relu")


@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
def test_the_problems_of_a_model_are_those_that_its_launches_ask_about(
    training: bool, channels_last: bool
) -> None:
    model = Network()
    x = torch.randn(2, 16, 6, 6).to(
        memory_format=torch.channels_last if channels_last else torch.contiguous_format
    )
    asked: set[Problem] = set()

    def asking(problem: Problem, **options: bool):
        asked.add(problem)
        return select(problem, **options)

    with mock.patch.object(devices, "select", asking):
        with torch.set_grad_enabled(training):
            out = model(x.requires_grad_(training))
        if training:
            out.sum().backward()
    device = devices.device_of(CPU)
    found = {
        example.call(torch.device("meta")).problem(device)
        for example in sites_of(model, (x.detach().requires_grad_(training),), training=training).examples
    }
    if not training and not channels_last:  # Inductor may make it channels-last
        found = {problem for problem in found if problem.layout.contiguous}
    assert found == asked
