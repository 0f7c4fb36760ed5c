"""Eager calls made again: the same launches as the first time, and nothing but them."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
import triton
from recording_driver import Launch, plans, pooled, weight
from torch import Tensor

import eca_triton
from eca_triton.launch import replay as direct
from eca_triton.ops.schema import (
    ECA,
    ECA_BACKWARD,
    ECA_FORWARD,
    GATE,
    GATE_FROM_POOL,
    GATE_FROM_POOL_BACKWARD,
)

OPS = torch.ops.eca_triton


X, W, POOLED = torch.randn(2, 8, 4, 4), weight(), pooled()
LAST = torch.randn(2, 64, 7, 7).to(memory_format=torch.channels_last)
CROPPED = torch.randn(2, 8, 5, 5)[..., 1:]
RESIDUAL = torch.randn(2, 8, 4, 4)
SITE = {"bias": torch.randn(1), "bn_mean": torch.randn(8), "bn_var": torch.rand(8), "bn_bias": torch.randn(8)}
TAIL = {"residual": RESIDUAL, "gain": 0.2, "activation": "relu", "out_dtype": torch.float16}
MASKED = {"activation": "relu", "mask_order": "contiguous"}
EVERY = {"wants_residual": True, "wants_bn": True}
OF_THE_RESIDUAL = {"activation": "silu", "wants_x": False, "wants_residual": True, "wants_band": False}
STEP = (torch.randn(2, 8, 4, 4), X, W, None, *torch.rand(4, 8).unbind())
BITS = torch.zeros(2, 16, dtype=torch.uint8)
# Operator, tensors, options, number of launches.
CASES: dict[str, tuple[Callable[..., object], tuple[Tensor | None, ...], dict[str, object], int]] = {
    "tile": (ECA, (X, W), {}, 1),
    "tile with everything": (ECA, (X, W), SITE | TAIL, 1),
    "tile_channels_last": (ECA, (LAST, W), {}, 1),
    "two passes": (ECA, (CROPPED, W), {}, 2),
    "eca_forward": (ECA_FORWARD, (X, W), MASKED | {"residual": RESIDUAL}, 1),
    "eca_backward": (ECA_BACKWARD, (*STEP, None, POOLED, BITS), MASKED | EVERY, 4),
    "eca_backward of the residual": (ECA_BACKWARD, (*STEP, RESIDUAL, POOLED), OF_THE_RESIDUAL, 2),
    "gate": (GATE, (torch.randn(2, 8, 5, 5), W), SITE, 2),
    "gate_from_pool": (GATE_FROM_POOL, (POOLED, W), {"circular": True}, 1),
    "gate_from_pool_backward": (GATE_FROM_POOL_BACKWARD, (pooled(), POOLED, W), {"gate": "hard_sigmoid"}, 2),
}


@pytest.mark.parametrize("case", CASES)
def test_a_call_is_launched_again_as_the_first_time(launches: list[Launch], case: str) -> None:
    op, tensors, options, number = CASES[case]
    first = op(*tensors, **options)
    by_triton = launches.copy()
    launches.clear()
    with mock.patch.object(triton.runtime.jit.JITFunction, "run", side_effect=AssertionError):
        again = op(*tensors, **options)
    assert plans() == 1
    assert len(by_triton) == number

    given = [v.data_ptr() for v in (*tensors, *options.values()) if isinstance(v, Tensor)]
    for one, two in zip(by_triton, launches, strict=True):
        assert (one.function, one.grid, one.stream) == (two.function, two.grid, two.stream)
        for a, b in zip(one.arguments, two.arguments, strict=True):
            assert a == b or (a > 2**32 and a not in given)  # an output's or scratch's pointer
            assert a not in given or a == b
    for one, two in zip(_as_tuple(first), _as_tuple(again), strict=True):
        assert (one.shape, one.stride(), one.dtype) == (two.shape, two.stride(), two.dtype)
        assert any(two.data_ptr() in launch.arguments for launch in launches)


def _as_tuple(value: object) -> tuple[Tensor, ...]:
    return value if isinstance(value, tuple) else (value,)


def test_scratch_is_new_zeroed_and_shared_by_the_launches_of_a_call(launches: list[Launch]) -> None:
    x = torch.randn(1, 256, 56, 56, dtype=torch.float16).to(memory_format=torch.channels_last)
    from eca_triton.launch import devices
    from eca_triton.launch import lagged as launch_lagged
    from eca_triton.launch.call import EcaCall
    from eca_triton.reference.arguments import SiteArguments
    from eca_triton.tuning.families.lagged import lagged_config

    out, calls = torch.empty_like(x), direct.Calls()
    call = EcaCall(SiteArguments(x, weight()), out)
    config = lagged_config(call.problem(devices.device_of(x.device)))
    assert config is not None
    zeros = mock.Mock(side_effect=torch.zeros)
    with mock.patch.object(torch, "zeros", zeros), calls.first((x, call.a.weight), {}, (out,)):
        launch_lagged.forward(call, config)
    calls.again((x, call.a.weight), {})
    assert [launch.grid for launch in launches] == [launches[0].grid] * 2
    assert zeros.call_count == 2
    for _ in range(2):
        launches.clear()
        OPS.eca(CROPPED, W)
        pool, rescale = launches
        assert pool.arguments[1] == rescale.arguments[1]  # the partial sums


# The key.

GATE_VARIANTS: dict[str, dict[str, Any]] = {
    "same": {},
    "n": {"pooled": pooled(3, 8)},
    "c": {"pooled": pooled(2, 9)},
    "strides": {"pooled": pooled(8, 2).t()},
    "dtype": {"pooled": pooled(dtype=torch.float16)},
    "alignment": {"pooled": pooled(offset=1)},
    "weight dims": {"weight": weight(3)},
    "taps": {"weight": weight(1, 1, 5)},
    "weight dtype": {"weight": weight(dtype=torch.float16)},
    "weight stride": {"weight": weight(1, 1, 6)[..., ::2]},
    "weight alignment": {"weight": weight(4)[1:]},
    "bias": {"bias": torch.randn(1)},
    "bias dtype": {"bias": torch.randn(1).half()},
    "circular": {"circular": True},
    "gate": {"gate": "hard_sigmoid"},
    "out_dtype": {"out_dtype": torch.float16},
}


def numbers(launch: Launch) -> list[object]:
    """What a launch was handed, but for addresses."""
    return [each for each in launch.arguments if not (type(each) is int and each > 2**32)]


def test_everything_that_a_launch_depends_on_is_part_of_the_key(launches: list[Launch]) -> None:
    for number, (name, changes) in enumerate(GATE_VARIANTS.items(), 1):
        for _ in range(2):
            OPS.gate_from_pool(**({"pooled": POOLED, "weight": W} | changes))
            assert plans() == number, name
        *_, first, again = launches
        assert first.function == again.function, name
        assert numbers(first) == numbers(again), name


def test_a_kernel_compiled_for_aligned_pointers_gets_no_other(launches: list[Launch]) -> None:
    for offset in (0, 1, 4, 2, 0):
        OPS.gate_from_pool(pooled(offset=offset), weight())
    zero, one, four, two, again = (launch.function for launch in launches)
    assert zero == four == again
    assert one == two != zero


BN = {"bn_mean": torch.zeros(8), "bn_var": torch.ones(8)}
OPTIONS: list[dict[str, object]] = [
    {},
    {"gain": 0.0},
    {"gain": -0.0},
    {"activation": "relu"},
    {"pre_activation": "relu"},
    BN,
    BN | {"bn_eps": 1e-3},
    BN | {"bn_weight": torch.ones(8)},
    BN | {"bn_bias": torch.ones(8)},
    {"residual": torch.ones(2, 8, 4, 4)},
    {"residual": torch.ones(2, 4, 4, 8).permute(0, 3, 1, 2)},
]


def test_every_option_of_a_site_is_part_of_the_key(launches: list[Launch]) -> None:
    for _ in range(2):
        for options in OPTIONS:
            OPS.eca(X, W, **options)
    assert plans() == len(OPTIONS)


def test_multiply_adds_are_fused_whatever_tritons_default_is(
    launches: list[Launch], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton.knobs.language, "default_fp_fusion", False)
    before = set(direct._planned)
    ECA(X, W)
    (kernel,) = direct._planned - before
    assert len(launches) == 1
    assert kernel.metadata.enable_fp_fusion


def test_functions_make_the_calls_of_operators_again(launches: list[Launch]) -> None:
    bn = eca_triton.BatchNormParameters(BN["bn_mean"], BN["bn_var"], eps=1e-3)
    tail = {"residual": RESIDUAL, "circular": True, "gain": 2.0, "activation": "relu"}
    OPS.eca(X, W)
    OPS.eca(X, W, **BN, bn_eps=1e-3, **tail)
    OPS.gate(X, W, gate="hard_sigmoid")
    made: list[Tensor | None] = []
    again = direct.Calls.again

    def noted(calls: direct.Calls, *call: object) -> Tensor | None:
        made.append(again(calls, *call))
        return made[-1]

    with mock.patch.object(direct.Calls, "again", noted):
        eca_triton.eca(X, W)
        eca_triton.eca(X, W, batch_norm=bn, **tail)
        eca_triton.eca_gate(X, W, gate="hard_sigmoid")
    assert len(made) == 3
    assert all(out is not None for out in made)  # else the operator would have been asked


def test_wrong_arguments_are_found_however_often_right_ones_came_before(launches: list[Launch]) -> None:
    for _ in range(2):
        OPS.eca(X, W)
    with pytest.raises(ValueError, match="odd number"):
        OPS.eca(X, weight(1, 1, 2))
    with pytest.raises(ValueError, match="gate must be one of"):
        OPS.eca(X, W, gate="nonsense")
    with pytest.raises(TypeError, match="share their dtype"):
        eca_triton.eca(X.half(), W)


def test_the_memory_of_calls_is_bounded(launches: list[Launch]) -> None:
    with mock.patch.object(direct, "MAX_PLANS", 3):
        for n in range(1, 9):
            OPS.gate_from_pool(pooled(n, 8), weight())
            assert plans() <= 3
    assert len(launches) == 8


def test_no_tensor_of_a_call_is_kept(launches: list[Launch]) -> None:
    tensors = [torch.randn(2, 8, 5, 5)[..., 1:], weight(), torch.randn(1)]
    tensors.append(OPS.eca(*tensors))
    assert plans() == 1
    kept = [weakref.ref(tensor) for tensor in tensors]
    tensors.clear()
    gc.collect()
    assert not any(ref() is not None for ref in kept)
