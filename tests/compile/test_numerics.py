"""Compiled against eager on every spelling and style: sites, values, gradients, batch norm statistics.

Half of the cases are planned for a GPU: in evaluation mode the op takes the place of the whole site there,
else that of its gate. The largest error against float64 over all maps must not exceed twice that of the code
without our ops in the same mode, plus one unit in the last place.
"""

import copy
from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from delicate import DELICATE
from harness import Inside, Lowering, leaf, results
from spellings import SPELLINGS
from styles import STYLES
from torch import Tensor, nn

from eca_triton.compile.reasons import GATE_PATH
from eca_triton.compile.record import recording

TRAINING = pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
MODES = {
    "eval-fp32-static": (False, False, False),
    "eval-autocast-dynamic": (False, True, True),
    "train-fp32-dynamic": (True, False, True),
    "train-autocast-static": (True, True, False),
}
MODE = pytest.mark.parametrize(("training", "autocast", "dynamic"), MODES.values(), ids=MODES)
"""Every pair of a mode, a precision and static or dynamic shapes."""
GATE_CALLS = torch.conv1d, torch.conv2d, torch.sigmoid, F.hardsigmoid, F.adaptive_avg_pool2d, F.avg_pool2d
FORMATS = {3: torch.contiguous_format, 4: torch.channels_last, 5: torch.channels_last_3d}


def in_every_layout(maps: list[Tensor]) -> list[Tensor]:
    """The maps, and the same in channels-last; a sequence has one layout only."""
    layouts = {torch.contiguous_format, FORMATS[maps[0].dim()]}
    return [x.contiguous(memory_format=layout) for layout in layouts for x in maps]


def strides(x: Tensor) -> list[int]:
    """Strides of the dims along which there is a step."""
    return [stride for size, stride in zip(x.shape, x.stride(), strict=True) if size > 1]


def outcome(
    network: Callable, state: nn.Module, x: Tensor, training: bool, autocast: bool
) -> dict[str, Tensor]:
    """What one step computes: outputs, gradients of x and of state's parameters, state's buffers."""
    with torch.set_grad_enabled(training), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        x = leaf(x) if training else x.clone(memory_format=torch.preserve_format)
        outputs = results(network(x))
    found = {f"output {i}": output for i, output in enumerate(outputs)}
    outputs = tuple(output for output in outputs if output.requires_grad)
    if training:
        generator = torch.Generator().manual_seed(2)
        weights = [torch.randn(output.shape, generator=generator).to(output.dtype) for output in outputs]
        state.zero_grad()
        torch.autograd.backward(outputs, weights)
        found["gradient of x"] = x.grad
        found |= {f"gradient of {name}": parameter.grad for name, parameter in state.named_parameters()}
    found |= {name: buffer.clone() for name, buffer in state.named_buffers()}
    return {name: tensor.detach() for name, tensor in found.items() if tensor is not None}


def assert_as_exact(
    network: nn.Module,
    maps: list[Tensor],
    lowered: Callable[[nn.Module], Callable],
    *rivals: Callable[[nn.Module], Callable],
    training: bool,
    autocast: bool,
) -> None:
    """Compare network, compiled by `lowered`, with float64, eager mode and what the `rivals` make of it."""
    network.train(training)
    # Copies, because a step changes the running statistics.
    exact = copy.deepcopy(network).double()
    states = [network] + [copy.deepcopy(network) for _ in range(1 + len(rivals))]
    runs = [
        lowered(network),
        states[1],
        *(rival(state) for rival, state in zip(rivals, states[2:], strict=True)),
    ]
    errors: dict[str, list[list[float]]] = {}
    for x in maps:
        truth = outcome(exact, exact, x.double(), training, False)
        got, native, *others = (
            outcome(run, state, x, training, autocast) for run, state in zip(runs, states, strict=True)
        )
        assert got.keys() == native.keys()
        # Where rounding alone opens or closes the last ReLU, there is no error of its gradient to compare.
        zero = {name: tensor == 0 for name, tensor in truth.items() if "output" in name}
        comparable = all(
            torch.equal(run[name] == 0, zero[name]) for run in (got, native, *others) for name in zero
        )
        for name, tensor in got.items():
            assert (tensor.dtype, tensor.shape) == (native[name].dtype, native[name].shape), name
            assert "output" not in name or strides(tensor) == strides(native[name]), name
            differences = [run[name] - truth[name] for run in (got, native, *others)]
            sizes = [size.abs().max().item() for size in (truth[name], *differences)]
            if comparable or "gradient" not in name:
                errors.setdefault(name, []).append(sizes)
    assert errors.keys() == got.keys()
    unit = torch.finfo(torch.bfloat16 if autocast else torch.float32).eps
    for name, found in errors.items():
        largest, error, *native_errors = map(max, zip(*found, strict=True))
        assert error <= 2 * max(native_errors) + unit * largest, name


@MODE
@pytest.mark.parametrize("name", SPELLINGS)
def test_every_spelling_is_as_exact_as_eager(
    name: str, training: bool, autocast: bool, dynamic: bool
) -> None:
    torch.manual_seed(0)
    spelling, lowering = SPELLINGS[name], Lowering(device=None if autocast else "cuda")
    maps = in_every_layout([spelling.example() for _ in range(4)])
    compiled = partial(lowering.compile, dynamic=dynamic)
    assert_as_exact(Inside(spelling.build()), maps, compiled, training=training, autocast=autocast)
    left = [record.decision.reason for record in lowering.rejected]
    # Under autocast eager mode copies an expanded gate, and a product that begins with it lies as the copy.
    copied = autocast and name == "gate-expanded-times-map"
    assert lowering.sites
    assert set(left) == ({GATE_PATH} if copied else set())
    assert len(lowering.sites) + len(left) == len(lowering.graphs)
    assert {site.k for site in lowering.sites} == {spelling.k}
    assert len(lowering.own_calls()) == len(lowering.sites)
    assert left or lowering.calls(*GATE_CALLS, torch._C._nn.pad) == []


@MODE
@pytest.mark.parametrize("name", STYLES)
def test_every_style_is_as_exact_as_eager(name: str, training: bool, autocast: bool, dynamic: bool) -> None:
    torch.manual_seed(0)
    style, lowering = STYLES[name], Lowering(device="cuda" if autocast else None)
    maps = in_every_layout([style.example() for _ in range(4)])
    compiled = partial(lowering.compile, dynamic=dynamic)
    assert_as_exact(style.build(), maps, compiled, training=training, autocast=autocast)
    assert len(lowering.sites) == len(lowering.own_calls()) == style.sites * len(lowering.graphs)
    assert lowering.calls(torch.conv1d) == []


@MODE
@pytest.mark.parametrize("name", DELICATE)
def test_whether_lowered_or_not_the_numbers_are_eagers(
    name: str, training: bool, autocast: bool, dynamic: bool
) -> None:
    torch.manual_seed(0)
    maps = in_every_layout([DELICATE[name].example() for _ in range(4)])
    device = None if autocast else "cuda"
    compiled = partial(Lowering(device=device).compile, dynamic=dynamic)
    assert_as_exact(Inside(DELICATE[name].build()), maps, compiled, training=training, autocast=autocast)


@pytest.mark.parametrize("product", ["mul-in-place", "imul"])
def test_a_map_that_is_rescaled_in_place_is_rescaled_for_the_caller(product: str) -> None:
    torch.manual_seed(0)
    spelling, lowering = SPELLINGS[product], Lowering("aot_eager")
    block, x = spelling.build(), spelling.example()
    with torch.no_grad():
        expected = block(x.clone())
        returned = lowering.compile(block)(x)
    torch.testing.assert_close(x, expected)
    assert returned is x or torch.equal(returned, x)


@pytest.mark.parametrize("name", STYLES)
def test_every_style_trains_with_a_backward_graph(name: str) -> None:
    """Our ops' gradients are traced with fake tensors, functionalized and decomposed."""
    torch.manual_seed(0)
    style, lowering = STYLES[name], Lowering("aot_eager")
    maps = [style.example().contiguous(memory_format=torch.channels_last) for _ in range(4)]
    stock = partial(torch.compile, backend="aot_eager", dynamic=False)
    assert_as_exact(style.build(), maps, lowering.compile, stock, training=True, autocast=True)
    assert len(lowering.sites) == style.sites * len(lowering.graphs)


@TRAINING
@pytest.mark.parametrize("name", ["ResNetTail", "NFNetTail", "Checkpointed"])
def test_other_batch_sizes_recompile_at_most_once(name: str, training: bool) -> None:
    torch.manual_seed(0)
    style, lowering = STYLES[name], Lowering("aot_eager")
    maps = [style.example(batch) for batch in (2, 3, 5, 9)]
    compiled, stock = partial(lowering.compile, dynamic=None), partial(torch.compile, backend="aot_eager")
    assert_as_exact(style.build(), maps, compiled, stock, training=training, autocast=False)
    assert len(lowering.graphs) <= 2
    assert len(lowering.sites) == len(lowering.graphs)


@pytest.mark.parametrize(
    ("name", "training"),
    [
        ("ResNetTail-twice", True), ("NFNetTail", True), ("Checkpointed", True), ("ByobNetMiddle", False),
        ("ResNetTail-twice", False),
    ],
)  # fmt: skip
def test_the_backend_is_as_exact_as_inductor(
    name: str, training: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Code generated for this machine's CPU, in channels-last under autocast."""
    torch.manual_seed(0)
    torch._dynamo.reset()
    monkeypatch.setenv("ECA_TRITON_FORCE", "1")
    maps = [STYLES[name].example().contiguous(memory_format=torch.channels_last) for _ in range(4)]
    lowered, stock = (
        partial(torch.compile, fullgraph=True, backend=name) for name in ("eca_triton", "inductor")
    )
    with recording() as records:
        assert_as_exact(STYLES[name].build(), maps, lowered, stock, training=training, autocast=True)
    assert [record.lowered for record in records] == [True] * STYLES[name].sites
