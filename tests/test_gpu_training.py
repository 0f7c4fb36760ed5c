"""A training step on a CUDA device: what neither the interpreter nor the compiler can show."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import torch
from eager_block import to_double
from torch import Tensor, nn
from training_site import FORMATS, NAMES, by_eager, by_op, gradients, site

import eca_triton
from eca_triton.ops.outputs import mask_order_for
from eca_triton.tuning.choice import choose
from eca_triton.tuning.layout import common_layout
from eca_triton.tuning.problem import EcaProblem

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.usefixtures("_exact_convolutions"),
]

DEVICE = torch.device("cuda")
RESNET = [(128, 256, 56, 56), (128, 512, 28, 28), (128, 1024, 14, 14), (128, 2048, 7, 7)]
SHAPES = [*RESNET, (8, 16, 112, 112), (4, 142, 28, 28), (3, 19, 9, 11)]
MAPS = ("x", "residual")
# By name: which tensors of a site there are besides the map and the weight, and the options of the op.
SITES: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "alone": ((), {}),
    "relu from bits": (("bias", "residual"), {"activation": "relu"}),
    "silu recomputed": (("residual",), {"activation": "silu", "gain": 0.5}),
    "batch norm and relu": (("bn_weight", "bn_bias", "residual"), {"activation": "relu", "gain": 2.0}),
}
TAIL = "batch norm and relu"
CASES = [(name, torch.bfloat16) for name in SITES]
CASES += [(TAIL, torch.float16), (TAIL, torch.float32), ("silu recomputed", torch.float32)]

layouts = pytest.mark.parametrize("layout", FORMATS)


def label(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


@pytest.fixture
def _exact_convolutions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


class Case:
    """A site's tensors, and the gradient that comes in: none where rounding may open or close ReLU."""

    def __init__(self, name: str, shape: tuple[int, ...], layout: str, dtype: torch.dtype) -> None:
        torch.manual_seed(0)
        present, self.options = SITES[name]
        with DEVICE:
            statistics, tensors = site(shape, dtype, FORMATS[layout])
        self.tensors = {k: v for k, v in tensors.items() if k in ("x", "weight", *present)}
        self.statistics = statistics if "bn_weight" in present else (None, None)
        # The same number in every dtype, and positive: sums that cancel have few digits.
        self.dy = torch.randint(1, 9, shape, device=DEVICE).div(8).to(tensors["x"])
        self.dy = self.dy.contiguous(memory_format=FORMATS[layout])
        if self.options.get("activation") == "relu":
            linear = self.double()
            linear.options = self.options | {"activation": "identity"}
            u = linear.forward(by_eager)
            self.dy.masked_fill_(u.abs() <= allowed(self.forward(by_eager), u.relu()), 0)

    def double(self) -> Case:
        case = copy.copy(self)
        case.statistics, case.tensors = to_double(self.statistics), to_double(self.tensors)
        return case

    def forward(self, block: Any) -> Tensor:
        with torch.no_grad():
            return self._run(block, self.statistics, **self.tensors, **self.options)

    def gradients(self, block: Any = by_op) -> dict[str, Tensor]:
        run, wanted = partial(self._run, block), tuple(self.tensors)
        return gradients(run, self.statistics, self.tensors, wanted, self.dy, **self.options)

    def _run(self, block: Any, statistics: Any, **arguments: Any) -> Tensor:
        absent = dict.fromkeys(name for name in NAMES if name not in self.tensors)
        return block(statistics, **arguments, **absent)

    def kernels(self) -> tuple[str, str]:
        """Of the forward that saves, and of the backward."""
        from eca_triton.launch.devices import device_of

        x, residual = self.tensors["x"], self.tensors.get("residual")
        layout, activation = common_layout(x.shape, x.stride()), self.options.get("activation", "identity")
        bits, front = mask_order_for(x, residual, activation) != "none", "bn_weight" in self.tensors
        of_x = layout, x.dtype, x.element_size(), device_of(x.device)
        active = activation != "identity"
        forward = EcaProblem(*of_x, "forward", 5, bits=bits, front=front)
        backward = EcaProblem(*of_x, "backward", 5, bits=bits, recomputed=active and not bits, stored=active)
        return choose(forward).kernel, choose(backward).kernel


def allowed(native: Tensor, exact: Tensor, ulps: int = 1) -> float:
    """Twice eager's own error, and some steps of the largest number."""
    error = (native.double() - exact).abs().max()
    return float(2 * error + ulps * torch.finfo(native.dtype).eps * exact.abs().max())


def assert_exact(got: dict[str, Tensor], native: dict[str, Tensor], exact: dict[str, Tensor]) -> None:
    """As good as eager code; of sums over a batch, which are few numbers, eager's may be right by chance."""
    assert got.keys() == native.keys() == exact.keys()
    for name, truth in exact.items():
        error = (got[name].double() - truth).abs().max().item()
        assert got[name].dtype == native[name].dtype
        most = allowed(native[name], truth, 1 if name in (*MAPS, "out") else 8)
        assert error <= most, f"{name}: error {error:.2e}, allowed {most:.2e}"


def assert_same(got: dict[str, Tensor], first: dict[str, Tensor]) -> None:
    assert all(torch.equal(got[name], tensor) for name, tensor in first.items())


@pytest.mark.parametrize(("name", "dtype"), CASES, ids=[f"{name}-{dtype}" for name, dtype in CASES])
@layouts
@pytest.mark.parametrize("shape", SHAPES, ids=label)
def test_gradients(shape: tuple[int, ...], dtype: torch.dtype, layout: str, name: str) -> None:
    case = Case(name, shape, layout, dtype)
    got = case.gradients()
    for map_name in {"out", *MAPS} & got.keys():
        assert got[map_name].stride() == case.tensors["x"].stride()
    assert_exact(got, case.gradients(by_eager), case.double().gradients(by_eager))


def test_the_shapes_call_for_every_kernel_in_either_direction() -> None:
    cases = [Case("alone", shape, layout, torch.bfloat16) for shape in SHAPES for layout in FORMATS]
    every = {"tile", "tile_channels_last", "lagged", "two_pass"}
    for direction in zip(*(case.kernels() for case in cases), strict=True):
        assert set(direction) == every


@layouts
@pytest.mark.parametrize("shape", [*RESNET, (4, 142, 28, 28)], ids=label)
def test_the_same_bits_every_time(shape: tuple[int, ...], layout: str) -> None:
    case = Case(TAIL, shape, layout, torch.bfloat16)
    first = case.gradients()
    for _ in range(50):
        assert_same(case.gradients(), first)


@layouts
def test_more_than_two_to_the_31_elements(layout: str) -> None:
    """A gradient comes in at the last images alone, so all gradients are theirs."""
    case = Case("relu from bits", (2, 256, 56, 56), layout, torch.bfloat16)
    large, many = copy.copy(case), 2700
    large.tensors = dict(case.tensors)
    for name in MAPS:
        tensor = torch.empty(many, 256, 56, 56, dtype=torch.bfloat16, device=DEVICE)
        large.tensors[name] = tensor.contiguous(memory_format=FORMATS[layout]).normal_()
        large.tensors[name][-2:] = case.tensors[name]
    large.dy = torch.zeros_like(large.tensors["x"])
    large.dy[-2:] = case.dy
    assert large.dy.numel() > 2**31
    got = large.gradients()
    for name in ("out", *MAPS):
        assert name == "out" or not got[name][:-2].any()
        got[name] = got[name][-2:]
    assert_exact(got, case.gradients(by_eager), case.double().gradients(by_eager))


@pytest.mark.parametrize("name", ["alone", TAIL])
@layouts
def test_a_step_is_captured_and_replayed(layout: str, name: str) -> None:
    case = Case(name, (8, 256, 56, 56), layout, torch.bfloat16)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        case.gradients()  # compiles
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        captured = case.gradients()
    for tensor in case.tensors.values():
        tensor.normal_()
    graph.replay()
    torch.cuda.synchronize()
    assert_same(case.gradients(), captured)


def test_two_streams_at_once() -> None:
    cases = [Case(TAIL, (64, 256, 56, 56), layout, torch.bfloat16) for layout in FORMATS]
    expected = [case.gradients() for case in cases]
    streams = [torch.cuda.Stream() for _ in cases]
    torch.cuda.synchronize()
    for _ in range(20):
        found = []
        for stream, case in zip(streams, cases, strict=True):
            with torch.cuda.stream(stream):
                found.append(case.gradients())
        torch.cuda.synchronize()
        for got, want in zip(found, expected, strict=True):
            assert_same(got, want)


class Tail(nn.Module):
    """The end of a ResNet's block."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.attention = eca_triton.ECA(channels, k_size=5)
        nn.init.normal_(self.norm.weight)
        nn.init.normal_(self.norm.bias)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return torch.relu(self.before_relu(x, residual))

    def before_relu(self, x: Tensor, residual: Tensor) -> Tensor:
        return self.attention(self.norm(x)) + residual


def step(tail: Tail, run: Any, maps: tuple[Tensor, ...], dy: Tensor, autocast: bool) -> dict[str, Tensor]:
    """Result, gradients and running statistics, which start anew."""
    tail.norm.reset_running_stats()
    leaves = [tensor.detach().requires_grad_() for tensor in maps]
    with torch.autocast(DEVICE.type, maps[0].dtype, enabled=autocast):
        out = run(*leaves)
    parameters = dict(tail.named_parameters())
    found = torch.autograd.grad(out, [*leaves, *parameters.values()], dy.to(out.dtype))
    running = {name: value.clone() for name, value in tail.named_buffers() if value.is_floating_point()}
    return {"out": out.detach()} | dict(zip((*MAPS, *parameters), found, strict=True)) | running


@pytest.mark.parametrize("precision", ["fp16 autocast", "bf16"])
@layouts
@pytest.mark.parametrize("shape", RESNET[::2], ids=label)
def test_a_compiled_step_with_batch_norm(shape: tuple[int, ...], layout: str, precision: str) -> None:
    from eca_triton.compile.record import recording

    torch.manual_seed(0)
    torch._dynamo.reset()
    autocast = precision == "fp16 autocast"
    dtype = torch.float16 if autocast else torch.bfloat16
    tail = Tail(shape[1]).to(DEVICE, torch.float32 if autocast else dtype)
    x, residual, dy = (
        torch.randn(shape, device=DEVICE, dtype=dtype).contiguous(memory_format=FORMATS[layout])
        for _ in range(3)
    )
    exact = copy.deepcopy(tail).double()
    with torch.no_grad(), torch.autocast(DEVICE.type, dtype, enabled=autocast):
        u = exact.before_relu(x.double(), residual.double())
        dy.masked_fill_(u.abs() <= allowed(tail(x, residual), u.relu()), 0)
    with recording() as records:
        compiled = torch.compile(tail, backend="eca_triton", fullgraph=True, dynamic=False)
        got = step(tail, compiled, (x, residual), dy, autocast)
    assert [record.decision.plan for record in records] == ["batch_norm"]
    native = step(tail, tail, (x, residual), dy, autocast)
    assert_exact(got, native, step(exact, exact, (x.double(), residual.double()), dy.double(), False))
    for _ in range(20):
        assert_same(step(tail, compiled, (x, residual), dy, autocast), got)
