"""Small networks, lowered and compiled, on the real kernels: values and gradients against float64."""

import copy
from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from kernel_cases import assert_earned
from torch import Tensor, fx, nn
from torch._dynamo.backends.registry import lookup_backend

from eca_triton.compile.passes import lower_graph
from eca_triton.compile.settings import Settings
from eca_triton.launch import gates


class Bottleneck(nn.Module):
    """The tail of a residual block: convolution, batch norm, ECA, shortcut, ReLU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 1, bias=False)
        self.bn = nn.BatchNorm2d(channels)
        self.mix = nn.Conv1d(1, 1, 5, padding=2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(self.conv(x))
        gate = torch.sigmoid(self.mix(y.mean((2, 3)).unsqueeze(1))).view(x.size(0), -1, 1, 1)
        return F.relu(y * gate + x)


class NormFree(nn.Module):
    """A normalizer-free block: convolution, circular ECA with bias, gain, shortcut, SiLU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 1)
        self.mix = nn.Conv1d(1, 1, 3, padding=1, padding_mode="circular")

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        z = self.mix(F.adaptive_avg_pool2d(y, 1).squeeze(-1).transpose(-1, -2))
        return F.silu(2 * (y * torch.sigmoid(z).transpose(-1, -2).unsqueeze(-1)) + x)


def lowered(network: nn.Module) -> Callable[[Tensor], Tensor]:
    """Network with its sites lowered, traced forward and backward, without a code generator."""

    def backend(gm: fx.GraphModule, example_inputs: list[Tensor]) -> Callable:
        records = lower_graph(gm, Settings(force=True))
        assert [record.lowered for record in records] == [True, True]
        return lookup_backend("aot_eager")(gm, example_inputs)

    torch._dynamo.reset()
    return torch.compile(network, backend=backend, fullgraph=True)


def outcome(
    run: Callable[[Tensor], Tensor], network: nn.Module, x: Tensor, training: bool
) -> dict[str, Tensor]:
    """The output, and in training the gradients of the input and of every parameter."""
    if not training:
        with torch.no_grad():
            return {"output": run(x)}
    x = x.detach().requires_grad_()
    network.zero_grad()
    out = run(x)
    (out * torch.linspace(-1, 1, out.numel()).view(out.shape).to(out)).sum().backward()
    gradients = {name: parameter.grad for name, parameter in network.named_parameters()}
    return {"output": out.detach(), "x": x.grad} | gradients


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("block", [Bottleneck, NormFree])
def test_a_network_on_the_kernels_is_as_exact_as_eager(
    block: type[nn.Module], training: bool, layout: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    launches = []

    def counted(name: str, kernel: Callable[..., None], *args: object, **kwargs: object) -> None:
        launches.append(name)
        kernel(*args, **kwargs)

    for name in ("gate", "gate_from_pool", "gate_from_pool_backward"):
        monkeypatch.setattr(gates, name, partial(counted, name, getattr(gates, name)))
    native = nn.Sequential(block(19), block(19)).train(training)
    exact, network = copy.deepcopy(native).double(), copy.deepcopy(native)
    x = torch.randn(2, 19, 7, 5).contiguous(memory_format=layout)

    truth = outcome(exact, exact, x.double(), training)
    own = outcome(native, native, x, training)
    got = outcome(lowered(network), network, x, training)

    forward = "gate" if block is Bottleneck and not training else "gate_from_pool"
    assert launches == [forward] * 2 + ["gate_from_pool_backward"] * (2 if training else 0)
    for name, tensor in got.items():
        ulps = 8 if tensor.numel() == 1 else 1  # one number eager may have right by luck
        assert_earned(tensor, own[name], truth[name], ulps)
