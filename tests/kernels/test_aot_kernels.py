"""Every kernel, compiled ahead of time for six GPUs: no spills, and 128-bit accesses on the streams."""

from __future__ import annotations

import os

import pytest
import torch
from aot import DEVICES, TARGETS, Launch, captured, compiled, compiled_within

from eca_triton.launch import forward as launch_forward
from eca_triton.launch import gates as launch_gates
from eca_triton.launch import projection as launch_projection
from eca_triton.launch import training as launch_training
from eca_triton.launch import two_pass as launch_two_pass
from eca_triton.launch.call import BackwardCall, Call, GateCall, ProductCall
from eca_triton.tuning.families.product import takes

pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1",
    reason="the interpreter has no compiler: unset TRITON_INTERPRET",
)

# 4 programs of 128 threads per SM, or as much of an RDNA 3 SIMD's: enough bytes in flight.
REGISTERS = {target: 192 if target == "gfx1100" else 128 for target in TARGETS}

SITES = [
    pytest.param((128, 256, 56, 56), 5, torch.bfloat16, id="256x56x56-bf16"),
    pytest.param((128, 2048, 7, 7), 7, torch.bfloat16, id="2048x7x7-bf16"),
]
MORE_SITES = [
    pytest.param((128, 1024, 14, 14), 5, torch.float16, id="1024x14x14-fp16"),
    pytest.param((128, 24, 40, 6), 3, torch.bfloat16, id="24x40x6-bf16"),
    pytest.param((128, 256, 56, 56), 9, torch.float32, id="256x56x56-fp32"),
    pytest.param((128, 512, 9, 9), 5, torch.float32, id="512x9x9-fp32"),
    pytest.param((1, 256, 56, 56), 5, torch.bfloat16, id="batch-1"),
]
ON_ALL_TARGETS = [(*site.values, target) for site in SITES for target in TARGETS]
ON_ONE_TARGET = [(*site.values, "sm_90") for site in MORE_SITES]
IDS = [f"{site.id}-{target}" for site in SITES for target in TARGETS] + [site.id for site in MORE_SITES]

on_every_site = pytest.mark.parametrize(
    ("shape", "k", "dtype", "target"), ON_ALL_TARGETS + ON_ONE_TARGET, ids=IDS
)
in_both_layouts = pytest.mark.parametrize(
    "memory_format", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"]
)


def meta(*shape: int, dtype: torch.dtype = torch.float32, **options: object) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta", **options)


def batch_norm(channels: int) -> tuple[torch.Tensor, ...]:
    return tuple(meta(channels) for _ in range(4))


def vectors_per_thread(item: Launch, itemsize: int) -> int:
    """128-bit accesses that one thread needs for its share of the tile."""
    threads = item.num_warps * TARGETS[item.target].warp_size
    return item.arguments["BLOCK_C"] * item.arguments["BLOCK_HW"] * itemsize // (16 * threads)


@on_every_site
@in_both_layouts
def test_pooling_reads_the_map_in_vectors_only(
    shape: tuple[int, ...], k: int, dtype: torch.dtype, target: str, memory_format: torch.memory_format
) -> None:
    x = meta(*shape, dtype=dtype, memory_format=memory_format)
    out = meta(*shape[:2], dtype=dtype)
    bn = batch_norm(shape[1])
    call = GateCall(x, meta(1, 1, k), None, bn, 1e-5, "identity", False, "sigmoid", out)
    pool, gate = captured(target, launch_gates.gate, call)
    code = compiled(pool)
    assert set(code.loads) == {128}
    assert code.loads[128] >= vectors_per_thread(pool, x.element_size())
    assert code.spilled_bytes == 0
    assert code.registers <= REGISTERS[target]

    code = compiled(gate)
    assert code.spilled_bytes == 0
    assert code.registers <= 64


@on_every_site
@in_both_layouts
def test_rescaling_streams_vectors(
    shape: tuple[int, ...], k: int, dtype: torch.dtype, target: str, memory_format: torch.memory_format
) -> None:
    x, residual, out = (meta(*shape, dtype=dtype, memory_format=memory_format) for _ in range(3))
    _, rescale = captured(
        target,
        launch_forward.pool_and_rescale,
        Call(
            x, meta(1, 1, k), None, batch_norm(shape[1]), 1e-5,
            "identity", False, "sigmoid", 1.0, residual, "relu", out,
        ),
    )  # fmt: skip
    code = compiled(rescale)
    assert code.spilled_bytes == 0
    assert code.registers <= REGISTERS[target]
    vector = 16 // x.element_size()
    extent = shape[1] if memory_format == torch.channels_last else shape[2] * shape[3]
    if extent % vector == 0:
        needed = vectors_per_thread(rescale, x.element_size())
        assert code.loads[128] >= 2 * needed, "x and residual"
        assert code.stores == {128: needed}


@pytest.mark.parametrize("activation", ["relu", "silu"])
@in_both_layouts
def test_the_passes_of_a_training_step_stream_vectors(
    memory_format: torch.memory_format, activation: str
) -> None:
    shape, bn = (128, 256, 56, 56), batch_norm(256)

    def a_map() -> torch.Tensor:
        return meta(*shape, dtype=torch.bfloat16, memory_format=memory_format)

    pooled = meta(128, 256)
    mask = meta(128, 256 * 56 * 56 // 8, dtype=torch.uint8) if activation == "relu" else None
    forward = Call(
        a_map(), meta(1, 1, 5), None, bn, 1e-5, "identity", False, "sigmoid", 1.0, a_map(), activation,
        a_map(), pooled, mask,
    )  # fmt: skip
    backward = BackwardCall(
        a_map(), a_map(), meta(1, 1, 5), None, bn, 1e-5, False, "sigmoid", 1.0,
        None if mask is not None else a_map(), activation, pooled, mask,
        a_map(), a_map(), pooled, pooled, pooled,
    )  # fmt: skip
    launches = captured("sm_90", launch_two_pass.forward, forward)
    launches += captured("sm_90", launch_two_pass.backward, backward)
    launches += captured(
        "sm_90", launch_training.parameter_gradients, backward, meta(1, 1, 5), None, meta(256), meta(256)
    )
    for item in launches:
        code = compiled_within(REGISTERS["sm_90"], item)
        if item.kernel.__name__ in ("affine_kernel", "moments_kernel", "affine_backward_kernel"):
            assert code.loads[128] >= 2, "of 16 elements of every map"
            assert code.stores[128] == 2
            assert set(code.loads) <= {128, 32, 16}, "a map, coefficients, bits"


@pytest.mark.parametrize("target", TARGETS)
@in_both_layouts
def test_an_activation_before_pooling_keeps_the_vectors(
    target: str, memory_format: torch.memory_format
) -> None:
    for size in (56, 7):
        x = meta(128, 256, size, size, dtype=torch.bfloat16, memory_format=memory_format)
        bn, out = batch_norm(256), meta(128, 256)
        call = GateCall(x, meta(1, 1, 5), None, bn, 1e-5, "silu", False, "sigmoid", out)
        pool, _ = captured(target, launch_gates.gate, call)
        code = compiled(pool)
        assert code.spilled_bytes == 0
        assert code.loads[128] >= vectors_per_thread(pool, x.element_size())
        assert 16 not in code.loads, "no element of the map alone"


@pytest.mark.parametrize("target", TARGETS)
def test_gates_of_pooled_values_and_their_backward(target: str) -> None:
    pooled, weight, bias = meta(128, 2048, dtype=torch.bfloat16), meta(1, 1, 7), meta(1)
    launches = captured(target, launch_gates.gate_from_pool, pooled, weight, bias, True, "sigmoid", pooled)
    launches += captured(
        target, launch_gates.gate_from_pool_backward,
        pooled, pooled, weight, bias, True, "sigmoid", pooled, weight, bias,
    )  # fmt: skip
    assert len(launches) == 3
    for item in launches:
        assert compiled_within(REGISTERS[target], item).registers <= REGISTERS[target]


def test_maps_with_gaps_and_many_taps_do_not_spill() -> None:
    x = meta(8, 64, 34, 34, dtype=torch.bfloat16)[..., 1:-1, 1:-1]
    out = meta(8, 64, 32, 32, dtype=torch.bfloat16)
    for item in captured(
        "sm_90",
        launch_forward.eca,
        Call(
            x, meta(1, 1, 31), meta(1), batch_norm(64), 1e-5,
            "silu", True, "hard_sigmoid", 2.0, out, "gelu", out,
        ),
    ):  # fmt: skip
        assert compiled(item).spilled_bytes == 0


@pytest.mark.parametrize("batch", [1, 70_000])
def test_grids_have_one_axis(batch: int) -> None:
    """The second and third axis of a grid end at 65,535."""
    x = meta(batch, 3, 5, 5)
    for item in captured(
        "sm_90",
        launch_forward.pool_and_rescale,
        Call(x, meta(1, 1, 3), None, None, 0.0, "identity", False, "sigmoid", 1.0, None, "relu", x),
    ):
        assert len(item.grid) == 1
        assert item.grid[0] >= batch


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
@pytest.mark.parametrize("channels", [256, 2048])
def test_a_projection_takes_no_more_than_its_tile(channels: int, dtype: torch.dtype, target: str) -> None:
    n = 128
    out = meta(n, channels)
    (gates,) = captured(
        target, launch_projection.gates,
        meta(n, channels // 4), meta(channels, channels // 4, 1, 1, dtype=dtype), meta(1, 1, 5, dtype=dtype),
        None, None, batch_norm(channels), 1e-5, False, "sigmoid", out, meta(n, channels),
    )  # fmt: skip
    code = compiled_within(REGISTERS[target], gates)
    assert code.spilled_bytes == 0 or (channels, dtype) == (2048, torch.float32)
    assert code.shared_bytes <= 48 * 1024


PRODUCTS = [
    (target, dtype)
    for target in TARGETS
    for dtype in (torch.float16, torch.bfloat16, torch.float32)
    if takes(dtype.itemsize, DEVICES[target])
]


def test_a_product_is_for_gpus_whose_matrix_units_triton_uses() -> None:
    assert {target for target, _ in PRODUCTS} == TARGETS.keys() - {"sm_75", "gfx1100"}
    assert {dtype for _, dtype in PRODUCTS} == {torch.float16, torch.bfloat16}


@pytest.mark.parametrize(("target", "dtype"), PRODUCTS, ids=lambda value: str(value).removeprefix("torch."))
@pytest.mark.parametrize(("channels", "reduced", "side"), [(256, 64, 56), (512, 128, 28), (24, 8, 7)])
def test_a_product_fits_where_it_is_admitted(
    channels: int, reduced: int, side: int, target: str, dtype: torch.dtype
) -> None:
    x, out = (
        meta(128, c, side, side, dtype=dtype, memory_format=torch.channels_last) for c in (reduced, channels)
    )
    matrix, terms = meta(channels, reduced, 1, 1, dtype=dtype), meta(128, channels)
    (product,) = captured(target, launch_projection.rescaled, ProductCall(x, matrix, terms, terms, out))
    code = compiled(product)
    assert code.shared_bytes <= DEVICES[target].shared_bytes
    assert code.spilled_bytes == 0
