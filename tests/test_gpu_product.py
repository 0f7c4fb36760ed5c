"""On a CUDA device: a 1x1 convolution and its rescaling in one kernel. Skipped where there is none."""

from __future__ import annotations

import copy

import pytest
import torch
from eager_block import assert_as_good_as
from torch import Tensor, nn

import eca_triton
from eca_triton.launch.call import ProductCall
from eca_triton.reference.arguments import RescaledArguments
from eca_triton.tuning.candidates import candidates

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

SHAPES = [(128, 64, 256, 56), (128, 128, 512, 28), (8, 256, 1024, 14), (3, 24, 72, 9), (1, 130, 31, 7)]


def inputs(n: int, reduced: int, c: int, side: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    torch.manual_seed(0)
    x = torch.randn(n, reduced, side, side, device="cuda", dtype=dtype)
    matrix = torch.randn(c, reduced, 1, 1, device="cuda", dtype=dtype) * reduced**-0.5
    factor, summand = torch.rand(n, c, device="cuda"), torch.randn(n, c, device="cuda")
    return x.contiguous(memory_format=torch.channels_last), matrix, factor, summand


def by_torch(x: Tensor, matrix: Tensor, factor: Tensor, summand: Tensor) -> Tensor:
    return torch.conv2d(x, matrix) * factor[..., None, None] + summand[..., None, None]


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, torch.bfloat16], ids=["fp32", "fp16", "bf16"]
)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def test_values(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    torch.backends.cudnn.allow_tf32 = False
    x, matrix, *terms = inputs(*shape, dtype)
    out = torch.ops.eca_triton.rescaled_projection(x, matrix, *terms)
    assert out.is_contiguous(memory_format=torch.channels_last)
    few = x[:4], matrix, terms[0][:4], terms[1][:4]
    native = by_torch(*few).to(dtype)
    assert_as_good_as(out[:4], native, by_torch(*(tensor.double() for tensor in few)))
    again = [torch.ops.eca_triton.rescaled_projection(x, matrix, *terms) for _ in range(20)]
    assert all(torch.equal(out, each) for each in again)


def test_every_candidate_computes_what_torch_does() -> None:
    """One launch each, also of those that the compiled code speaks against."""
    from eca_triton.launch import devices
    from eca_triton.launch import projection as launch_projection

    x, matrix, factor, summand = inputs(2, 96, 160, 20, torch.bfloat16)
    native = by_torch(x, matrix, factor, summand).to(torch.bfloat16)
    exact = by_torch(*(tensor.double() for tensor in (x, matrix, factor, summand)))
    out = torch.empty_like(native, memory_format=torch.channels_last)
    call = ProductCall(RescaledArguments(x, matrix, factor, summand), out)
    choices = candidates(call.problem(devices.device_of(x.device)))
    assert len(choices) > 1
    for choice in choices:
        call.out.fill_(float("nan"))
        launch_projection.launched(call, choice)
        assert_as_good_as(call.out, native, exact)


def test_more_than_two_to_the_31_elements() -> None:
    x, matrix, factor, summand = inputs(2700, 64, 256, 56, torch.bfloat16)
    out = torch.ops.eca_triton.rescaled_projection(x, matrix, factor, summand)
    alone = torch.ops.eca_triton.rescaled_projection(x[-1:], matrix, factor[-1:], summand[-1:])
    assert torch.equal(out[-1:], alone)


class Bottleneck(nn.Module):
    """The end of a ResNet's block."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels // 4, channels, 1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.attention = eca_triton.ECA(channels, k_size=5)
        nn.init.normal_(self.norm.running_mean)
        nn.init.uniform_(self.norm.running_var, 0.5, 2)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return torch.relu(self.attention(self.norm(self.conv(torch.relu(x)))) + residual)


@pytest.mark.parametrize(("channels", "side"), [(256, 56), (512, 28)], ids=["56x56", "28x28"])
def test_a_compiled_bottleneck(channels: int, side: int) -> None:
    from eca_triton.compile.record import recording

    torch.manual_seed(0)
    network = Bottleneck(channels).cuda().eval()
    exact = copy.deepcopy(network).double()
    network = network.bfloat16().to(memory_format=torch.channels_last)
    x, residual = (
        torch.randn(32, size, side, side, device="cuda", dtype=torch.bfloat16).contiguous(
            memory_format=torch.channels_last
        )
        for size in (channels // 4, channels)
    )
    exact.load_state_dict(network.state_dict())  # of the rounded weights
    with recording() as records, torch.no_grad():
        got = torch.compile(network, backend="eca_triton", fullgraph=True)(x, residual)
        native, want = network(x, residual), exact(x.double(), residual.double())
    assert [record.decision.plan for record in records] == ["convblock"]
    assert_as_good_as(got, native, want)
