"""On a CUDA device: what neither the interpreter nor the compiler can show. Skipped where there is none."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from eager_block import assert_as_good_as, eager_eca, eager_gate, to_double
from torch import Tensor, nn

import eca_triton

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

SHAPES = [(2, 64, 56, 56), (128, 256, 56, 56), (128, 512, 28, 28), (128, 1024, 14, 14), (128, 2048, 7, 7)]
SHAPES += [(1, 16, 112, 112), (3, 19, 9, 11), (1, 2047, 7, 7), (4, 142, 28, 28), (70_000, 8, 3, 3)]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
LAYOUTS = [torch.contiguous_format, torch.channels_last]

layouts = pytest.mark.parametrize("layout", LAYOUTS, ids=["contiguous", "channels_last"])


def site(
    shape: tuple[int, ...], dtype: torch.dtype, layout: torch.memory_format, tail: bool
) -> dict[str, Any]:
    """Arguments of the op: alone, or between batch norm and residual + ReLU."""
    torch.manual_seed(0)

    def some(*size: int) -> Tensor:
        return torch.randn(size, device="cuda", dtype=dtype)

    x = some(*shape).contiguous(memory_format=layout)
    arguments: dict[str, Any] = {"x": x, "weight": some(1, 1, 5)}
    if tail:
        c = shape[1]
        arguments["bn"] = (some(c), some(c).abs() + 0.5, some(c), some(c))
        arguments |= {"residual": torch.randn_like(x), "gain": 2.0, "activation": "relu"}
    return arguments


def by_op(arguments: dict[str, Any]) -> Tensor:
    flat = dict(arguments)
    names = ("bn_mean", "bn_var", "bn_weight", "bn_bias")
    flat |= dict(zip(names, flat.pop("bn", ()), strict=False))
    return torch.ops.eca_triton.eca(**flat)


@pytest.mark.parametrize("tail", [False, True], ids=["alone", "tail"])
@layouts
@pytest.mark.parametrize("dtype", DTYPES, ids=["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def test_maps_and_gates(shape: tuple[int, ...], dtype: torch.dtype, layout: Any, tail: bool) -> None:
    arguments = site(shape, dtype, layout, tail)
    before = arguments["x"].clone()
    out = by_op(arguments)
    assert torch.equal(arguments["x"], before)
    assert out.stride() == before.stride()
    few = {k: v[:4] if isinstance(v, Tensor) and v.dim() == 4 else v for k, v in arguments.items()}
    assert_as_good_as(out[:4], eager_eca(**few), eager_eca(**to_double(few)))
    gates = torch.ops.eca_triton.gate(few["x"], few["weight"])
    plain = {"x": few["x"], "weight": few["weight"]}
    assert_as_good_as(gates, eager_gate(**plain), eager_gate(**to_double(plain)))


@layouts
def test_more_than_two_to_the_31_elements(layout: Any) -> None:
    x = torch.empty(2700, 256, 56, 56, dtype=torch.bfloat16, device="cuda").contiguous(memory_format=layout)
    x.normal_()
    weight = torch.randn(1, 1, 5, device="cuda", dtype=torch.bfloat16)
    out = torch.ops.eca_triton.eca(x, weight)
    assert x.numel() > 2**31
    last = x[-2:]
    assert_as_good_as(out[-2:], eager_eca(last, weight), eager_eca(last.double(), weight.double()))


@layouts
@pytest.mark.parametrize("shape", [(128, 512, 28, 28), (128, 256, 56, 56)], ids=["28x28", "56x56"])
def test_the_same_bits_every_time(shape: tuple[int, ...], layout: Any) -> None:
    arguments = site(shape, torch.bfloat16, layout, tail=True)
    first = by_op(arguments)
    for _ in range(50):
        assert torch.equal(by_op(arguments), first)
    pooled = torch.randn(128, 512, device="cuda", requires_grad=True)
    weight = torch.randn(1, 1, 5, device="cuda", requires_grad=True)
    gates = torch.ops.eca_triton.gate_from_pool(pooled, weight)
    grads = [torch.autograd.grad(gates, (pooled, weight), torch.ones_like(gates), True) for _ in range(50)]
    assert all(torch.equal(a, b) for pair in grads for a, b in zip(pair, grads[0], strict=True))


def test_a_graph_is_captured_and_replayed() -> None:
    arguments = site((8, 256, 56, 56), torch.bfloat16, torch.channels_last, tail=True)
    by_op(arguments)  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = by_op(arguments)
    arguments["x"].normal_()
    graph.replay()
    assert torch.equal(out, by_op(arguments))


def test_two_streams_at_once() -> None:
    sites = [site((64, 256, 56, 56), torch.bfloat16, layout, tail=True) for layout in LAYOUTS]
    expected = [by_op(arguments) for arguments in sites]
    streams = [torch.cuda.Stream() for _ in sites]
    torch.cuda.synchronize()
    for _ in range(20):
        outs = []
        for stream, arguments in zip(streams, sites, strict=True):
            with torch.cuda.stream(stream):
                outs.append(by_op(arguments))
        torch.cuda.synchronize()
        assert all(torch.equal(out, want) for out, want in zip(outs, expected, strict=True))


class Network(nn.Module):
    """Three bottleneck tails, as ResNets have them."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(64, 64, 1, bias=False) for _ in range(3))
        self.norms = nn.ModuleList(nn.BatchNorm2d(64) for _ in range(3))
        self.attentions = nn.ModuleList(eca_triton.ECA(64) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for conv, norm, attention in zip(self.convs, self.norms, self.attentions, strict=True):
            x = torch.relu(attention(norm(conv(x))) + x)
        return x


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@layouts
def test_a_compiled_network(layout: Any, training: bool) -> None:
    from eca_triton.compile.record import recording

    torch.manual_seed(0)
    torch.backends.cudnn.allow_tf32 = False
    network = Network().cuda().train(training).to(memory_format=layout)
    exact, native = copy.deepcopy(network).double(), copy.deepcopy(network)
    x = torch.randn(8, 64, 28, 28, device="cuda").contiguous(memory_format=layout)
    with recording() as records, torch.set_grad_enabled(training):
        got = torch.compile(network, backend="eca_triton", fullgraph=True)(x)
        want = exact(x.double())
        # Stock Inductor sums batch norm's statistics in another order than eager does.
        plain = (torch.compile(native) if training else native)(x)
    assert [record.decision.plan for record in records] == ["batch_norm" if training else "block"] * 3
    assert_as_good_as(got.detach(), plain.detach(), want.detach())
    if training:
        for out in (got, want, plain):
            out.square().mean().backward()
        for mine, truth, theirs in zip(
            network.parameters(), exact.parameters(), native.parameters(), strict=True
        ):
            assert_as_good_as(mine.grad, theirs.grad, truth.grad)


class Tail(nn.Module):
    """Batch norm, ECA, residual, ReLU on a map in memory: one kernel, ours, in a compiled graph."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.attention = eca_triton.ECA(channels, k_size=5)
        nn.init.normal_(self.norm.running_mean)
        nn.init.uniform_(self.norm.running_var, 0.5, 2)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return torch.relu(self.attention(self.norm(x)) + residual)


@layouts
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
@torch.no_grad()
def test_a_compiled_tail(shape: tuple[int, ...], layout: Any) -> None:
    torch.manual_seed(0)
    tail = Tail(shape[1]).cuda().bfloat16().eval()
    x, residual = (
        torch.randn(shape, device="cuda", dtype=torch.bfloat16).contiguous(memory_format=layout) for _ in "xr"
    )
    compiled = torch.compile(tail, backend="eca_triton", fullgraph=True, dynamic=False)
    out = compiled(x, residual)
    assert out.stride() == x.stride()
    few = x[:4], residual[:4]
    assert_as_good_as(out[:4], tail(*few), copy.deepcopy(tail).double()(*to_double(few)))
    assert all(torch.equal(compiled(x, residual), out) for _ in range(20))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_the_launch_enters_the_maps_device() -> None:
    arguments = site((4, 64, 14, 14), torch.float32, torch.contiguous_format, tail=True)
    there = {k: v.to("cuda:1") if isinstance(v, Tensor) else v for k, v in arguments.items()}
    there["bn"] = tuple(v.to("cuda:1") for v in arguments["bn"])
    assert torch.cuda.current_device() == 0
    assert torch.equal(by_op(there).cpu(), by_op(arguments).cpu())
