"""The operators keep the promises that torch.compile and its tools rely on."""

import subprocess
import sys

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from eca_triton.ops import schema, schema_training
from eca_triton.ops.operators import OPERATORS, name_of
from eca_triton.ops.schema_batch_norm import BATCH_NORM_ECA, BatchNormArguments

TRAINING = ["eca_forward", "eca_backward"]  # test_training.py has the rest
NAMES = [name_of(op) for op in OPERATORS if name_of(op) not in TRAINING]
LAYOUTS = {
    "contiguous": lambda: torch.randn(2, 6, 5, 3),
    "channels-last": lambda: torch.randn(2, 6, 5, 3).to(memory_format=torch.channels_last),
    "permuted": lambda: torch.randn(5, 2, 3, 6).permute(1, 3, 0, 2),
    "expanded": lambda: torch.randn(2, 6, 1, 1).expand(2, 6, 5, 3),
    "sliced": lambda: torch.randn(2, 9, 5, 6)[:, 1:7, :, ::2],
    "one dim": lambda: torch.randn(2, 6, 7),
    "three dims": lambda: torch.randn(2, 6, 2, 3, 2).to(memory_format=torch.channels_last_3d),
}


def overload(name):
    return getattr(torch.ops.eca_triton, name).default


def vectors(channels=6):
    return torch.randn(channels), torch.rand(channels), torch.randn(channels), torch.randn(channels)


@pytest.mark.parametrize("name", NAMES + TRAINING)
def test_tags_leave_the_layout_to_inductor(name):
    tags = overload(name).tags
    assert torch.Tag.flexible_layout in tags
    assert torch.Tag.pt2_compliant_tag in tags
    assert torch.Tag.needs_exact_strides not in tags


@pytest.mark.parametrize("name", NAMES + TRAINING)
def test_no_schema_has_an_integer(name):
    assert not any(str(argument.type) in ("int", "SymInt") for argument in overload(name)._schema.arguments)


ARGUMENTS = {op: row.arguments for op, row in OPERATORS.items()} | {BATCH_NORM_ECA: BatchNormArguments}


def test_every_operator_has_a_row():
    registered = {
        name.partition("::")[2] for name in torch._C._dispatch_get_all_op_names() if "eca_triton" in name
    }
    assert registered == {name_of(op) for op in ARGUMENTS}


@pytest.mark.parametrize("op", ARGUMENTS, ids=name_of)
def test_parsed_arguments_have_the_names_order_and_defaults_of_the_schema(op):
    arguments, declared = ARGUMENTS[op], op._schema.arguments
    absent = {"residual", "gain", "activation"} if op is schema.GATE else set()
    assert [a.name for a in declared] == [field for field in arguments._fields if field not in absent]
    defaults = {a.name: a.default_value for a in declared if a.has_default_value()}
    assert defaults == {field: v for field, v in arguments._field_defaults.items() if field not in absent}


@pytest.mark.parametrize("requires_grad", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("layout", ["contiguous", "channels-last", "permuted", "expanded"])
@pytest.mark.parametrize("name", NAMES)
def test_opcheck(name, layout, requires_grad):
    x = LAYOUTS[layout]().requires_grad_(requires_grad)
    weight, bias = (torch.randn(s, requires_grad=requires_grad) for s in ((1, 1, 3), (1,)))
    pooled = x.detach().mean((2, 3)).requires_grad_(requires_grad)
    site = (x, weight, bias, *vectors())
    projected = (pooled, torch.randn(6, 6, 1, 1, requires_grad=requires_grad), weight, bias, None, *vectors())
    matrix, terms = torch.randn(4, 6, 1, 1, requires_grad=requires_grad), torch.randn(2, 2, 4)
    arguments = {
        "rescaled_projection": ((x, matrix, *terms.requires_grad_(requires_grad)), {}),
        "gate_from_projection": (projected, {"circular": True}),
        "affine_from_projection": (projected, {"out_dtype": torch.float64}),
        "gate": (site, {"pre_activation": "silu", "circular": True}),
        "eca": ((*site, torch.randn_like(x)), {"gain": 2.0, "activation": "relu"}),
        "gate_from_pool": ((pooled, weight, bias), {"gate": "hard_sigmoid"}),
        "gate_from_pool_backward": ((torch.randn(2, 6), pooled, weight, bias), {"circular": True}),
    }
    torch.library.opcheck(overload(name), *arguments[name])


@pytest.mark.parametrize("dtype", [None, torch.float16], ids=["x's dtype", "out_dtype"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_fakes_know_strides_and_dtypes(layout, dtype):
    x, weight = LAYOUTS[layout](), torch.randn(1, 1, 3)
    with FakeTensorMode(shape_env=ShapeEnv()) as mode:
        fake_x, fake_weight = mode.from_tensor(x), mode.from_tensor(weight)
        fakes = [op(fake_x, fake_weight, out_dtype=dtype) for op in (schema.ECA, schema.GATE)]
    reals = [op(x, weight, out_dtype=dtype) for op in (schema.ECA, schema.GATE)]
    for fake, real in zip(fakes, reals, strict=True):
        assert (fake.shape, fake.stride(), fake.dtype) == (real.shape, real.stride(), real.dtype)
    assert reals[0].stride() == torch.empty_like(x).stride()
    assert reals[1].is_contiguous()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_fakes_of_a_training_step_know_strides_and_dtypes(layout):
    x, weight = LAYOUTS[layout](), torch.randn(1, 1, 3)
    grad = torch.randn(x.shape, dtype=torch.float64)
    order = schema_training.mask_order_for(x, None, "relu")

    def step(x, weight, grad):
        options = {"activation": "relu", "mask_order": order}
        out, pooled, mask = schema_training.ECA_FORWARD(x, weight, out_dtype=torch.float16, **options)
        site = (grad, x, weight, *[None] * 6, pooled, None if order == "none" else mask)
        return out, pooled, mask, *schema_training.ECA_BACKWARD(*site, wants_residual=True, **options)

    with FakeTensorMode(shape_env=ShapeEnv()) as mode:
        fakes = step(*map(mode.from_tensor, (x, weight, grad)))
    for fake, real in zip(fakes, step(x, weight, grad), strict=True):
        assert (fake.shape, fake.stride(), fake.dtype) == (real.shape, real.stride(), real.dtype)
    out, pooled, mask, d_x, d_residual, d_weight, d_bias, *d_batch_norm = fakes
    assert out.stride() == d_x.stride() == d_residual.stride() == torch.empty_like(x).stride()
    assert (out.dtype, d_x.dtype, d_residual.dtype) == (torch.float16, torch.float32, torch.float64)
    assert (pooled.dtype, pooled.shape, d_weight.shape) == (torch.float32, (2, 6), (1, 1, 3))
    assert all(absent.shape == (0,) for absent in (d_bias, *d_batch_norm))
    assert mask.shape == ((0,) if order == "none" else (2, x[0].numel() // 8))


def test_outputs_of_backward_have_the_dtypes_of_what_they_are_gradients_of():
    pooled, weight = torch.randn(2, 6), torch.randn(3, dtype=torch.bfloat16)
    grad = torch.randn(2, 6, dtype=torch.float16)
    d_pooled, d_weight, d_bias = schema.GATE_FROM_POOL_BACKWARD(grad, pooled, weight)
    assert (d_pooled.dtype, d_pooled.shape) == (torch.float32, (2, 6))
    assert (d_weight.dtype, d_weight.shape) == (torch.bfloat16, (3,))
    assert (d_bias.dtype, d_bias.shape) == (torch.bfloat16, (1,))


@pytest.mark.parametrize("name", ["gate", "eca"])
def test_new_sizes_recompile_once_at_most(name):
    weight, op = torch.randn(1, 1, 3), overload(name)
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounter()
    compiled = torch.compile(lambda x: op(x, weight) + 1, backend=counter, fullgraph=True)
    for n, hw in ((2, 4), (3, 5), (5, 6), (7, 9)):
        x = torch.randn(n, 8, hw, hw)
        torch.testing.assert_close(compiled(x), op(x, weight) + 1)
    assert counter.frame_count <= 2


def test_inputs_are_never_changed():
    x, residual, weight, bias = (torch.randn(s) for s in ((2, 6, 3, 3), (2, 6, 3, 3), (1, 1, 3), (1,)))
    inputs = (x, weight, bias, *vectors(), residual)
    before = [t.clone() for t in inputs]
    schema.ECA(*inputs, pre_activation="relu", activation="relu")
    assert all(torch.equal(a, b) for a, b in zip(inputs, before, strict=True))


@pytest.mark.parametrize("order", ["flop counter first", "operators first"])
def test_flops_are_those_of_the_eager_convolution(order):
    """In a process of its own, since the order of imports is at stake. The operators import no Triton."""
    imports = [
        "from torch.utils.flop_counter import FlopCounterMode",
        "import eca_triton.ops; from eca_triton.ops.schema import *",
    ]
    if order == "operators first":
        imports = [imports[1], "import sys; assert 'triton' not in sys.modules", imports[0]]
    script = """
import torch
import torch.nn.functional as F
def flops(f, *inputs):
    with FlopCounterMode(display=False) as mode:
        f(*inputs).sum().backward()
    return mode.get_total_flops()
def eager(x, w):
    return x * torch.sigmoid(F.conv1d(x.mean((2, 3))[:, None], w, padding=1))[:, 0, :, None, None]
x, w = torch.randn(2, 6, 4, 4, requires_grad=True), torch.randn(1, 1, 3, requires_grad=True)
assert flops(ECA, x, w) == flops(GATE, x, w) == flops(eager, x, w) == 3 * 2 * 2 * 6 * 3
with torch.no_grad(), FlopCounterMode(display=False) as mode:
    ECA(x, w), GATE(x, w), GATE_FROM_POOL(x[..., 0, 0], w)
assert mode.get_total_flops() == 3 * 2 * 2 * 6 * 3
"""
    done = subprocess.run([sys.executable, "-c", "\n".join(imports) + script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
