"""Compiled against eager on every spelling and style: values, gradients, batch norm statistics.

The largest error against float64 over four maps must not exceed twice eager's own in the same mode, plus one unit
in the last place.
"""

import copy
from collections.abc import Callable

import pytest
import torch
from harness import Lowering, leaf
from spellings import SPELLINGS, Spelling
from styles import STYLES, Style
from test_recognize import Inside
from torch import Tensor, nn

TRAINING = pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
DYNAMIC = pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
AUTOCAST = pytest.mark.parametrize("autocast", [False, True], ids=["fp32", "autocast"])
FORMATS = {3: torch.contiguous_format, 4: torch.channels_last, 5: torch.channels_last_3d}


def maps(like: Tensor) -> list[Tensor]:
    """Four random maps, and the same in channels-last where there is such a format."""
    contiguous = [torch.randn_like(like) for _ in range(4)]
    if like.dim() == 3:
        return contiguous
    return contiguous + [x.contiguous(memory_format=FORMATS[x.dim()]) for x in contiguous]


def outcome(
    network: Callable, state: nn.Module, x: Tensor, training: bool, autocast: bool = False
) -> dict[str, Tensor]:
    """What one step computes: outputs, gradients of x and of state's parameters, state's buffers."""
    with torch.set_grad_enabled(training), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        x = leaf(x) if training else x.clone(memory_format=torch.preserve_format)
        outputs = network(x)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    found = {f"output {i}": output for i, output in enumerate(outputs)}
    if training:
        generator = torch.Generator().manual_seed(2)
        weights = [torch.randn(output.shape, generator=generator).to(output.dtype) for output in outputs]
        state.zero_grad()
        torch.autograd.backward(outputs, weights)
        found["gradient of x"] = x.grad
        found |= {f"gradient of {name}": parameter.grad for name, parameter in state.named_parameters()}
    found |= {name: buffer.clone() for name, buffer in state.named_buffers()}
    return {name: tensor.detach() for name, tensor in found.items()}


def assert_as_exact_as_eager(
    lowering: Lowering, network: nn.Module, x: Tensor, dynamic: bool, *mode: bool
) -> None:
    """Compare network compiled by `lowering` with eager mode and float64. mode: training, autocast."""
    network.train(mode[0])
    # Copies, because a step changes the running statistics.
    exact_network, native_network = copy.deepcopy(network).double(), copy.deepcopy(network)
    compiled = lowering.compile(network, dynamic)
    errors: dict[str, list[tuple[float, float, float]]] = {}
    for laid_out in maps(x):
        exact = outcome(exact_network, exact_network, laid_out.double(), mode[0])
        native = outcome(native_network, native_network, laid_out, *mode)
        got = outcome(compiled, network, laid_out, *mode)
        assert got.keys() == native.keys()
        for name, tensor in got.items():
            assert (tensor.dtype, tensor.shape) == (native[name].dtype, native[name].shape), name
            assert "output" not in name or tensor.stride() == native[name].stride(), name
            sizes = got[name] - exact[name], native[name] - exact[name], exact[name]
            errors.setdefault(name, []).append(tuple(size.abs().max().item() for size in sizes))
    unit = torch.finfo(torch.bfloat16 if mode[1] else torch.float32).eps
    for name, found in errors.items():
        error, own_error, largest = map(max, zip(*found, strict=True))
        assert error <= 2 * own_error + unit * largest, name


@DYNAMIC
@AUTOCAST
@TRAINING
@pytest.mark.parametrize("name", SPELLINGS)
def test_every_spelling_is_as_exact_as_eager(
    name: str, training: bool, autocast: bool, dynamic: bool
) -> None:
    torch.manual_seed(0)
    spelling: Spelling = SPELLINGS[name]
    lowering = Lowering()
    assert_as_exact_as_eager(
        lowering, Inside(spelling.build()), spelling.example(), dynamic, training, autocast
    )
    assert len(lowering.sites) == len(lowering.graphs)


@DYNAMIC
@AUTOCAST
@TRAINING
@pytest.mark.parametrize("name", STYLES)
def test_every_style_is_as_exact_as_eager(name: str, training: bool, autocast: bool, dynamic: bool) -> None:
    torch.manual_seed(0)
    style: Style = STYLES[name]
    lowering = Lowering("aot_eager")
    assert_as_exact_as_eager(lowering, style.build(), style.example(), dynamic, training, autocast)
    assert len(lowering.sites) == style.sites * len(lowering.graphs)


@TRAINING
@pytest.mark.parametrize("name", ["ResNetTail-twice", "NFNetTail", "ByobNetMiddle", "Checkpointed"])
def test_inductor_is_as_exact_as_eager(name: str, training: bool) -> None:
    torch.manual_seed(0)
    lowering = Lowering("inductor")
    assert_as_exact_as_eager(lowering, STYLES[name].build(), STYLES[name].example(), False, training, True)
    assert lowering.own_calls()


@TRAINING
@pytest.mark.parametrize("name", ["ResNetTail", "NFNetTail", "Checkpointed"])
def test_other_batch_sizes_recompile_at_most_once(name: str, training: bool) -> None:
    torch.manual_seed(0)
    lowering = Lowering("aot_eager")
    network = STYLES[name].build().train(training)
    compiled = lowering.compile(network, dynamic=None)
    for batch in (2, 3, 5, 9):
        x = STYLES[name].example(batch)
        outcome(compiled, network, x, training)
    assert len(lowering.graphs) <= 2
    assert len(lowering.sites) == len(lowering.graphs)
