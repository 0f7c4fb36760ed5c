"""Wrong calls fail naming operator, argument, rule and value; under fake tensors and compilers too."""

import re

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from eca_triton.functional import eca, eca_gate
from eca_triton.ops.schema import ECA, GATE, GATE_FROM_POOL, GATE_FROM_POOL_BACKWARD
from eca_triton.ops.schema_training import ECA_BACKWARD, ECA_FORWARD

X, W = (2, 6, 4, 4), (1, 1, 3)


def rand(*shape, **options):
    return torch.randn(shape, **options)


def vector(n=6):
    return torch.ones(n)


WRONG = {
    "integer x": (
        TypeError,
        "x must be float64, float32, float16 or bfloat16, got torch.int64",
        lambda: ((torch.ones(X, dtype=torch.int64), rand(*W)), {}),
    ),
    "complex x": (
        TypeError,
        "x must be float64, float32, float16 or bfloat16, got torch.complex64",
        lambda: ((rand(*X, dtype=torch.complex64), rand(*W)), {}),
    ),
    "integer weight": (
        TypeError,
        "weight must be float64, float32, float16 or bfloat16, got torch.int64",
        lambda: ((rand(*X), torch.ones(W, dtype=torch.int64)), {}),
    ),
    "integer out_dtype": (
        TypeError,
        "out_dtype must be float64, float32, float16 or bfloat16, got torch.int8",
        lambda: ((rand(*X), rand(*W)), {"out_dtype": torch.int8}),
    ),
    "no spatial dim": (
        ValueError,
        "x must be (N, C, *spatial) with at least 3 dims, got (2, 6)",
        lambda: ((rand(2, 6), rand(*W)), {}),
    ),
    "no channel": (
        ValueError,
        "x must have at least one channel, got (2, 0, 4, 4)",
        lambda: ((rand(2, 0, 4, 4), rand(*W)), {}),
    ),
    "even taps": (
        ValueError,
        "weight must have an odd number k of taps, shaped (1, 1, k) or (k,), got (1, 1, 4)",
        lambda: ((rand(*X), rand(1, 1, 4)), {}),
    ),
    "no taps": (
        ValueError,
        "weight must have an odd number k of taps, shaped (1, 1, k) or (k,), got (0,)",
        lambda: ((rand(*X), rand(0)), {}),
    ),
    "grouped weight": (
        ValueError,
        "weight must have an odd number k of taps, shaped (1, 1, k) or (k,), got (6, 1, 3)",
        lambda: ((rand(*X), rand(6, 1, 3)), {}),
    ),
    "matrix as weight": (
        ValueError,
        "shaped (1, 1, k) or (k,), got (1, 3)",
        lambda: ((rand(*X), rand(1, 3)), {}),
    ),
    "bias per channel": (
        ValueError,
        "bias must be (1,), got (6,)",
        lambda: ((rand(*X), rand(*W), vector()), {}),
    ),
    "device of weight": (
        ValueError,
        "weight must be on the device of x, got meta and cpu",
        lambda: ((rand(*X), rand(*W, device="meta")), {}),
    ),
    "gate": (
        ValueError,
        "gate must be one of sigmoid, hard_sigmoid, got 'tanh'",
        lambda: ((rand(*X), rand(*W)), {"gate": "tanh"}),
    ),
    "pre_activation": (
        ValueError,
        "pre_activation must be one of identity, relu, silu, got 'gelu'",
        lambda: ((rand(*X), rand(*W)), {"pre_activation": "gelu"}),
    ),
    "ring": (
        ValueError,
        "a weight of 15 taps needs at least 7 channels, got 6",
        lambda: ((rand(*X), rand(15)), {"circular": True}),
    ),
    "mean without var": (
        ValueError,
        "a batch norm must have bn_mean and bn_var, got bn_var=None",
        lambda: ((rand(*X), rand(*W)), {"bn_mean": vector()}),
    ),
    "weight without statistics": (
        ValueError,
        "a batch norm must have bn_mean and bn_var, got bn_mean=None",
        lambda: ((rand(*X), rand(*W)), {"bn_weight": vector()}),
    ),
    "batch norm of other channels": (
        ValueError,
        "bn_var must be (6,), got (5,)",
        lambda: ((rand(*X), rand(*W)), {"bn_mean": vector(), "bn_var": vector(5)}),
    ),
}
WRONG_TAILS = {
    "activation": (
        ValueError,
        "activation must be one of identity, relu, relu6, silu, gelu, hardswish, got 'mish'",
        lambda: ((rand(*X), rand(*W)), {"activation": "mish"}),
    ),
    "residual of another shape": (
        ValueError,
        "residual must have the shape of x (2, 6, 4, 4), got (2, 6, 1, 1)",
        lambda: ((rand(*X), rand(*W)), {"residual": rand(2, 6, 1, 1)}),
    ),
    "residual of other dims": (
        ValueError,
        "residual must have the shape of x (2, 6, 4, 4), got (6, 4, 4)",
        lambda: ((rand(*X), rand(*W)), {"residual": rand(6, 4, 4)}),
    ),
    "device of residual": (
        ValueError,
        "residual must be on the device of x, got meta and cpu",
        lambda: ((rand(*X), rand(*W)), {"residual": rand(*X, device="meta")}),
    ),
}


def expect(error, op, rule):
    return pytest.raises(error, match=re.escape(f"eca_triton::{op}: ") + ".*" + re.escape(rule))


@pytest.mark.parametrize("case", WRONG)
@pytest.mark.parametrize(("name", "op"), [("gate", GATE), ("eca", ECA)], ids=["gate", "eca"])
def test_wrong_sites(name, op, case):
    error, rule, arguments = WRONG[case]
    args, kwargs = arguments()
    with expect(error, name, rule):
        op(*args, **kwargs)


@pytest.mark.parametrize("case", WRONG_TAILS)
def test_wrong_tails(case):
    error, rule, arguments = WRONG_TAILS[case]
    args, kwargs = arguments()
    with expect(error, "eca", rule):
        ECA(*args, **kwargs)


@pytest.mark.parametrize("case", [c for c in WRONG | WRONG_TAILS if "device" not in c])
def test_wrong_calls_fail_under_fake_tensors(case):
    error, rule, arguments = (WRONG | WRONG_TAILS)[case]
    with FakeTensorMode():
        args, kwargs = arguments()
        with expect(error, "eca", rule):
            ECA(*args, **kwargs)


@pytest.mark.parametrize("case", ["even taps", "gate", "residual of another shape"])
def test_wrong_calls_fail_where_gradients_are_wanted(case):
    error, rule, arguments = (WRONG | WRONG_TAILS)[case]
    args, kwargs = arguments()
    args[0].requires_grad_()
    with expect(error, "eca", rule):
        ECA(*args, **kwargs)


def test_wrong_pooled_values_and_gradients():
    with expect(ValueError, "gate_from_pool", "pooled must be (N, C), got (2, 1, 6)"):
        GATE_FROM_POOL(rand(2, 1, 6), rand(*W))
    with expect(TypeError, "gate_from_pool", "pooled must be float64"):
        GATE_FROM_POOL(torch.ones(2, 6, dtype=torch.int32), rand(*W))
    with expect(
        ValueError, "gate_from_pool_backward", "grad must have the shape of pooled (2, 6), got (1, 6)"
    ):
        GATE_FROM_POOL_BACKWARD(rand(1, 6), rand(2, 6), rand(*W))


def backward(*mask, grad=X, pooled=(2, 6), **options):
    return ECA_BACKWARD(rand(*grad), rand(*X), rand(*W), *[None] * 6, rand(*pooled), *mask, **options)


def bits(*shape, dtype=torch.uint8):
    return torch.zeros(shape, dtype=dtype)


MASKED = {"activation": "relu", "mask_order": "contiguous"}
WRONG_STEPS = {
    "mask_order": (
        "mask_order must be one of none, contiguous, channels_last, got 'random'",
        lambda: backward(mask_order="random"),
    ),
    "mask_order of silu": (
        "activation with a mask_order must be one of relu, relu6, got 'silu'",
        lambda: backward(bits(2, 12), activation="silu", mask_order="contiguous"),
    ),
    "no mask": (
        "mask must be given where mask_order is not none, and only there, got mask_order='contiguous'",
        lambda: backward(**MASKED),
    ),
    "no mask_order": ("and only there, got mask_order='none'", lambda: backward(bits(2, 12))),
    "shape of mask": ("mask must be (2, 12), got (2, 96)", lambda: backward(bits(2, 96), **MASKED)),
    "dtype of mask": (
        "mask must be uint8, got torch.bool",
        lambda: backward(bits(2, 12, dtype=torch.bool), **MASKED),
    ),
    "shape of grad": (
        "grad must have the shape of x (2, 6, 4, 4), got (2, 6, 4)",
        lambda: backward(grad=(2, 6, 4)),
    ),
    "shape of pooled": ("pooled must be (2, 6), got (6, 2)", lambda: backward(pooled=(6, 2))),
    "residual of the identity": (
        "wants_residual needs an activation: without one that gradient is grad itself",
        lambda: backward(wants_residual=True),
    ),
    "no batch norm": ("wants_bn needs a batch norm, got bn_mean=None", lambda: backward(wants_bn=True)),
}


@pytest.mark.parametrize("case", WRONG_STEPS)
def test_wrong_backward_steps(case):
    rule, call = WRONG_STEPS[case]
    with expect((ValueError, TypeError), "eca_backward", rule):
        call()


def test_bits_come_in_whole_bytes():
    rule = "a mask_order needs images of a multiple of 8 elements, got (2, 3, 3, 3)"
    with expect(ValueError, "eca_forward", rule):
        ECA_FORWARD(rand(2, 3, 3, 3), rand(*W), **MASKED)


@pytest.mark.parametrize(("name", "function"), [("eca", eca), ("gate", eca_gate)], ids=["eca", "eca_gate"])
def test_public_functions_want_one_dtype_outside_autocast(name, function):
    rule = "x and weight must share their dtype outside autocast, got torch.float64 and torch.float32"
    with expect(TypeError, name, rule):
        function(rand(*X, dtype=torch.float64), rand(*W))
    with torch.autocast("cpu", torch.bfloat16):
        assert function(rand(*X, dtype=torch.bfloat16), rand(*W)).dtype == torch.bfloat16


COMPILED = ["even taps", "gate", "residual of another shape", "no spatial dim"]


@pytest.mark.parametrize("case", COMPILED)
def test_public_function_fails_the_same_way_when_compiled(case):
    torch._dynamo.reset()
    error, rule, arguments = (WRONG | WRONG_TAILS)[case]
    args, kwargs = arguments()
    with expect(error, "eca", rule):
        torch.compile(eca, backend="eager")(*args, **kwargs)


@pytest.mark.parametrize("case", COMPILED)
def test_public_function_fails_the_same_way_when_exported(case):
    class Block(torch.nn.Module):
        def forward(self, *args, **kwargs):
            return eca(*args, **kwargs)

    error, rule, arguments = (WRONG | WRONG_TAILS)[case]
    with expect(error, "eca", rule):
        torch.export.export(Block(), *arguments(), strict=False)
