"""Exported programs: the ops stay in them, unmodified networks are lowered, and plain ATen comes back."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from eager_block import assert_as_good_as
from near_misses import NEAR_MISSES, gate, spread
from spellings import SPELLINGS, Block, conv1d
from styles import STYLES
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram, export

import eca_triton
from eca_triton.compile.reasons import DEVICE, TRAINS
from eca_triton.compile.record import recording

# Those that ATen spells in another way than Dynamo; compile/test_recognize.py has them all.
SPELLED = [
    "official-k7", "timm", "timm-circular-bias", "permute-with-bias", "index-with-none", "flatten-unflatten",
    "einops-both-ways", "conv2d-along-the-row", "padding-same", "sum-over-area", "hardsigmoid-in-place",
    "mul-in-place", "sequence",
]  # fmt: skip
STYLED = ["ResNetTail", "ResNetTail-twice", "NFNetTail", "VoVNetTail", "TwoOfOneMap", "FrozenBatchNorm"]
MISSED = [
    "shifted-window", "causal-padding", "convolution-across-images", "channel-overwritten",
    "map-changed-through-a-view", "gate-without-grad",
]  # fmt: skip
AUTO = Dim.AUTO  # type: ignore[attr-defined]  # which torch types as another enum


class Tail(nn.Module):
    """A bottleneck's tail, written by hand; named so that copies of the graph must keep their names."""

    def __init__(self) -> None:
        super().__init__()
        self.reduce, self.bn, self.conv = nn.Conv2d(4, 8, 1, bias=False), nn.BatchNorm2d(8), conv1d()

    def forward(self, input: Tensor) -> Tensor:
        x = self.bn(self.reduce(input))
        return F.relu(x * gate(self.conv, x) + self.reduce(input))


class Own(nn.Module):
    """Our function with neighbours and our gate, as a user calls them."""

    def __init__(self) -> None:
        super().__init__()
        self.eca = eca_triton.ECA(8)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        out = eca_triton.eca(self.eca(x), self.eca.conv.weight, residual=x, activation="relu")
        return out, eca_triton.eca_gate(x, self.eca.conv.weight, circular=True)


def calls(program: ExportedProgram | fx.GraphModule) -> list[str]:
    """The operators that the graph calls, in order: "eca_triton.eca" or "aten.relu"."""
    targets = [node.target for node in program.graph.nodes if node.op == "call_function"]
    return [str(target.overloadpacket) for target in targets if isinstance(target, torch._ops.OpOverload)]


def own_calls(program: ExportedProgram | fx.GraphModule) -> list[str]:
    return [name for name in calls(program) if name.startswith("eca_triton")]


def exported(module: nn.Module, x: Tensor, **options: object) -> ExportedProgram:
    """The program for any batch and, of a map in two dimensions, any height and width."""
    dims = {0: AUTO} | ({2: AUTO, 3: AUTO} if x.dim() == 4 else {})
    return export(module, (x.clone(),), dynamic_shapes=(dims,), **options)  # type: ignore[arg-type]


def lowered(program: ExportedProgram) -> tuple[ExportedProgram, list]:
    """The program rewritten as for a GPU, whatever its size, and the records."""
    with recording() as records:
        return eca_triton.rewrite_exported(program, force=True, device="cuda"), records


@pytest.mark.parametrize(
    ("dtype", "strict"), [(torch.float32, False), (torch.bfloat16, True)], ids=["fp32", "bf16-strict"]
)
def test_our_functions_are_single_ops_that_decompositions_leave_alone(
    dtype: torch.dtype, strict: bool
) -> None:
    module, x = Own().to(dtype), torch.randn(2, 8, 5, 6, dtype=dtype)
    program = exported(module, x, strict=strict)
    other = torch.randn(3, 8, 7, 4, dtype=dtype)
    for each in (program, program.run_decompositions()):
        assert own_calls(each) == calls(each) == ["eca_triton.eca", "eca_triton.eca", "eca_triton.gate"]
        for result, expected in zip(each.module()(other), module(other), strict=True):
            assert torch.equal(result, expected)


def test_torch_compile_still_sees_native_code() -> None:
    seen: list[str] = []

    def backend(gm: fx.GraphModule, _: object) -> Callable:
        seen.extend(str(node.target) for node in gm.graph.nodes)
        return gm.forward

    torch._dynamo.reset()
    torch.compile(Own(), backend=backend, fullgraph=True)(torch.randn(2, 8, 5, 6))
    assert "sigmoid" in str(seen)
    assert "eca_triton" not in str(seen)


def test_a_lowered_program_survives_being_saved() -> None:
    module, x = Tail().eval(), torch.randn(2, 4, 5, 6)
    program, _ = lowered(exported(module, x))
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    again = torch.export.load(file)
    assert len(own_calls(again)) == 1
    assert torch.equal(again.module()(x), program.module()(x))


@pytest.mark.parametrize("name", SPELLED)
def test_spellings_are_lowered_and_come_back(name: str) -> None:
    module, x = SPELLINGS[name].build(), SPELLINGS[name].example()
    program, records = lowered(exported(module, x))
    assert [record.lowered for record in records] == [True]
    assert len(own_calls(program)) == 1
    assert not {"aten.conv1d", "aten.conv2d", "aten.sigmoid"} & set(calls(program))

    x = SPELLINGS[name].example(batch=5)
    native, result = module(x.clone()), program.module()(x.clone())
    assert_as_good_as(result, native, copy.deepcopy(module).double()(x.double()))
    plain = eca_triton.decompose(program)
    assert own_calls(plain) == []
    assert torch.equal(plain.module()(x.clone()), result)


@pytest.mark.parametrize("name", STYLED)
def test_styles_keep_their_sites_and_values(name: str) -> None:
    module, x = STYLES[name].build().eval(), STYLES[name].example()
    program, records = lowered(export(module, (x.clone(),)))
    assert len(own_calls(program)) == STYLES[name].sites, records
    torch.testing.assert_close(program.module()(x.clone()), module(x.clone()))


@pytest.mark.parametrize("name", MISSED)
def test_near_misses_are_left_alone(name: str) -> None:
    module, x = NEAR_MISSES[name].build().eval(), NEAR_MISSES[name].example()
    program, _ = lowered(export(module, (x.clone(),)))
    assert own_calls(program) == []


@pytest.mark.parametrize(
    ("area", "rows"),
    [(lambda h, w: h * w * (1 + h // 4096), 4100), (lambda h, w: torch.sym_max(h, 64) * w, 8)],
    ids=["floor", "larger-of-two"],
)
def test_a_mean_for_some_sizes_only_is_left_alone(area: Callable[[int, int], int], rows: int) -> None:

    def rescale(conv: nn.Module, x: Tensor) -> Tensor:
        y = 2 * x
        return y * spread(conv((y.sum((2, 3)) / area(y.size(2), y.size(3))).unsqueeze(1)).sigmoid())

    module, other = Block(rescale, conv1d()).eval(), torch.randn(2, 8, rows, 2)
    program, _ = lowered(exported(module, torch.randn(2, 8, 80, 3)))
    assert own_calls(program) == []
    torch.testing.assert_close(program.module()(other), module(other))


@pytest.mark.parametrize(("network", "sites"), [("ecaresnet26t", 8), ("eca_nfnet_l0", 12)])
def test_networks_of_timm(network: str, sites: int) -> None:
    timm = pytest.importorskip("timm")
    module, x = timm.create_model(network).eval(), torch.randn(1, 3, 32, 32)
    program = export(module, (x,))
    before = str(program)
    result, records = lowered(program)
    gates = [call for call in own_calls(result) if "rescaled" not in call]
    assert (len(gates), sum(record.lowered for record in records)) == (sites, sites)
    assert all(record.name in dict(module.named_modules()) for record in records)
    assert str(program) == before
    with torch.no_grad():
        torch.testing.assert_close(result.module()(x), module(x))


def test_a_site_that_trains_and_one_on_the_cpu_are_left_alone() -> None:
    program, records = lowered(exported(Tail().train(), torch.randn(2, 4, 5, 6)))
    assert [record.decision.reason for record in records] == [TRAINS]
    assert own_calls(program) == []
    program = exported(Tail().eval(), torch.randn(2, 4, 5, 6))
    with recording() as records:
        result = eca_triton.rewrite_exported(program)
    assert [record.decision.reason for record in records] == [DEVICE]
    assert calls(result) == calls(program)


def test_gradients_pass_through_a_lowered_program() -> None:
    module, x = Tail().eval(), torch.randn(2, 4, 5, 6, requires_grad=True)
    program, _ = lowered(exported(module, x))
    (expected,) = torch.autograd.grad(module(x).square().sum(), x)
    (result,) = torch.autograd.grad(program.module()(x).square().sum(), x)
    torch.testing.assert_close(result, expected)


def test_core_aten_is_refused_with_the_way_out() -> None:
    program = exported(Tail().eval(), torch.randn(2, 4, 5, 6)).run_decompositions()
    with pytest.raises(ValueError, match="before run_decompositions"):
        eca_triton.rewrite_exported(program)


def test_decompose_keeps_names_dynamic_sizes_and_values() -> None:
    module, x = Own(), torch.randn(3, 8, 4, 9)
    program = exported(module, torch.randn(2, 8, 5, 6))
    plain = eca_triton.decompose(program)
    assert own_calls(plain) == []
    assert plain.graph_signature == program.graph_signature
    for result, expected in zip(plain.module()(x), module(x), strict=True):
        assert torch.equal(result, expected)


def test_decompose_takes_a_graph_module_and_shares_its_parameters() -> None:
    module, x = Own(), torch.randn(2, 8, 5, 6)
    gm = exported(module, x).module()
    assert isinstance(gm, fx.GraphModule)
    plain = eca_triton.decompose(gm)
    assert (len(own_calls(gm)), own_calls(plain)) == (3, [])
    assert torch.equal(plain(x)[0], module(x)[0])
    assert plain.get_parameter("eca.conv.weight") is gm.get_parameter("eca.conv.weight")


def test_the_table_takes_training_apart_as_well() -> None:
    """A step of training, traced with the ops in it, for who exports a joint graph."""
    from torch.fx.experimental.proxy_tensor import make_fx

    def step(x: Tensor, w: Tensor, scale: Tensor) -> tuple[Tensor, ...]:
        out = eca_triton.eca(x, w, residual=x, activation="relu")
        ops = torch.ops.eca_triton
        out = out + ops.batch_norm_eca(x, w, None, scale)[0] + ops.gate_from_pool(scale[None], w).sum()
        return torch.autograd.grad(out.square().sum(), (x, w, scale))

    tensors = [torch.randn(size, requires_grad=True) for size in ((2, 8, 4, 5), (1, 1, 3), (8,))]
    kept, plain = (
        make_fx(step, decomposition_table=table)(*tensors) for table in ({}, eca_triton.decomposition_table())
    )
    assert {"eca_triton.eca_forward", "eca_triton.gate_from_pool_backward"} < set(own_calls(kept))
    assert own_calls(plain) == []
    for result, expected in zip(plain(*tensors), kept(*tensors), strict=True):
        torch.testing.assert_close(result, expected)


def test_onnx() -> None:
    """A module goes there as it is; a program with our ops in it must be taken apart before."""
    pytest.importorskip("onnxscript")
    module, x = Own(), torch.randn(2, 8, 5, 6)
    for program in (module, eca_triton.decompose(exported(module, x))):
        model = torch.onnx.export(program, (x,), dynamo=True, verbose=False).model
        assert "Sigmoid" in {node.op_type for node in model.graph}
