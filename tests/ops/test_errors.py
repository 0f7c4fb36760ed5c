"""Wrong calls fail naming operator, argument, rule and value; under fake tensors and compilers too."""

import re
from functools import partial

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from eca_triton.functional import eca, eca_gate
from eca_triton.ops import schema
from eca_triton.ops.operators import name_of

X, W, POOLED, VECTOR = (2, 6, 4, 4), (1, 1, 3), (2, 6), (6,)
SITE = {"x": X, "weight": W}
RIGHT = {
    schema.GATE: SITE,
    schema.ECA: SITE,
    schema.GATE_FROM_POOL: {"pooled": POOLED, "weight": W},
    schema.GATE_FROM_POOL_BACKWARD: {"grad": POOLED, "pooled": POOLED, "weight": W},
    schema.RESCALED_PROJECTION: {"x": X, "projection": (4, 6, 1, 1), "factor": (2, 4), "summand": (2, 4)},
    schema.BATCH_NORM_ECA: SITE | {"bias": (1,), "bn_weight": VECTOR, "bn_bias": VECTOR, "residual": X},
    schema.ECA_FORWARD: SITE,
    schema.ECA_BACKWARD: SITE
    | dict.fromkeys(("bias", "bn_mean", "bn_var", "bn_weight", "bn_bias", "residual"))
    | {"grad": X, "pooled": POOLED},
}
"""Arguments of right calls: a shape stands for random numbers, a function for what it returns."""

FLOATS = "must be float64, float32, float16 or bfloat16, got torch."
TAPS = "weight must have an odd number k of taps, shaped (1, 1, k) or (k,), got "
BATCH_NORM = "a batch norm must have bn_mean and bn_var, got "
OF_A_SITE = {
    "integer x": ({"x": partial(torch.ones, X, dtype=torch.int64)}, f"x {FLOATS}int64"),
    "complex x": ({"x": partial(torch.ones, X, dtype=torch.complex64)}, f"x {FLOATS}complex64"),
    "integer weight": ({"weight": partial(torch.ones, W, dtype=torch.int64)}, f"weight {FLOATS}int64"),
    "integer out_dtype": ({"out_dtype": torch.int8}, f"out_dtype {FLOATS}int8"),
    "no spatial dim": ({"x": (2, 6)}, "x must be (N, C, *spatial) with at least 3 dims, got (2, 6)"),
    "no channel": ({"x": (2, 0, 4, 4)}, "x must have at least one channel, got (2, 0, 4, 4)"),
    "even taps": ({"weight": (1, 1, 4)}, f"{TAPS}(1, 1, 4)"),
    "no taps": ({"weight": (0,)}, f"{TAPS}(0,)"),
    "grouped weight": ({"weight": (6, 1, 3)}, f"{TAPS}(6, 1, 3)"),
    "matrix as weight": ({"weight": (1, 3)}, f"{TAPS}(1, 3)"),
    "bias per channel": ({"bias": VECTOR}, "bias must be (1,), got (6,)"),
    "device of weight": (
        {"weight": partial(torch.empty, W, device="meta")},
        "weight must be on the device of x, got meta and cpu",
    ),
    "gate": ({"gate": "tanh"}, "gate must be one of sigmoid, hard_sigmoid, got 'tanh'"),
    "pre_activation": (
        {"pre_activation": "gelu"},
        "pre_activation must be one of identity, relu, silu, got 'gelu'",
    ),
    "ring": ({"weight": (15,), "circular": True}, "a weight of 15 taps needs at least 7 channels, got 6"),
    "mean without var": ({"bn_mean": VECTOR}, f"{BATCH_NORM}bn_var=None"),
    "weight without statistics": ({"bn_weight": VECTOR}, f"{BATCH_NORM}bn_mean=None"),
    "batch norm of other channels": ({"bn_mean": VECTOR, "bn_var": (5,)}, "bn_var must be (6,), got (5,)"),
}
OF_A_TAIL = {
    "activation": (
        {"activation": "mish"},
        "activation must be one of identity, relu, relu6, silu, gelu, hardswish, got 'mish'",
    ),
    "residual of another shape": (
        {"residual": (2, 6, 1, 1)},
        "residual must have the shape of x (2, 6, 4, 4), got (2, 6, 1, 1)",
    ),
    "residual of other dims": (
        {"residual": (6, 4, 4)},
        "residual must have the shape of x (2, 6, 4, 4), got (6, 4, 4)",
    ),
    "device of residual": (
        {"residual": partial(torch.empty, X, device="meta")},
        "residual must be on the device of x, got meta and cpu",
    ),
}
OF_POOLED_VALUES = {
    "dims": ({"pooled": (2, 1, 6)}, "pooled must be (N, C), got (2, 1, 6)"),
    "integers": ({"pooled": partial(torch.ones, POOLED, dtype=torch.int32)}, f"pooled {FLOATS}int32"),
}
OF_A_PROJECTION = {
    "no spatial dim": ({"x": (2, 6)}, "x must be (N, I, *spatial)"),
    "larger kernel": ({"projection": (4, 6, 3, 3)}, "projection must be (C, I)"),
    "columns": ({"projection": (4, 5)}, "projection must have 6 columns, as x"),
    "factor": ({"factor": (2, 5)}, "factor must be (2, 4)"),
    "summand": ({"summand": (4,)}, "summand must be (2, 4)"),
}
TWELVE = {"x": (2, 12, 2, 2), "residual": None, "bn_weight": (12,), "bn_bias": (12,)}
OF_BATCH_NORM = {
    "no spatial dim": ({"x": (2, 6)}, "at least 3 dims"),
    "even taps": ({"weight": (1, 1, 4)}, "odd number k of taps"),
    "weight of other channels": ({"bn_weight": (7,)}, "bn_weight must be (6,)"),
    "residual of another shape": ({"residual": (2, 6, 1, 1)}, "residual must have the shape of x"),
    "activation": ({"activation": "silu"}, "activation must be one of identity, relu"),
    "bits without relu": ({"pack_mask": True}, "pack_mask needs relu and channels in eights"),
    "bits of twelve channels": (
        TWELVE | {"activation": "relu", "pack_mask": True},
        "got relu and 12 channels",
    ),
}
MASKED = {"activation": "relu", "mask_order": "contiguous"}
BITS = partial(torch.zeros, (2, 12), dtype=torch.uint8)
OF_A_FORWARD = {
    "no whole bytes": (
        MASKED | {"x": (2, 3, 3, 3)},
        "a mask_order needs images of a multiple of 8 elements, got (2, 3, 3, 3)",
    )
}
OF_A_BACKWARD = {
    "mask_order": (
        {"mask_order": "random"},
        "mask_order must be one of none, contiguous, channels_last, got 'random'",
    ),
    "mask_order of silu": (
        MASKED | {"mask": BITS, "activation": "silu"},
        "activation with a mask_order must be one of relu, relu6, got 'silu'",
    ),
    "no mask": (
        MASKED,
        "mask must be given where mask_order is not none, and only there, got mask_order='contiguous'",
    ),
    "no mask_order": ({"mask": BITS}, "and only there, got mask_order='none'"),
    "shape of mask": (
        MASKED | {"mask": partial(torch.zeros, (2, 96), dtype=torch.uint8)},
        "mask must be (2, 12), got (2, 96)",
    ),
    "dtype of mask": (
        MASKED | {"mask": partial(torch.zeros, (2, 12), dtype=torch.bool)},
        "mask must be uint8, got torch.bool",
    ),
    "shape of grad": ({"grad": (2, 6, 4)}, "grad must have the shape of x (2, 6, 4, 4), got (2, 6, 4)"),
    "shape of pooled": ({"pooled": (6, 2)}, "pooled must be (2, 6), got (6, 2)"),
    "residual of the identity": (
        {"wants_residual": True},
        "wants_residual needs an activation: without one that gradient is grad itself",
    ),
    "no batch norm": ({"wants_bn": True}, "wants_bn needs a batch norm, got bn_mean=None"),
}
OF_POOLED_GRADIENTS = {
    "shape of grad": ({"grad": (1, 6)}, "grad must have the shape of pooled (2, 6), got (1, 6)")
}
WRONG = {
    schema.GATE: OF_A_SITE,
    schema.ECA: OF_A_SITE | OF_A_TAIL,
    schema.GATE_FROM_POOL: OF_POOLED_VALUES,
    schema.GATE_FROM_POOL_BACKWARD: OF_POOLED_GRADIENTS,
    schema.RESCALED_PROJECTION: OF_A_PROJECTION,
    schema.BATCH_NORM_ECA: OF_BATCH_NORM,
    schema.ECA_FORWARD: OF_A_FORWARD,
    schema.ECA_BACKWARD: OF_A_BACKWARD,
}


def arguments(op, case):
    """Those of a right call, but for what is wrong."""
    given = RIGHT[op] | WRONG[op][case][0]
    return {
        name: torch.randn(value) if type(value) is tuple else value() if callable(value) else value
        for name, value in given.items()
    }


def refusal(op, case):
    """A wrong dtype is a TypeError."""
    rule = WRONG[op][case][1]
    error = TypeError if "got torch." in rule else ValueError
    return pytest.raises(error, match=f"eca_triton::{name_of(op)}: .*{re.escape(rule)}")


EVERY = [pytest.param(op, case, id=f"{name_of(op)}, {case}") for op, cases in WRONG.items() for case in cases]


@pytest.mark.parametrize(("op", "case"), EVERY)
def test_a_wrong_call_is_refused_by_name(op, case):
    with refusal(op, case):
        op(**arguments(op, case))


@pytest.mark.parametrize(("op", "case"), [each for each in EVERY if "device" not in each.id])
def test_a_wrong_call_is_refused_under_fake_tensors(op, case):
    with FakeTensorMode(), refusal(op, case):
        op(**arguments(op, case))


@pytest.mark.parametrize("case", ["even taps", "gate", "residual of another shape"])
def test_a_wrong_call_is_refused_where_gradients_are_wanted(case):
    wrong = arguments(schema.ECA, case)
    wrong["x"].requires_grad_()
    with refusal(schema.ECA, case):
        schema.ECA(**wrong)


@pytest.mark.parametrize(("name", "function"), [("eca", eca), ("gate", eca_gate)], ids=["eca", "eca_gate"])
def test_public_functions_want_one_dtype_outside_autocast(name, function):
    rule = "x and weight must share their dtype outside autocast, got torch.float64 and torch.float32"
    with pytest.raises(TypeError, match=f"eca_triton::{name}: {rule}"):
        function(torch.randn(X, dtype=torch.float64), torch.randn(W))
    with torch.autocast("cpu", torch.bfloat16):
        assert function(torch.randn(X, dtype=torch.bfloat16), torch.randn(W)).dtype == torch.bfloat16


@pytest.mark.parametrize("case", ["even taps", "gate", "residual of another shape", "no spatial dim"])
def test_a_compiled_and_an_exported_function_fail_the_same_way(case):
    class Block(torch.nn.Module):
        def forward(self, **arguments):
            return eca(**arguments)

    torch._dynamo.reset()
    with refusal(schema.ECA, case):
        torch.compile(eca, backend="eager")(**arguments(schema.ECA, case))
    with refusal(schema.ECA, case):
        torch.export.export(Block(), (), arguments(schema.ECA, case), strict=False)
