"""eca, eca_gate and adaptive_kernel_size: numbers, dtypes, layouts, compilers."""

import pytest
import torch
from eager_block import assert_as_good_as, eager_eca, eager_gate, to_double

from eca_triton.functional import BatchNormParameters, adaptive_kernel_size, eca, eca_gate

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.fixture(autouse=True)
def nothing_compiled():
    torch._dynamo.reset()


def everything(x):
    """Every option of `eca` away from its default."""
    channels = x.shape[1]
    mean, weight, bias = torch.randn(3, channels)
    return {
        "gate": "hard_sigmoid",
        "circular": True,
        "batch_norm": BatchNormParameters(mean, torch.rand(channels) + 0.5, weight, bias, 1e-3),
        "pre_activation": "silu",
        "gain": 0.5,
        "residual": torch.randn_like(x),
        "activation": "gelu",
    }


def as_eager(options):
    """The same options for the eager block."""
    options = dict(options)
    bn = options.pop("batch_norm", None)
    return options if bn is None else {**options, "bn": tuple(bn[:4]), "bn_eps": bn.eps}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("options", ["none", "every"])
def test_is_at_least_as_exact_as_eager_and_keeps_dtype_and_layout(options, layout, dtype):
    x = torch.randn(3, 19, 7, 5).to(dtype, memory_format=layout)
    weight, bias = torch.randn(1, 1, 5).to(dtype), torch.randn(1).to(dtype)
    options = everything(x) if options == "every" else {}
    gate_options = {k: v for k, v in options.items() if k not in ("gain", "residual", "activation")}
    for ours, eager, kept in ((eca, eager_eca, options), (eca_gate, eager_gate, gate_options)):
        got = ours(x, weight, bias, **kept)
        native = eager(x, weight, bias, **as_eager(kept))
        assert (got.dtype, got.shape, got.stride()) == (native.dtype, native.shape, native.stride())
        assert_as_good_as(got, native, eager(*to_double((x, weight, bias)), **to_double(as_eager(kept))))


@pytest.mark.parametrize("x_dtype", [torch.float32, torch.bfloat16], ids=str)
def test_under_autocast_keeps_x_dtype_and_computes_in_float32(x_dtype):
    x, weight = torch.randn(3, 19, 7, 5).to(x_dtype), torch.randn(1, 1, 5)
    with torch.autocast("cpu", torch.bfloat16):
        got, g, native = eca(x, weight), eca_gate(x, weight), eager_eca(x, weight)
    assert got.dtype == g.dtype == native.dtype == x_dtype
    assert_as_good_as(got, native, eager_eca(x.double(), weight.double()))
    if x_dtype == torch.float32:
        torch.testing.assert_close(got, eager_eca(x, weight))  # no bfloat16 on the way


@pytest.mark.parametrize(
    ("dynamic", "dtype"), [(False, torch.float32), (True, torch.bfloat16)], ids=["static", "dynamic"]
)
def test_compiles_to_native_operators_of_the_same_value(dynamic, dtype):
    x, weight = torch.randn(2, 19, 4, 4).to(dtype), torch.randn(1, 1, 3).to(dtype)
    options = everything(x)
    graphs = []

    def record(gm, _):
        graphs.append(gm)
        return gm

    compiled = torch.compile(
        lambda x: (eca(x, weight, **options), eca_gate(x, weight)),
        backend=record,
        fullgraph=True,
        dynamic=dynamic,
    )
    out, g = compiled(x)
    assert out.dtype == g.dtype == dtype
    native = eager_eca(x, weight, **as_eager(options))
    exact = eager_eca(*to_double((x, weight)), **to_double(as_eager(options)))
    assert_as_good_as(out, native, exact)
    targets = [node.target for gm in graphs for node in gm.graph.nodes]
    assert targets.count(torch.conv1d) == 2
    assert not any("eca_triton" in str(target) for target in targets)


def test_compiled_output_keeps_x_dtype_under_autocast_and_with_a_wider_residual():
    x, weight = torch.randn(2, 6, 4, 4), torch.randn(1, 1, 3)

    @torch.compile(backend="eager", fullgraph=True)
    def compiled(x, residual):
        with torch.autocast("cpu", torch.bfloat16):
            return eca(x, weight, residual=residual), eca_gate(x, weight)

    for dtype in (torch.float32, torch.bfloat16):
        out, g = compiled(x.to(dtype), torch.randn_like(x))
        assert out.dtype == g.dtype == dtype


def test_exports_as_one_operator_with_a_dynamic_batch():
    class Block(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.randn(1, 1, 3))

        def forward(self, x):
            return eca(x, self.weight)

    block, x = Block(), torch.randn(2, 6, 4, 4)
    program = torch.export.export(
        block, (x,), dynamic_shapes=({0: torch.export.Dim("n", min=1)},), strict=False
    )
    assert str(program.graph).count("torch.ops.eca_triton.eca.default") == 1
    for x in (torch.randn(1, 6, 4, 4), torch.randn(5, 6, 4, 4)):
        torch.testing.assert_close(program.module()(x), block(x))


@pytest.mark.parametrize("shape", [(0, 6, 4, 4), (2, 6, 0, 4), (2, 6, 0)], ids=str)
def test_empty_maps_are_as_eager(shape):
    x, weight = torch.randn(shape, requires_grad=True), torch.randn(1, 1, 3, requires_grad=True)
    got = torch.autograd.grad(eca(x, weight).sum(), (x, weight))
    wanted = torch.autograd.grad(eager_eca(x, weight).sum(), (x, weight))
    torch.testing.assert_close(got, wanted, equal_nan=True)
    torch.testing.assert_close(eca_gate(x, weight), eager_gate(x, weight), equal_nan=True)


def test_meta_tensors():
    x, weight = torch.empty(2, 6, 4, 4, device="meta"), torch.empty(1, 1, 3, device="meta")
    assert eca(x, weight).shape == (2, 6, 4, 4)
    assert eca_gate(x, weight).shape == (2, 6)


def test_adaptive_kernel_size_is_that_of_the_rule_with_any_constants():
    channels = (1, 4, 8, 64, 127, 128, 512, 2047, 2048, 32768)
    assert [adaptive_kernel_size(each) for each in channels] == [1, 1, 3, 3, 3, 5, 5, 5, 7, 9]
    assert adaptive_kernel_size(256, gamma=1, b=0) == 9
    assert adaptive_kernel_size(256, gamma=4) == 3
    with pytest.raises(ValueError, match="channels must be at least 1, got 0"):
        adaptive_kernel_size(0)
    with pytest.raises(ValueError, match="gamma must not be 0"):
        adaptive_kernel_size(64, gamma=0)
