"""What training loops do around a compiled network: sites are lowered, results are those of eager mode.

Autocast to bfloat16, and checkpoints inside a network, are in test_numerics; DDP, FSDP in test_distributed.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from eager_block import assert_as_good_as
from harness import Lowering, leaf
from styles import Network, ResNetTail, conv1x1
from timm.layers import EcaModule
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint

import eca_triton
from eca_triton.compile.reasons import WRAPPED


def example(batch: int = 4) -> Tensor:
    return torch.randn(batch, 8, 6, 5)


def frozen(network: ResNetTail) -> ResNetTail:
    """Batch norm in evaluation mode: images do not depend on each other."""
    network.bn.eval()
    return network


def gradients(network: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.grad for name, parameter in network.named_parameters()}


@pytest.mark.parametrize(
    ("autocast", "tolerance"), [(None, 1e-5), (torch.float16, 2e-3)], ids=["fp32", "autocast-fp16"]
)
def test_a_grad_scaler_scales_unscales_and_skips_steps_as_in_eager_mode(
    autocast: torch.dtype | None, tolerance: float
) -> None:
    batches = [example(), example() * float("inf"), example(), example()]

    def train(network: nn.Module, model: Callable[[Tensor], Tensor]) -> tuple[list[float], list[Tensor]]:
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
        scales, states = [], []
        for x in batches:
            with torch.autocast("cpu", autocast, enabled=autocast is not None):
                loss = model(x).float().square().mean()
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            scales.append(scaler.get_scale())
            states.append(torch.cat([parameter.detach().flatten() for parameter in network.parameters()]))
        return scales, states

    network, lowering = frozen(ResNetTail()), Lowering("aot_eager")
    twin = copy.deepcopy(network)
    scales, states = train(network, lowering.compile(network))
    native_scales, native_states = train(twin, twin)
    assert scales == native_scales == [1024, 512, 512, 512]
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[1], states[2])
    torch.testing.assert_close(states, native_states, rtol=tolerance, atol=tolerance)
    assert len(lowering.sites) == len(lowering.graphs) == 1


def joint(model: Callable, x: Tensor) -> None:
    model(x).square().sum().backward()


def in_parts(model: Callable, x: Tensor) -> None:
    for part in x.chunk(3):
        joint(model, part)


def checkpointed(model: Callable, x: Tensor) -> None:
    joint(lambda x: checkpoint(model, x, use_reentrant=False), x)


@pytest.mark.parametrize(
    ("way", "of_eager", "warm"),
    [
        pytest.param(in_parts, joint, False, id="accumulated over parts of the batch"),
        # The pass itself must save nothing for a backward.
        pytest.param(checkpointed, checkpointed, False, id="compiled inside a checkpoint"),
        pytest.param(checkpointed, checkpointed, True, id="compiled before a checkpoint"),
    ],
)
def test_gradients_are_those_of_the_joint_batch(way: Callable, of_eager: Callable, warm: bool) -> None:
    network, lowering = frozen(ResNetTail()), Lowering("aot_eager")
    twin, x = copy.deepcopy(network), leaf(example(6))
    y, compiled = leaf(x), lowering.compile(network)
    if warm:
        joint(compiled, leaf(x))
        network.zero_grad()
    way(compiled, x)
    of_eager(twin, y)
    torch.testing.assert_close(x.grad, y.grad)
    torch.testing.assert_close(gradients(network), gradients(twin))
    assert len(lowering.sites) == len(lowering.graphs) == 1


def test_an_average_of_a_compiled_model_is_compiled_with_weights_of_its_own() -> None:
    network, lowering = ResNetTail(), Lowering("aot_eager")
    torch._dynamo.reset()
    # A lambda, because a copy of the model has a copy of any other backend.
    model = torch.compile(network, backend=lambda *graph: lowering(*graph))
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5), use_buffers=True)
    twin = AveragedModel(copy.deepcopy(network), multi_avg_fn=get_ema_multi_avg_fn(0.5), use_buffers=True)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    for _ in range(3):
        model(example()).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        average.update_parameters(model)
        twin.update_parameters(network)
    x = example()
    with torch.no_grad():
        averaged, expected, current = average.eval()(x), twin.eval()(x), model.eval()(x)
    torch.testing.assert_close(averaged, expected)
    assert (averaged - current).abs().max() > 0.01
    assert len(lowering.sites) == len(lowering.graphs) >= 2


def test_a_checkpointed_call_of_the_op_keeps_its_inputs_only() -> None:
    weight = torch.randn(1, 1, 3, requires_grad=True)

    def block(x: Tensor, residual: Tensor) -> Tensor:
        return eca_triton.eca(x, weight, residual=residual, activation="silu")

    def step(run: Callable[..., Tensor]) -> tuple[Tensor, ...]:
        x, residual = leaf(maps[0]), leaf(maps[1])
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
            out = run(x, residual)
        inputs = {x.data_ptr(), residual.data_ptr()}
        held = {t.data_ptr() for t in kept if t.numel()}  # torch 2.11 keeps an empty one, for the call
        assert inputs <= held
        # By itself the call keeps the weight and the pooled means too.
        assert (held == inputs) == (run is not block)
        return torch.autograd.grad(out.square().sum(), (x, residual, weight))

    maps = example(), example()
    recomputed = step(lambda *maps: checkpoint(block, *maps, use_reentrant=False))
    torch.testing.assert_close(recomputed, step(block), rtol=0, atol=0)


@pytest.mark.parametrize("trained", ["se.conv.weight", "bn.weight bn.bias", "conv.weight", "x", ""])
def test_any_part_can_be_trained_alone(trained: str) -> None:
    network, lowering = frozen(ResNetTail()), Lowering("aot_eager")
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name in trained.split())
    twin, x = copy.deepcopy(network), example().requires_grad_(trained == "x")
    y = x.detach().clone().requires_grad_(x.requires_grad)
    weights = torch.randn(6, 5).expand(4, 8, 6, 5)
    outputs = lowering.compile(network)(x), twin(y)
    assert outputs[0].requires_grad == outputs[1].requires_grad == bool(trained)
    torch.testing.assert_close(*outputs)
    if trained:
        for output in outputs:
            output.backward(weights)
        torch.testing.assert_close(
            [x.grad, *gradients(network).values()], [y.grad, *gradients(twin).values()]
        )
    plan = "pool" if trained else "gate"  # nothing to differentiate: as in inference
    assert lowering.plans == [plan]


# What stands behind the site y in one op each way, with the shortcut r.
TAILS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "alone": lambda y, _: y,
    "gain": lambda y, _: 0.3 * y,
    "gain, relu": lambda y, _: F.relu(y * 3.0),
    "residual": lambda y, r: r + y,
    "residual, silu": lambda y, r: F.silu(y + r),
    "gain, residual, gelu": lambda y, r: F.gelu(0.3 * y + r),
}


@pytest.mark.parametrize("name", TAILS)
def test_one_op_each_way_trains_as_exactly_as_eager_mode_with_its_tail(name: str) -> None:
    torch.manual_seed(0)
    network = Network(lambda net, x: net.project(TAILS[name](net.eca(net.conv(x)), x)), project=conv1x1)
    twin, exact = copy.deepcopy(network), copy.deepcopy(network).double()
    x, lowering = (
        example().contiguous(memory_format=torch.channels_last),
        Lowering("aot_eager", device="cuda"),
    )
    steps = []
    for run, state in ((lowering.compile(network), network), (twin, twin), (exact, exact)):
        given = leaf(x.double() if state is exact else x)
        out = run(given)
        out.square().sum().backward()
        steps.append([out, given.grad, *(grad for grad in gradients(state).values() if grad is not None)])
    (record,) = lowering.records
    assert (record.decision.plan, lowering.own_calls()) == ("block", ["eca"])
    assert ", ".join(record.decision.fused) == ("" if name == "alone" else name)
    for ours, eager, want in zip(*steps, strict=True):
        assert_as_good_as(ours, eager, want)


TRANSFORMS: dict[str, Callable[[Callable[[Tensor], Tensor]], Callable[[Tensor], Any]]] = {
    "grad": lambda f: torch.func.grad(lambda x: f(x).square().sum()),
    "vmap": lambda f: lambda x: torch.func.vmap(lambda each: f(each))(x[:, None]),
    "gradients per image": lambda f: (
        lambda x: torch.func.vmap(torch.func.grad(lambda x: f(x[None]).square().sum()))(x)
    ),
    "jvp": lambda f: lambda x: torch.func.jvp(f, (x,), (x.cos(),)),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_inside_a_transform_a_site_is_left_alone_for_a_named_reason(name: str) -> None:
    lowering, x = Lowering("aot_eager"), example()
    transformed = TRANSFORMS[name](EcaModule(8))
    torch.testing.assert_close(lowering.compile(transformed)(x), transformed(x))
    assert lowering.reasons == [WRAPPED]


def test_a_second_derivative_of_a_compiled_network_is_refused_by_torch() -> None:
    x = leaf(example())
    out = Lowering("aot_eager").compile(frozen(ResNetTail()))(x)
    (first,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="does not currently support double backward"):
        first.sum().backward()
