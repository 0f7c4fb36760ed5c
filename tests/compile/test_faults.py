"""Whatever function of the compiler fails, and whenever: torch.compile gives eager mode's result."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import pytest
import torch
from faults import failing, functions, watched
from harness import OLDEST
from styles import STYLES
from torch import Tensor, nn
from torch._inductor.utils import fresh_cache

import eca_triton
from eca_triton import deviceless
from eca_triton.compile import backend
from eca_triton.compile.record import recording

# Doors: what torch or a tool calls, and what calls torch. Nobody before them could catch what they raise.
DOORS = {
    "backend.eca_triton", "compat.inductor_compile", "passes.LoweringPass.__call__",
    "passes.LoweringPass.uuid", "passes.CacheKeyPass.__call__", "passes.LoweringPass.__reduce__",
    "chain.Chain.__call__", "chain.Chain.uuid", "chain.Chain.__reduce__", "lowering._lowered",
    "lowering._call", "compat.reset_cudagraphs",
    "where.naming",
}  # fmt: skip
# The network, whether it trains, and the options of the backend.
SCENARIOS: dict[str, tuple[str, bool, dict[str, Any]]] = {
    "auto": ("ResNetTail", False, {}),
    "gate": ("ReturnsRescaledMap", False, {"eca.plan": "gate"}),
    "block": ("NFNetTail", False, {"eca.plan": "block"}),
    "convfold": ("ResNetTail-twice", False, {"eca.plan": "convfold", "max_autotune": True}),
    "convblock": ("ResNetTail", False, {"eca.plan": "convblock", "eca.device": "cuda"}),
    "frozen": ("FrozenBatchNorm", True, {}),
    "training": ("ResNetTail-circular", True, {}),
    "readers": ("GateReturned", True, {"eca.plan": "pool"}),
}


@contextmanager
def without_inductor() -> Iterator[None]:
    """The door runs the graph as it is, for time: what happens before is the same."""
    with mock.patch.object(backend, "inductor_compile", lambda gm, *_: gm.forward):
        yield


@functools.cache
def network_of(scenario: str) -> tuple[nn.Module, Tensor, dict[str, Tensor]]:
    """The network, its input, and what one step in eager mode gives."""
    torch.manual_seed(0)
    style, training, _ = SCENARIOS[scenario]
    network, x = STYLES[style].build().train(training), STYLES[style].example()
    return network, x, step(copy.deepcopy(network), x, lambda network: network)


def step(network: nn.Module, x: Tensor, door: Callable[[nn.Module], Callable]) -> dict[str, Tensor]:
    """Outputs, gradients and buffers of one step."""
    with torch.set_grad_enabled(network.training):
        with without_inductor():
            outputs = door(network)(x)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        if network.training:
            sum(output.square().sum() for output in outputs).backward()
    found = {f"output {i}": output.detach() for i, output in enumerate(outputs)}
    found |= {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
    return found | dict(network.named_buffers())


def compiled_by(scenario: str) -> Callable[[nn.Module], Callable]:
    def door(network: nn.Module) -> Callable:
        torch._dynamo.reset()
        options = {"eca.force": True, **SCENARIOS[scenario][2]}
        return torch.compile(network, backend="eca_triton", options=options)

    return door


@functools.cache
def called_in() -> dict[str, str]:
    """Functions that a scenario calls, each with the first scenario that does; doors are left out."""
    found: dict[str, str] = {}
    for scenario in SCENARIOS:
        network, x, _ = network_of(scenario)
        with watched() as called:
            step(copy.deepcopy(network), x, compiled_by(scenario))
        for name in sorted(called - DOORS):
            found.setdefault(name, scenario)
    return found


def test_most_functions_are_called() -> None:
    """Those of templates need a GPU, those of exports and reports are called elsewhere."""
    names = {name for name, _ in functions().values()}
    assert names >= DOORS
    assert len(called_in()) > 0.6 * len(names)


@pytest.mark.slow
def test_a_function_that_fails_changes_no_result() -> None:
    """All functions in one test: what each is called in is known only when the scenarios have run.

    Each fails at its first call on the oldest torch, and at all of them on others.
    """
    at = 1 if OLDEST else None
    wrong: list[str] = []
    for name, scenario in called_in().items():
        network, x, expected = network_of(scenario)
        try:
            with failing(name, at) as calls:
                result = step(copy.deepcopy(network), x, compiled_by(scenario))
        except Exception as error:
            wrong.append(f"{name} in {scenario}: {error!r}"[:300])
            continue
        if not calls[0]:
            wrong.append(f"{name} in {scenario} was not called")
        different = [
            key for key, tensor in expected.items() if not torch.allclose(result[key], tensor, 1e-4, 1e-5)
        ]
        if different or result.keys() != expected.keys():
            wrong.append(f"{name} in {scenario}: {different} differ")
    assert wrong == []


@pytest.mark.slow
@pytest.mark.skipif(OLDEST, reason="for CI's time on the newest torch alone")
def test_a_function_that_fails_stops_no_lowering_for_a_gpu() -> None:
    """Templates included: what fails in Inductor's own lowering leaves the op to be called as it is."""
    network, x = STYLES["ResNetTail-twice"].build(), torch.empty(8, 8, 32, 32)
    lower = functools.partial(
        deviceless.lower, network, x, backend="eca_triton", dtype=torch.float16, channels_last=True
    )
    with watched() as called:
        lower()
    wrong = []
    names = sorted(called - DOORS - called_in().keys())
    assert {"lowering.lower_eca", "template.attempt"} & set(names)
    for name in names:
        try:
            with failing(name):
                lower()
        except Exception as error:
            wrong.append(f"{name}: {error!r}"[:300])
    assert wrong == []


@pytest.mark.parametrize(
    "name",
    ["passes.LoweringPass.settings", "compat.makes_package", "passes.package_hash", "passes.lower_graph"],
)
def test_a_function_that_fails_in_inductors_hook_changes_no_result(name: str) -> None:
    network, x, expected = network_of("gate")
    torch._dynamo.reset()
    compiled = torch.compile(network, options=eca_triton.inductor_options(force=True))
    # A cache of its own: a graph that an earlier test left in it is not lowered again.
    with fresh_cache(), failing(name) as calls, torch.no_grad():
        result = compiled(x)
    assert calls[0]
    for index, output in enumerate(result):
        torch.testing.assert_close(output, expected[f"output {index}"])


def test_strict_asks_for_a_fault_to_be_raised() -> None:
    network, x, _ = network_of("auto")
    torch._dynamo.reset()
    with failing("gather.facts_of"), pytest.raises(Exception, match="ECA199"), torch.no_grad():
        torch.compile(network, backend="eca_triton", options={"eca.strict": True})(x)


def test_the_report_of_a_fault_has_its_code() -> None:
    network, x, _ = network_of("auto")
    with failing("passes.plan_graph"), recording() as records:
        step(copy.deepcopy(network), x, compiled_by("auto"))
    assert [record.decision.reason for record in records] == ["ECA199"]
    assert "InjectedError" in records[0].decision.detail
