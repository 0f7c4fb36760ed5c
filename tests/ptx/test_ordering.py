"""Kernels whose programs wait for each other, under any interleaving; faults in them are noticed."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from unittest import mock

import pytest
import torch
from aot import COMPILER
from backward_cases import Step
from kernel_cases import LAYOUTS, NAN, Site, batch_norm
from one_launch import launcher_of
from torch import Tensor

from eca_triton.launch.call import Call
from eca_triton.tuning.families.lagged import LaggedConfig

from .launches import Change, Run, on_ptx
from .memory import Fault

pytestmark = COMPILER
SHAPE = (3, 120, 5, 5)  # two tiles of channels and two of positions in an image, none of them full but one
# A program waits for others: its tile is of the image before.
PATIENT = LaggedConfig(
    block_c=64, block_hw=16, lag=5, block_p=4, block_g=128, num_warps=4, vec_c=8, vec_hw=1, max_registers=168
)  # fmt: skip
WAITING = {"patient": PATIENT, **{f"{polls} polls": replace(PATIENT, patience=polls) for polls in (0, 1)}}


def forward_call() -> Call:
    x, residual = (LAYOUTS["channels_last"](SHAPE, torch.bfloat16) for _ in range(2))
    some = Site(
        x, torch.randn(3), bn=batch_norm(SHAPE[1], torch.float32), residual=residual, activation="relu"
    )
    return some.call(torch.empty_like(x).fill_(NAN))


def backward_call() -> Call:
    x, dy = (LAYOUTS["channels_last"](SHAPE, torch.float16) for _ in range(2))
    some = Site(x, torch.randn(3), bn=batch_norm(SHAPE[1], torch.float32), activation="relu")
    return Step(some, dy, bits=True, moments=True, store_p=True).call()


CALLS: dict[str, Callable[[], Call]] = {"forward": forward_call, "backward": backward_call}


def run(direction: str, config: LaggedConfig, **how: Any) -> tuple[dict[str, Tensor], Run]:
    """What a call fills, and how it went."""
    torch.manual_seed(0)
    call = CALLS[direction]()
    with on_ptx(**how) as how_it_went:
        launcher_of("lagged", call)(call, config)  # type: ignore[arg-type]
    return call.outputs, how_it_went


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.fixture(scope="module")
def expected() -> dict[str, dict[str, Tensor]]:
    """What one program after the other computes: nobody waits in vain."""
    found = {direction: run(direction, PATIENT, resident=1) for direction in CALLS}
    assert not any(went.faults for _, went in found.values())
    return {direction: outputs for direction, (outputs, _) in found.items()}


@pytest.mark.parametrize("weak", [False, True], ids=["strict", "weak"])
@pytest.mark.parametrize(("seed", "resident"), [(1, 2), (2, 6), (3, 32)])
@pytest.mark.parametrize("patience", WAITING)
@pytest.mark.parametrize("direction", CALLS)
def test_every_interleaving_gives_the_same_bits(
    direction: str,
    patience: str,
    seed: int,
    resident: int,
    weak: bool,
    expected: dict[str, dict[str, Tensor]],
) -> None:
    outputs, went = run(direction, WAITING[patience], seed=seed, resident=resident, weak=weak, shuffled=True)
    assert not went.faults
    assert same(outputs, expected[direction])


def replaced(old: str, new: str) -> Change:
    def change(ptx: str) -> str:
        changed = re.sub(old, new, ptx)
        assert changed != ptx, f"{old} is not in the code"
        return changed

    return change


def ordered(old: str, new: str) -> Change:
    """Change the order of accesses to counters."""
    return replaced(rf"\b(atom|red|ld)\.global\.gpu\.{old}\b", rf"\1.global.gpu.{new}")


WRONG: dict[str, Change] = {
    "who completes an image does not release it": ordered("release", "relaxed"),
    "who arrives does not acquire the sums of others": ordered("acq_rel", "release"),
    "who arrives does not release its sums": ordered("acq_rel", "acquire"),
    "who waits does not acquire": ordered("acquire", "relaxed"),
    "no barrier": replaced(r"bar\.sync[^;]*;", ""),
    "no mask of stores": replaced(r"@%p\d+ st\.global", "st.global"),
    "addresses of 32 bits": replaced(r"add\.s64", "add.u32"),
}


def noticed(direction: str, **how: Any) -> str:
    """What shows that something is wrong, "" if nothing does; of three seeds the first that shows it."""
    for seed in range(3):
        try:
            _, went = run(direction, PATIENT, seed=seed, weak=True, shuffled=True, **how)
        except Fault as fault:
            return str(fault)
        if went.faults:
            return went.faults[0]
    return ""


@pytest.mark.parametrize("direction", CALLS)
@pytest.mark.parametrize("name", WRONG)
def test_a_fault_in_the_code_is_noticed(name: str, direction: str) -> None:
    assert noticed(direction, change=WRONG[name])


@pytest.mark.parametrize("direction", CALLS)
def test_counters_that_nobody_zeroed_are_noticed(direction: str) -> None:
    zeros = torch.zeros
    with mock.patch.object(torch, "zeros", lambda *args, **kwargs: torch.empty(*args, **kwargs)):
        assert "an atomic on what nobody wrote" in noticed(direction)
    assert torch.zeros is zeros


@pytest.mark.parametrize("counter", ["acq_rel", "release"])
def test_the_barriers_between_stores_and_a_counter_are_needed(counter: str) -> None:
    """Those of kernels/tickets.py: without them, stores of other threads are not released."""

    def dropped(ptx: str) -> str:
        end = ptx.index(f".gpu.{counter}.")
        start = ptx.rindex("st.global", 0, end)
        barriers = re.sub(r"bar\.sync[^;]*;", "", ptx[start:end])
        assert barriers != ptx[start:end]
        return ptx[:start] + barriers + ptx[end:]

    assert noticed("forward", change=dropped)
