"""Random networks, compiled with each plan, against eager mode: no other result, and none that fails.

`ECA_FUZZ_SEEDS=100000 pytest tests/fuzz -x` runs hours; a failure names its seed, and
`ECA_FUZZ_FIRST=<seed> ECA_FUZZ_SEEDS=1` repeats it. `ECA_FUZZ_THEN=inductor` also compiles what was lowered.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from functools import cache

import pytest
import torch
from harness import OLDEST, Lowering, leaf
from programs import PLANS, Case, case, described
from torch import Tensor, nn

from eca_triton.compile.reasons import UNEXPECTED

FIRST = int(os.environ.get("ECA_FUZZ_FIRST", "0"))
SEEDS = range(FIRST, FIRST + int(os.environ.get("ECA_FUZZ_SEEDS", "40" if OLDEST else "120")))
THEN = os.environ.get("ECA_FUZZ_THEN", "eager")
CHUNK = 20  # seeds of a test


def run(one: Case, network: nn.Module, call: Callable) -> dict[str, Tensor]:
    """Outputs, gradients and buffers of one step."""
    with torch.set_grad_enabled(one.training):
        x = leaf(one.x) if one.training else one.x.clone(memory_format=torch.preserve_format)
        outputs = call(x, one.limit)
        found = {f"output {i}": output.detach().clone() for i, output in enumerate(outputs)}
        if one.training:
            sum((output * output).sum() for output in outputs).backward()
            found |= {n: p.grad for n, p in network.named_parameters() if p.grad is not None} | {"x": x.grad}
    return found | dict(network.named_buffers())


def in_eager_mode(one: Case) -> dict[str, Tensor] | None:
    """What eager mode gives, or None where it raises: a map that backward needs was changed, say."""
    network = copy.deepcopy(one.network)
    try:
        return run(one, network, network)
    except RuntimeError:
        return None


def tolerance(one: Case) -> float:
    """Of the largest value: rounding, and the slopes of ATen's hard functions, float32 whatever the dtype."""
    if one.x.dtype == torch.float32:
        return 1e-4
    return 1e-6 if "hard" in one.parts else 1e-10


@cache
def chunk(first: int) -> tuple[int, list[str]]:
    """How many of the seeds' programs run, and the plans of the sites that were lowered in them."""
    ran, plans = 0, []
    for seed in SEEDS[first : first + CHUNK]:
        one = case(seed)
        expected = in_eager_mode(one)
        if expected is None:
            continue
        ran += 1
        network = copy.deepcopy(one.network)
        lowering = Lowering(THEN, device=one.device, plan=one.plan)
        torch._dynamo.reset()
        with described(one, seed):
            compiled = torch.compile(network, backend=lowering, dynamic=one.dynamic)
            result = run(one, network, compiled)
            assert result.keys() == expected.keys()
            for key, tensor in expected.items():
                atol = tolerance(one) * max(1.0, float(tensor.double().abs().max()))
                torch.testing.assert_close(
                    result[key],
                    tensor,
                    rtol=0,
                    atol=atol,
                    equal_nan=True,
                    msg=lambda m, key=key: f"{key}: {m}",
                )
            assert UNEXPECTED not in {record.decision.reason for record in lowering.records}, lowering.records
        plans += [record.decision.plan for record in lowering.sites]
    return ran, plans


@pytest.mark.parametrize("first", range(0, len(SEEDS), CHUNK))
def test_random_networks_give_the_results_of_eager_mode(first: int) -> None:
    chunk(first)


@pytest.mark.skipif(len(SEEDS) < 120, reason="few seeds were asked for")
def test_most_programs_run_and_a_fifth_is_lowered_by_four_plans_or_more() -> None:
    chunks = [chunk(first) for first in range(0, len(SEEDS), CHUNK)]
    plans = [plan for _, found in chunks for plan in found]
    assert sum(ran for ran, _ in chunks) > 0.8 * len(SEEDS)
    assert len(plans) > 0.2 * len(SEEDS)
    assert len({*plans} & {*PLANS, "batch_norm"}) >= 4
