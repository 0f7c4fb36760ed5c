"""Whatever function of the compiler fails, and whenever: torch.compile gives eager mode's result."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from faults import failing, functions, watched
from harness import OLDEST
from near_misses import NEAR_MISSES
from pointwise import INPUT, Bottleneck
from spellings import SPELLINGS
from styles import CHANNELS, STYLES
from timm.layers import EcaModule
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
    "hooks.Enabled.__call__", "hooks.Enabled.uuid", "hooks.Enabled.__reduce__",
    "chain.Chain.__call__", "chain.Chain.uuid", "chain.Chain.__reduce__", "lowering._lowered",
    "lowering._call", "compat.reset_cudagraphs",
    "where.naming",
}  # fmt: skip


class OneOpEachWay(nn.Module):
    """A map, a shortcut and a result that convolutions make and read: one op may train all between them."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.behind = (nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=False) for _ in range(2))
        self.attention = EcaModule(CHANNELS)

    def forward(self, x: Tensor) -> Tensor:
        return self.behind(F.silu(self.attention(self.before(x)) + x))


class SpelledOut(nn.Module):
    """Batch norm in arithmetic, its vectors being buffers, as detectors freeze it."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("weight", "bias", "mean", "var"):
            self.register_buffer(name, torch.rand(CHANNELS) + 0.5)
        self.attention = EcaModule(CHANNELS)

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight * (self.var + 1e-5).rsqrt()
        shift = self.bias - self.mean * scale
        return F.relu(self.attention((2 * x) * scale.view(1, -1, 1, 1) + shift.view(1, -1, 1, 1)))


@dataclass(frozen=True)
class Scenario:
    """A network, how it is compiled, and the plan that its first site takes, or the reason of none."""

    network: Callable[[], nn.Module]
    plan: str
    options: dict[str, Any] = field(default_factory=dict)
    training: bool = False
    dynamic: bool = False
    channels: int = CHANNELS

    def example(self) -> Tensor:
        x = torch.randn(3, self.channels, 6, 5)
        return x.contiguous(memory_format=torch.channels_last)


def of_style(name: str, plan: str, options: dict[str, Any] | None = None, training: bool = False) -> Scenario:
    return Scenario(STYLES[name].build, plan, options or {}, training)


def spelled(name: str) -> Scenario:
    return Scenario(lambda: nn.Sequential(nn.Softplus(), SPELLINGS[name].build()), "pool", dynamic=True)


PLANNED = {"eca.device": "cuda"}
SCENARIOS: dict[str, Scenario] = {
    "auto": of_style("ResNetTail", "gate"),
    "gate": of_style("ReturnsRescaledMap", "gate", {"eca.plan": "gate"}),
    "block": of_style("ResNetTail", "block", PLANNED),
    "block-training": Scenario(OneOpEachWay, "block", PLANNED | {"eca.plan": "block"}, training=True),
    "convfold": of_style("ResNetTail-twice", "convfold", {"eca.plan": "convfold", "max_autotune": True}),
    "gate-first": Scenario(Bottleneck, "convfold", PLANNED | {"eca.plan": "convfold"}, channels=INPUT),
    "convblock": Scenario(Bottleneck, "convblock", PLANNED | {"eca.plan": "convblock"}, channels=INPUT),
    "frozen": of_style("FrozenBatchNorm", "block", training=True),
    "spelled-out": Scenario(SpelledOut, "pool"),
    "training": of_style("ResNetTail-circular", "batch_norm", training=True),
    "readers": of_style("GateReturned", "pool", {"eca.plan": "pool"}, training=True),
    "weight": of_style("SpectralNorm", "batch_norm", training=True),
    "einops": spelled("einops-both-ways"),
    "window": spelled("avg-pool-over-the-full-map"),
    "area": spelled("sum-over-area"),
    "near-miss": Scenario(NEAR_MISSES["max-pool"].build, "ECA108"),
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
    one = SCENARIOS[scenario]
    network, x = one.network().train(one.training), one.example()
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
        one = SCENARIOS[scenario]
        options = {"eca.force": True, **one.options}
        return torch.compile(network, backend="eca_triton", options=options, dynamic=one.dynamic)

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


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_scenario_takes_its_plan(scenario: str) -> None:
    network, x, _ = network_of(scenario)
    with recording() as records:
        step(copy.deepcopy(network), x, compiled_by(scenario))
    assert SCENARIOS[scenario].plan in (records[0].decision.plan, records[0].decision.reason)


def test_most_functions_are_called() -> None:
    """Those of templates need a GPU, those of exports and reports are called elsewhere."""
    names = {name for name, _ in functions().values()}
    assert names >= DOORS
    assert len(called_in()) > 0.65 * len(names)
    files = {
        f"{name}." for name in ("batch_norm", "facts", "fold", "gather", "neighbours", "projection", "reach")
    }
    files |= {f"{name}." for name in ("calls", "cost", "rewrite", "sizes", "where")}
    missed = names - called_in().keys() - DOORS
    assert [name for name in missed if name.startswith(tuple(files))] == []


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
