"""Each attention is its paper's formula, in every layout and dtype, with as many parameters as it says."""

import copy

import pytest
import torch
from formulas import FORMULAS, PARAMETERS
from torch import Tensor, nn

import eca_triton
from eca_triton.models.attention import A2, ATTENTION, CBAM, ECANS, SE, SEVar2, SEVar3

EACH = pytest.mark.parametrize("name", ATTENTION)
LAYOUT = pytest.mark.parametrize(
    "layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"]
)
EXAMPLE = (2, 24, 5, 3)


def with_random_weights(module: nn.Module) -> nn.Module:
    """Also those that start as zeros or ones, and batch norm's statistics."""
    torch.manual_seed(0)
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.is_floating_point():
            nn.init.uniform_(tensor, -1, 1)
    for name, buffer in module.named_buffers():
        if name.endswith("running_var"):
            buffer.abs_().add_(0.5)
    return module.eval()


def example(layout: torch.memory_format = torch.contiguous_format) -> Tensor:
    return torch.randn(EXAMPLE, generator=torch.Generator().manual_seed(1)).to(memory_format=layout)


def exact(name: str, module: nn.Module, x: Tensor) -> Tensor:
    """The formula in float64 on the module's weights."""
    weights = {key: tensor.double().numpy() for key, tensor in module.state_dict().items()}
    return torch.from_numpy(FORMULAS[name](x.double().numpy(), weights))


def test_all_are_the_papers() -> None:
    assert list(ATTENTION) == list(FORMULAS) == list(PARAMETERS)
    assert ATTENTION["eca"] is eca_triton.ECA


@LAYOUT
@EACH
def test_it_computes_its_formula(name: str, layout: torch.memory_format) -> None:
    module = with_random_weights(ATTENTION[name](EXAMPLE[1]).double())
    x = example(layout).double()
    y = module(x)
    assert y.is_contiguous(memory_format=layout)
    torch.testing.assert_close(y, exact(name, module, x), rtol=0, atol=1e-12)


@LAYOUT
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@EACH
def test_low_precision_keeps_the_dtype_and_is_near(
    name: str, dtype: torch.dtype, layout: torch.memory_format
) -> None:
    module = with_random_weights(ATTENTION[name](EXAMPLE[1])).to(dtype)
    x = example(layout).to(dtype)
    y, correct = module(x), exact(name, module, x)
    assert (y.dtype, y.shape) == (dtype, x.shape)
    assert (y - correct).abs().max() <= 4 * torch.finfo(dtype).eps * correct.abs().max()


@EACH
def test_every_weight_has_a_gradient(name: str) -> None:
    module = with_random_weights(ATTENTION[name](EXAMPLE[1])).train()
    x = example().requires_grad_()
    module(x).square().sum().backward()
    for tensor in (x, *module.parameters()):
        assert tensor.grad is not None
        assert tensor.grad.isfinite().all()
        assert tensor.grad.abs().max() > 0


@pytest.mark.parametrize("channels", [16, 24, 96, 256, 2048])
@EACH
def test_it_has_as_many_parameters_as_its_formula(name: str, channels: int) -> None:
    with torch.device("meta"):
        module = ATTENTION[name](channels)
    assert sum(parameter.numel() for parameter in module.parameters()) == PARAMETERS[name](channels)


def test_arguments_change_the_sizes() -> None:
    with torch.device("meta"):
        shapes = {
            "k_size": ECANS(64, k_size=7).conv.weight.shape,
            "se": SE(64, reduction=4).fc1.weight.shape,
            "cbam": CBAM(64, reduction=4).channel.fc1.weight.shape,
            "a2": A2(64, reduction=4).expand.weight.shape,
            "groups": SEVar3(64, groups=16).fc.weight.shape,
        }
    assert {key: tuple(shape) for key, shape in shapes.items()} == {
        "k_size": (64, 1, 7),
        "se": (16, 64, 1, 1),
        "cbam": (16, 64, 1, 1),
        "a2": (64, 16, 1, 1),
        "groups": (64, 4, 1, 1),
    }


def test_eca_whose_channels_have_the_same_taps_is_eca() -> None:
    shared, own = with_random_weights(ATTENTION["eca"](24, k_size=5)), ECANS(24, k_size=5)
    with torch.no_grad():
        own.conv.weight.copy_(shared.conv.weight.expand(24, 1, 5))
    torch.testing.assert_close(own(example()), shared(example()))


def test_one_tap_a_channel_is_se_var2() -> None:
    one, each = with_random_weights(SEVar2(24)), ECANS(24, k_size=1)
    with torch.no_grad():
        each.conv.weight.copy_(one.weight[:, None, None])
    torch.testing.assert_close(each(example()), one(example()))


def test_groups_are_blocks_on_the_diagonal() -> None:
    grouped, full = with_random_weights(SEVar3(24, groups=4)), SEVar3(24)
    blocks = torch.block_diag(*grouped.fc.weight[:, :, 0, 0].split(6))
    with torch.no_grad():
        full.fc.weight.copy_(blocks[:, :, None, None])
    torch.testing.assert_close(full(example()), grouped(example()))


def test_a2_starts_as_the_identity_and_learns_from_there() -> None:
    module, x = A2(24), example()
    assert torch.equal(module(x), x)
    module(x).square().sum().backward()
    assert module.expand.weight.grad.abs().max() > 0


def test_cbam_trains_with_the_statistics_of_the_batch() -> None:
    module = with_random_weights(CBAM(24).double()).train()
    x = example().double()
    trained, y = copy.deepcopy(module), module(x)
    pooled = module.channel(x)
    z = module.spatial.conv.conv(torch.stack([pooled.mean(1), pooled.amax(1)], 1)).detach()
    trained.spatial.conv.bn.running_mean.copy_(z.mean())
    trained.spatial.conv.bn.running_var.copy_(z.var(correction=0))
    torch.testing.assert_close(y, exact("cbam", trained, x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("k_size", [2, 0, -1])
def test_taps_have_a_centre(k_size: int) -> None:
    with pytest.raises(ValueError, match=f"k_size must be odd and positive, got {k_size}"):
        ECANS(24, k_size=k_size)


@pytest.mark.parametrize("module", [SE, CBAM, A2])
def test_a_reduction_is_positive(module: type) -> None:
    with pytest.raises(ValueError, match="reduction must be positive, got 0"):
        module(24, reduction=0)
