"""A name that is not known raises wherever names are told apart: it is not taken for the last one known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch._inductor.virtualized import OpsValue, V

from eca_triton import reference
from eca_triton.activations import ACTIVATIONS, PRE_ACTIVATIONS, RECOMPUTED, SELECTING
from eca_triton.compile.emit import fold, rewrite
from eca_triton.compile.inductor import lowering
from eca_triton.compile.match import neighbours
from eca_triton.compile.plan import cost
from eca_triton.compile.plan.facts import Facts
from eca_triton.ops.decompositions import decomposition_table
from eca_triton.ops.schema import BATCH_NORM_ECA
from eca_triton.reference import training as reference_training
from eca_triton.reference.arguments import BackwardArguments, SiteArguments

X, GATES, WEIGHT = torch.ones(2, 8, 2, 2), torch.ones(2, 8), torch.ones(1, 1, 3)
FACTS = Facts(
    images=8, channels=64, positions=196, taps=3, dtype=torch.bfloat16, device="cuda", channels_last=True,
    grad=True, target="h200",
)  # fmt: skip


def forward(**changes: Any) -> Any:
    return reference_training.eca_forward(SiteArguments(X, WEIGHT, **changes))


def backward(**changes: Any) -> Any:
    a = BackwardArguments(X, X, WEIGHT, *[None] * 6, GATES, wants_residual=True, **changes)
    return reference_training.eca_backward(a)


def native_rescaling(name: str) -> Any:
    return lowering.PRE_ACTIVATIONS[name]


def emitted_gate(plan: str) -> Any:
    return rewrite._gate_of(SimpleNamespace(), plan, None, {})


CALLS: dict[str, Callable[[], Any]] = {
    "gate": lambda: reference.gate_from_pool(GATES, WEIGHT, gate="swish"),
    "gate, backward": lambda: reference.gate_from_pool_backward(GATES, GATES, WEIGHT, gate="swish"),
    "activation before": lambda: reference.normalize(X, None, 0.0, "tanh"),
    "activation": lambda: reference.eca(SiteArguments(X, WEIGHT, activation="tanh")),
    "activation, forward": lambda: forward(activation="tanh"),
    "activation, forward with bits": lambda: forward(activation="silu", mask_order="contiguous"),
    "activation, backward": lambda: backward(activation="tanh"),
    "order of bits": lambda: reference_training.pack(X > 0, "reversed"),
    "order of bits, backward": lambda: reference_training.unpack(
        torch.ones(2, 4, dtype=torch.uint8), X.shape, ""
    ),
    "activation behind a batch norm": lambda: decomposition_table()[BATCH_NORM_ECA](
        X, WEIGHT, activation="silu"
    ),
    "fact: batch norm": lambda: replace(FACTS, batch_norm="frozen"),
    "fact: activation before": lambda: replace(FACTS, activation="gelu"),
    "fact: tail": lambda: replace(FACTS, tail=("residual", "tanh")),
    "fact: tail that is no activation": lambda: replace(FACTS, tail=("identity",)),
    "Inductor's rescaling": lambda: native_rescaling("gelu"),
    "plan": lambda: emitted_gate("skip"),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_an_unknown_name_raises(call: Callable[[], Any]) -> None:
    with pytest.raises((KeyError, ValueError)):
        call()


def test_every_list_of_activations_has_the_same_ones() -> None:
    after = [name for name in ACTIVATIONS if name != "identity"]
    assert {*SELECTING, *RECOMPUTED} == set(neighbours.ACTIVATIONS) == set(after)
    assert {*fold.FUNCTIONS} == {"gain", "residual", *after}
    assert lowering.PRE_ACTIVATIONS.keys() == PRE_ACTIVATIONS.keys()
    for name in after:
        backward(activation=name)


class Eager:
    """Computes at once what Inductor's operators would generate."""

    relu, sigmoid, mul = (staticmethod(f) for f in (torch.relu, torch.sigmoid, torch.mul))


@pytest.mark.parametrize("name", PRE_ACTIVATIONS)
def test_inductors_rescaling_computes_every_activation_before(name: str) -> None:
    x = torch.linspace(-3, 3, 13)
    with V.set_ops_handler(Eager()):
        got = lowering.PRE_ACTIVATIONS[name](OpsValue(x)).value
    torch.testing.assert_close(got, PRE_ACTIVATIONS[name].function(x))


@pytest.mark.parametrize("tail", [(name,) for name in neighbours.ACTIVATIONS])
@pytest.mark.parametrize("batch_norm", [None, "train"])
def test_every_activation_costs_a_training_step(batch_norm: str | None, tail: tuple[str, ...]) -> None:
    """gelu and hardswish as silu: stock keeps what their backward needs, and so do we."""
    site = replace(
        FACTS, batch_norm=batch_norm, takes_over=batch_norm is not None, trains_as_block=batch_norm is None
    )
    alone, followed = (replace(site, tail=("residual", *more)) for more in ((), tail))
    assert cost.stock(followed).traffic == cost.stock(alone).traffic + 2.0
    if batch_norm is None:
        assert cost.block(followed).traffic > cost.block(alone).traffic
    else:
        site_with_mask = replace(followed, mask_traffic=cost.PACKED_MASK)
        assert cost.batch_norm(site_with_mask).traffic > cost.batch_norm(alone).traffic
