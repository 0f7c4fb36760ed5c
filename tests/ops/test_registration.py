"""The operators keep the promises that torch.compile and its tools rely on."""

import itertools
import subprocess
import sys
from unittest import mock

import pytest
import torch
from batch_norm_call import OPTIONS as BATCH_NORM_OPTIONS
from batch_norm_call import arguments
from eager_block import eager_eca
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils.flop_counter import FlopCounterMode, flop_registry
from training_site import site

from eca_triton.ops import outputs, schema
from eca_triton.ops.flops import register
from eca_triton.ops.operators import OPERATORS, name_of
from eca_triton.ops.schema import BATCH_NORM_ECA
from eca_triton.reference.arguments import BatchNormArguments

TRAINING = ["eca_forward", "eca_backward"]
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
def test_tags_leave_the_layout_to_inductor_and_no_schema_has_an_integer(name):
    tags, schema = overload(name).tags, overload(name)._schema
    assert not any(str(argument.type) in ("int", "SymInt") for argument in schema.arguments)
    assert torch.Tag.flexible_layout in tags
    assert torch.Tag.pt2_compliant_tag in tags
    assert torch.Tag.needs_exact_strides not in tags


ARGUMENTS = {op: row.arguments for op, row in OPERATORS.items()} | {BATCH_NORM_ECA: BatchNormArguments}
ABSENT = {
    schema.GATE: {"residual", "gain", "activation", "mask_order"},
    schema.ECA: {"mask_order"},
    schema.ECA_FORWARD: {"pre_activation"},
}
"""Fields of a record that several operators share, and one of them has not."""


def test_every_operator_has_a_row():
    registered = {
        name.partition("::")[2] for name in torch._C._dispatch_get_all_op_names() if "eca_triton" in name
    }
    assert registered == {name_of(op) for op in ARGUMENTS}


@pytest.mark.parametrize("op", ARGUMENTS, ids=name_of)
def test_parsed_arguments_have_the_names_order_and_defaults_of_the_schema(op):
    arguments, declared, absent = ARGUMENTS[op], op._schema.arguments, ABSENT.get(op, set())
    assert [a.name for a in declared] == [field for field in arguments._fields if field not in absent]
    defaults = {a.name: a.default_value for a in declared if a.has_default_value()}
    assert defaults == {field: v for field, v in arguments._field_defaults.items() if field not in absent}


def calls(x, requires_grad):
    """Arguments for each operator, of a map with six channels."""

    def draw(*shape):
        return torch.randn(shape, requires_grad=requires_grad)

    weight, bias, pooled = draw(1, 1, 3), draw(1), draw(2, 6)
    site = (x, weight, bias, *vectors())
    projected = (pooled, draw(6, 6, 1, 1), weight, bias, None, *vectors())
    return {
        "gate": (site, {"pre_activation": "silu", "circular": True}),
        "eca": ((*site, torch.randn_like(x)), {"gain": 2.0, "activation": "relu"}),
        "rescaled_projection": ((x, draw(4, 6, 1, 1), draw(2, 4), draw(2, 4)), {}),
        "gate_from_projection": (projected, {"circular": True}),
        "affine_from_projection": (projected, {"out_dtype": torch.float64}),
        "gate_from_pool": ((pooled, weight, bias), {"gate": "hard_sigmoid"}),
        "gate_from_pool_backward": ((torch.randn(2, 6), pooled, weight, bias), {"circular": True}),
    }


OF_A_MAP = ("gate", "eca", "rescaled_projection")


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        *itertools.product(OF_A_MAP, ("contiguous", "channels-last", "permuted", "expanded")),
        *((name, "contiguous") for name in NAMES if name not in OF_A_MAP),
    ],
)
def test_opcheck(name, layout):
    """Without gradients where the layout is the usual one: with them it asks for the same, and for more."""
    for requires_grad in {True, layout != "contiguous"}:
        x = LAYOUTS[layout]().requires_grad_(requires_grad)
        torch.library.opcheck(overload(name), *calls(x, requires_grad)[name])


@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_opcheck_of_a_training_step(activation):
    statistics, tensors = site((2, 8, 3, 3), memory_format=torch.channels_last, k=3)
    x, weight, bias, bn_weight, bn_bias, residual = (t.requires_grad_() for t in tensors.values())
    args = (x, weight, bias, *statistics, bn_weight, bn_bias, residual)
    order = outputs.mask_order_for(x, residual, activation)
    options = {"activation": activation, "mask_order": order, "gain": 0.5}
    with torch.no_grad():
        _, pooled, mask = schema.ECA_FORWARD(*args, **options)
    torch.library.opcheck(schema.ECA_FORWARD, args, options)
    saved = (pooled, None if order == "none" else mask)
    wants = {"wants_residual": True, "wants_bn": True}
    grad = torch.randn_like(x, requires_grad=True)
    torch.library.opcheck(schema.ECA_BACKWARD, (grad, *args, *saved), options | wants)


@pytest.mark.parametrize("options", BATCH_NORM_OPTIONS.values(), ids=BATCH_NORM_OPTIONS)
def test_opcheck_with_batch_norm(options):
    torch.library.opcheck(BATCH_NORM_ECA, tuple(arguments(torch.float32).values()), options)


@pytest.mark.parametrize("dtype", [None, torch.float16], ids=["x's dtype", "out_dtype"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_fakes_know_strides_and_dtypes(layout, dtype):
    x, weight = LAYOUTS[layout](), torch.randn(1, 1, 3)
    grad = torch.randn(x.shape, dtype=torch.float64)
    order = outputs.mask_order_for(x, None, "relu")

    def every(x, weight, grad):
        options = {"activation": "relu", "mask_order": order}
        gate = schema.GATE(x, weight, out_dtype=dtype)
        out, pooled, mask = schema.ECA_FORWARD(x, weight, out_dtype=dtype, **options)
        site = (grad, x, weight, *[None] * 6, pooled, None if order == "none" else mask)
        gradients = schema.ECA_BACKWARD(*site, wants_residual=True, **options)
        return gate, schema.ECA(x, weight, out_dtype=dtype), out, pooled, mask, *gradients

    with FakeTensorMode(shape_env=ShapeEnv()) as mode:
        fakes = every(*map(mode.from_tensor, (x, weight, grad)))
    for fake, real in zip(fakes, every(x, weight, grad), strict=True):
        assert (fake.shape, fake.stride(), fake.dtype) == (real.shape, real.stride(), real.dtype)
    gate, rescaled, out, pooled, mask, d_x, d_residual, d_weight, d_bias, *d_batch_norm = fakes
    assert gate.is_contiguous()
    for each in (rescaled, out, d_x, d_residual):
        assert each.stride() == torch.empty_like(x).stride()
    assert gate.dtype == rescaled.dtype == out.dtype == (dtype or torch.float32)
    assert (d_x.dtype, d_residual.dtype) == (torch.float32, torch.float64)
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


def flops(function, *inputs):
    """Of a call and its backward."""
    with FlopCounterMode(display=False) as mode:
        function(*inputs).sum().backward()
    return mode.get_total_flops()


def test_flops_are_those_of_the_eager_convolution():
    x, weight = torch.randn(2, 6, 4, 4, requires_grad=True), torch.randn(1, 1, 3, requires_grad=True)
    forward, packets = 2 * 2 * 6 * 3, [op.overloadpacket for op in OPERATORS]
    with mock.patch.dict(flop_registry):
        for packet in packets:
            del flop_registry[packet]
        register({op: row.flops for op, row in OPERATORS.items()})
        for block in (schema.ECA, schema.GATE, eager_eca):
            assert flops(block, x, weight) == 3 * forward
        with torch.no_grad(), FlopCounterMode(display=False) as mode:
            schema.ECA(x, weight)
            schema.GATE(x, weight)
            schema.GATE_FROM_POOL(x[..., 0, 0], weight)
        assert mode.get_total_flops() == 3 * forward


def test_a_flop_counter_that_is_imported_later_knows_the_operators():
    """In a process of its own, since the order of imports is at stake. The operators import no Triton."""
    script = """
import sys
import torch
from eca_triton.ops.schema import ECA
assert "triton" not in sys.modules
from torch.utils.flop_counter import FlopCounterMode
with FlopCounterMode(display=False) as mode:
    ECA(torch.randn(2, 6, 4, 4), torch.randn(1, 1, 3))
assert mode.get_total_flops() == 2 * 2 * 6 * 3
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
