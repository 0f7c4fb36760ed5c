"""Every kernel, compiled ahead of time for six GPUs: no spills, few registers, 128-bit accesses of maps."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
from aot import (
    COMPILER,
    DEVICES,
    TARGETS,
    Launch,
    Site,
    built,
    captured,
    compiled,
    compiled_within,
    launched,
    meta,
    orders_of,
)
from recording_driver import plans, recorded_launches

from eca_triton.launch import batch_norm as launch_batch_norm
from eca_triton.launch import forward as launch_forward
from eca_triton.launch import gates as launch_gates
from eca_triton.launch import projection as launch_projection
from eca_triton.launch import training as launch_training
from eca_triton.launch import two_pass as launch_two_pass
from eca_triton.launch.call import ProductCall
from eca_triton.ops.schema import BATCH_NORM_ECA
from eca_triton.reference.arguments import (
    PoolArguments,
    PoolBackwardArguments,
    ProjectionArguments,
    RescaledArguments,
)
from eca_triton.tuning.families.product import takes

pytestmark = COMPILER

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
ALL = [*TARGETS]
NVIDIA = [target for target in TARGETS if target.startswith("sm_")]
HUGE, LARGE, MEDIUM, SMALL = (128, 256, 56, 56), (128, 512, 28, 28), (128, 1024, 14, 14), (128, 2048, 7, 7)
WIDE, NARROW, TINY = (128, 64, 112, 112), (8, 24, 56, 56), (1, 160, 7, 7)

# 4 programs of 128 threads per SM, or as much of an RDNA 3 SIMD's: enough bytes in flight.
REGISTERS = {target: 192 if target == "gfx1100" else 128 for target in TARGETS}


def vectors_of(item: Launch, itemsize: int) -> int:
    """128-bit accesses that one thread needs for its share of the tile."""
    return item.arguments["BLOCK_C"] * item.arguments["BLOCK_HW"] * itemsize // (16 * item.threads)


CALLS = {
    "forward": Site.forward,
    "saving": lambda site: site.forward(saved=True),  # what the backward needs
    "backward": Site.backward,
}
Rows = list[tuple[str, str, Site, list[str]]]  # kernel, one of CALLS, site, targets

BOUNDED: Rows = [
    ("tile_channels_last", "forward", Site(SMALL, 7, last=True), ALL),
    ("tile_channels_last", "forward", Site(MEDIUM, 5, FP16, last=True), ["sm_80", "sm_90", "gfx1100"]),
    ("tile_channels_last", "forward", Site(LARGE, last=True), ["sm_75", "sm_90", "gfx942"]),
    ("tile_channels_last", "forward", Site(TINY, 3, FP32, last=True), ["sm_90", "sm_100", "gfx942"]),
    ("lagged", "forward", Site(HUGE, last=True), NVIDIA),
    ("lagged", "forward", Site(WIDE, 5, FP16, last=True), ["sm_80", "sm_90"]),
    ("lagged", "forward", Site(NARROW, 5, FP32, last=True), ["sm_75", "sm_90"]),
    ("lagged", "forward", Site((1, 16, 112, 112)), ["sm_90", "sm_100"]),
    ("tile_channels_last", "backward", Site(SMALL, last=True), ["sm_90", "gfx942"]),
    (
        "tile_channels_last", "backward", Site(MEDIUM, last=True, after="relu", bits=True, stored=True),
        ["sm_90", "gfx942"],
    ),
    ("lagged", "backward", Site(LARGE, last=True, bn=True, after="relu", bits=True, stored=True), ["sm_90"]),
    ("lagged", "backward", Site(HUGE, last=True, bn=True, after="silu", stored=True), ["sm_100"]),
    ("lagged", "backward", Site(HUGE, 5, FP16, last=True, after="silu"), ["sm_90"]),
    ("lagged", "backward", Site(NARROW, 5, FP32, last=True, bn=True, after="gelu", stored=True), ["sm_80"]),
]  # fmt: skip
# Tails, among them those which a change of tiles or register limits once made spill.
TAILS: Rows = [
    ("tile_channels_last", "forward", Site(MEDIUM, last=True, bn=True, after="relu"), ["sm_80", "sm_90"]),
    (
        "tile_channels_last", "forward", Site(MEDIUM, last=True, bn=True, before="silu", after="gelu"),
        ["sm_75", "sm_90", "sm_100"],
    ),
    ("tile_channels_last", "forward", Site(SMALL, last=True, after="relu"), ["sm_90"]),
    ("tile_channels_last", "forward", Site(SMALL, last=True, bn=True, after="relu"), ["sm_90"]),
    ("tile_channels_last", "forward", Site(SMALL, last=True, before="silu", after="gelu"), ["sm_90"]),
    ("tile_channels_last", "forward", Site(MEDIUM, 5, FP32, last=True, bn=True, after="relu"), ["sm_90"]),
    (
        "tile_channels_last", "forward",
        Site(MEDIUM, 5, FP32, last=True, bn=True, before="silu", after="gelu"), ["sm_90"],
    ),
    ("lagged", "forward", Site(LARGE, last=True, bn=True, after="relu"), ["sm_75", "sm_90"]),
    ("lagged", "forward", Site(LARGE, last=True, bn=True, before="silu", after="gelu"), ["sm_80", "sm_100"]),
    ("lagged", "forward", Site(HUGE, 9, last=True, bn=True, after="relu"), NVIDIA),
    ("lagged", "forward", Site(HUGE, 9, last=True, after="relu"), ["sm_100"]),
    ("lagged", "forward", Site(HUGE, 9, last=True, bn=True, before="silu", after="gelu"), ["sm_90"]),
    ("lagged", "forward", Site(WIDE, 9, last=True, bn=True, after="relu"), ["sm_90"]),
    ("lagged", "forward", Site(WIDE, 9, last=True, bn=True, before="silu", after="relu"), ["sm_100"]),
    ("lagged", "forward", Site((128, 128, 56, 56), 9, last=True, after="silu"), ["sm_100"]),
    ("lagged", "forward", Site(NARROW, 9, FP32, last=True, bn=True, before="silu", after="gelu"), ["sm_80"]),
    ("tile_channels_last", "saving", Site(MEDIUM, last=True, after="relu", bits=True), ["sm_90"]),
    ("lagged", "saving", Site(HUGE, last=True, after="relu", bits=True), ["sm_90"]),
    (
        "tile_channels_last", "backward",
        Site(SMALL, 9, last=True, bn=True, after="relu", bits=True, stored=True), ["sm_100"],
    ),
    (
        "tile_channels_last", "backward", Site(MEDIUM, 9, last=True, bn=True, after="silu", stored=True),
        ["sm_80"],
    ),
    (
        "tile_channels_last", "backward",
        Site(MEDIUM, 9, FP32, last=True, bn=True, after="gelu", stored=True), ["sm_90"],
    ),
    ("tile", "backward", Site(HUGE, after="silu", stored=True, rare=True), ["sm_90"]),
    ("tile", "backward", Site(SMALL, 7, bn=True, after="gelu", stored=True, rare=True), ["sm_90"]),
    ("tile", "backward", Site(LARGE, bn=True, after="relu", bits=True, stored=True, rare=True), ["sm_90"]),
    ("tile", "backward", Site(MEDIUM, 9, FP32, after="relu", bits=True, stored=True, rare=True), ["sm_90"]),
    (
        "tile", "backward", Site((128, 24, 40, 6), 3, after="relu", bits=True, stored=True, rare=True),
        ["sm_90"],
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    ("kernel", "direction", "site", "target", "bounded"),
    [
        pytest.param(*row, target, rows is BOUNDED, id="-".join(map(str, (*row, target))))
        for rows in (BOUNDED, TAILS)
        for *row, targets in rows
        for target in targets
    ],
)
def test_no_launch_of_a_whole_map_spills_and_maps_move_in_vectors(
    kernel: str, direction: str, site: Site, target: str, bounded: bool
) -> None:
    item = launched(kernel, CALLS[direction](site), target)
    if bounded:
        # Three programs of 128 threads per SM, one of 512; in the backward two of 256.
        few = 168 if item.threads == 128 or direction == "backward" else 128
        exponentials = direction == "backward" and site.after in ("silu", "gelu")
        few = few if kernel == "tile_channels_last" else 255 if exponentials else 128
        code = compiled_within(few, item)
        assert code.shared_bytes <= 16 << 10
    else:
        code = compiled(item)
        assert code.spilled_bytes == 0
    forward = direction != "backward"
    if kernel == "tile":
        assert code.stores[128] >= 2, "d_x and d_residual"
        assert code.loads[128] >= code.stores[128], "dy and x"
    elif kernel == "tile_channels_last":
        steps, halo = item.arguments["STEPS"], item.arguments["HALO_STEPS"]
        assert code.loads[128] >= (1 if forward else 2) * (steps + halo), "x, in the backward dy too"
        assert code.stores[128] == steps * (1 + site.stored)
        if bounded and forward:
            assert code.stores.keys() == {128}
            assert min(code.loads) >= 32, "taps alone, which are fp32 here"
    else:
        vectors = vectors_of(item, site.dtype.itemsize)
        # x twice; in the backward dy and x, again when patience ends, and what comes back.
        assert code.loads[128] >= (2 if forward else 5) * vectors
        assert code.stores[128] == vectors * (1 + 2 * site.stored)


PASSES = [
    (Site(shape, taps, dtype, last=last, bn=True, after="relu"), "sm_90")
    for shape, taps, dtype in (
        (HUGE, 5, BF16), (SMALL, 7, BF16), ((1, 256, 56, 56), 5, BF16), (MEDIUM, 5, FP16),
        ((128, 24, 40, 6), 3, BF16), (HUGE, 9, FP32), ((128, 512, 9, 9), 5, FP32),
    )
    for last in (False, True)
]  # fmt: skip
PASSES += [
    (Site(shape, taps, last=last, bn=True, after="relu"), target)
    for shape, taps, last in ((HUGE, 5, False), (HUGE, 5, True), (SMALL, 7, False))
    for target in ALL
    if target != "sm_90"
]
PASSES += [
    (Site((128, 256, size, size), last=last, bn=True, before="silu"), target)
    for size, last, targets in (
        (56, True, ALL),
        (7, False, ALL),
        (56, False, ["sm_90"]),
        (7, True, ["sm_90"]),
    )
    for target in targets
]


@pytest.mark.parametrize(("site", "target"), PASSES, ids=str)
def test_the_two_passes_stream_vectors(site: Site, target: str) -> None:
    """Pooling reads nothing but vectors of the map; an activation before it needs batch norm's terms too."""
    pool, gate = captured(target, launch_gates.gate, site.gate())
    code = compiled(pool)
    assert code.spilled_bytes == 0
    assert code.loads[128] >= vectors_of(pool, site.dtype.itemsize)
    if site.before != "identity":
        assert 16 not in code.loads, "no element of the map alone"
        return
    assert code.loads.keys() == {128}
    assert code.registers <= REGISTERS[target]

    code = compiled(gate)
    assert code.spilled_bytes == 0
    assert code.registers <= 64

    _, rescale = captured(target, launch_forward.pool_and_rescale, site.forward())
    code = compiled(rescale)
    assert code.spilled_bytes == 0
    assert code.registers <= REGISTERS[target]
    _, c, h, w = site.shape
    if (c if site.last else h * w) % (16 // site.dtype.itemsize) == 0:
        needed = vectors_of(rescale, site.dtype.itemsize)
        assert code.loads[128] >= 2 * needed, "x and residual"
        assert code.stores == {128: needed}


in_both_layouts = pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
PARAMETERS = meta(1, 1, 5), None, meta(256), meta(256)  # gradients of weight, bias, and the affine


@pytest.mark.parametrize("activation", ["relu", "silu"])
@in_both_layouts
def test_the_passes_of_a_training_step_stream_vectors(last: bool, activation: str) -> None:
    site = Site(HUGE, last=last, bn=True, after=activation, bits=activation == "relu", stored=True)
    launches = captured("sm_90", launch_two_pass.forward, site.forward(saved=True))
    launches += captured("sm_90", launch_two_pass.backward, site.backward())
    launches += captured("sm_90", launch_training.parameter_gradients, site.backward(), *PARAMETERS)
    for item in launches:
        code = compiled_within(REGISTERS["sm_90"], item)
        if item.kernel.__name__ in ("affine_kernel", "moments_kernel", "affine_backward_kernel"):
            assert code.loads[128] >= 2, "of 16 elements of every map"
            assert code.stores[128] == 2
            assert set(code.loads) <= {128, 32, 16}, "a map, coefficients, bits"


@in_both_layouts
def test_statistics_of_a_batch_stream_vectors_and_what_uses_them_does_not_spill(last: bool) -> None:
    site = Site(HUGE, last=last, bn=True, after="relu", bits=True, stored=True)
    launches = captured("sm_90", launch_batch_norm.forward, site.forward(saved=True), meta(256))
    assert [item.kernel.__name__ for item in launches] == [
        "image_statistics_kernel", "batch_statistics_kernel", "forward_terms_kernel", "affine_kernel",
    ]  # fmt: skip
    backward = captured("sm_90", launch_batch_norm.backward, site.backward(), *PARAMETERS)
    assert [item.kernel.__name__ for item in backward] == [
        "forward_terms_kernel", "moments_kernel", "backward_terms_kernel", "gate_backward_kernel",
        "gate_backward_finish_kernel", "batch_norm_backward_kernel", "affine_backward_kernel",
    ]  # fmt: skip
    statistics, *_ = [compiled_within(128, item) for item in (*launches[:2], backward[5])]
    assert statistics.loads[128] >= 2
    assert set(statistics.loads) <= {128, 32, 16}, "a map, and the first element of every channel"


def test_a_step_made_again_is_launched_as_the_first() -> None:
    x, residual = (torch.randn(2, 8, 4, 4, requires_grad=True) for _ in range(2))
    weight, scale, shift = (torch.randn(size, requires_grad=True) for size in (3, 8, 8))
    inputs = [x, weight, scale, shift, residual]

    def step() -> None:
        out = BATCH_NORM_ECA(x, weight, None, scale, shift, residual, activation="relu")[0]
        torch.autograd.grad(out, inputs, torch.ones_like(out))

    with recorded_launches([0]) as launches:
        step()
        first = [(item.function, item.grid) for item in launches]
        assert len(first) == 4 + 7
        assert plans() == 2
        step()
        assert [(item.function, item.grid) for item in launches[len(first) :]] == first
        assert plans() == 2


@pytest.mark.parametrize("target", TARGETS)
def test_gates_of_pooled_values_and_their_backward(target: str) -> None:
    pooled, weight, bias = meta(128, 2048, dtype=BF16), meta(1, 1, 7), meta(1)
    a = PoolArguments(pooled, weight, bias, True)
    launches = captured(target, launch_gates.gate_from_pool, a, pooled)
    back = PoolBackwardArguments(pooled, pooled, weight, bias, True)
    launches += captured(target, launch_gates.gate_from_pool_backward, back, pooled, weight, bias)
    assert len(launches) == 3
    for item in launches:
        assert compiled_within(REGISTERS[target], item).registers <= REGISTERS[target]


def test_maps_with_gaps_and_many_taps_do_not_spill() -> None:
    call = Site((8, 64, 32, 32), 31, bn=True, before="silu", after="gelu", rare=True).forward()
    with_gaps = replace(call, a=call.a._replace(x=meta(8, 64, 34, 34, dtype=BF16)[..., 1:-1, 1:-1]))
    for item in captured("sm_90", launch_forward.eca, with_gaps):
        assert compiled(item).spilled_bytes == 0


@pytest.mark.parametrize("batch", [1, 70_000])
@pytest.mark.parametrize("kernel", ["two_pass", "tile_channels_last", "lagged"])
def test_grids_have_one_axis(kernel: str, batch: int) -> None:
    """The second and third axis of a grid end at 65,535."""
    size = {"two_pass": 5, "tile_channels_last": 7, "lagged": 56}[kernel]
    site = Site((batch, 64, size, size), 3, last=kernel != "two_pass")
    if kernel == "two_pass":
        launches = captured("sm_90", launch_forward.pool_and_rescale, site.forward())
    else:
        launches = [launched(kernel, call, "sm_90") for call in (site.forward(), site.backward())]
    for item in launches:
        assert len(item.grid) == 1
        assert item.grid[0] >= batch


@pytest.mark.parametrize(
    ("direction", "target"), [*(("forward", target) for target in NVIDIA), ("backward", "sm_90")]
)
def test_lagged_programs_order_their_accesses_across_the_gpu(direction: str, target: str) -> None:
    """A ticket, an arrival, gates or sums, then two polls: the argument in kernels/tickets.py needs them."""
    item = launched("lagged", CALLS[direction](Site(HUGE, last=True)), target)
    ptx = built(item).asm["ptx"]
    assert orders_of(ptx) == ["relaxed", "acq_rel", "release", "acquire", "acquire"]
    assert "ld.global.nc" not in ptx, "no load is from a cache that nobody invalidates"


@pytest.mark.parametrize(
    ("direction", "site", "sums"),  # at first and when patience ends; two each in the backward
    [
        ("forward", Site(HUGE, 9, last=True, bn=True, before="silu", after="gelu"), 2),
        ("backward", Site(HUGE, last=True, bn=True, after="silu", stored=True), 4),
    ],
    ids=["forward", "backward"],
)
def test_whoever_sums_a_lagged_tile_adds_in_the_same_order(direction: str, site: Site, sums: int) -> None:
    item = launched("lagged", CALLS[direction](site), "sm_90")
    tile = f"{item.arguments['BLOCK_C']}x{item.arguments['BLOCK_HW']}"
    layouts = re.findall(rf"}}\) : \(tensor<{tile}xf32, (#\w+)>\)", built(item).asm["ttgir"])
    assert len(layouts) == sums
    assert len({*layouts}) == 1


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("channels", "dtype"), [(256, BF16), (2048, BF16), (2048, FP32)], ids=str)
def test_a_projection_takes_no_more_than_its_tile(channels: int, dtype: torch.dtype, target: str) -> None:
    n, reduced, bn = 128, channels // 4, [meta(channels) for _ in range(4)]
    matrix = meta(channels, reduced, 1, 1, dtype=dtype)
    a = ProjectionArguments(meta(n, reduced), matrix, meta(1, 1, 5, dtype=dtype), None, None, *bn)
    (gates,) = captured(target, launch_projection.gates, a, meta(n, channels), meta(n, channels))
    code = compiled_within(REGISTERS[target], gates)
    assert code.spilled_bytes == 0 or (channels, dtype) == (2048, FP32)
    assert code.shared_bytes <= 48 * 1024


PRODUCTS = [
    (target, dtype)
    for target in TARGETS
    for dtype in (FP16, BF16, FP32)
    if takes(dtype.itemsize, DEVICES[target])
]


def test_a_product_is_for_gpus_whose_matrix_units_triton_uses() -> None:
    assert {target for target, _ in PRODUCTS} == TARGETS.keys() - {"sm_75", "gfx1100"}
    assert {dtype for _, dtype in PRODUCTS} == {FP16, BF16}


@pytest.mark.parametrize(
    ("target", "dtype", "channels", "reduced", "side"),
    [(*product, 256, 64, 56) for product in PRODUCTS]
    + [(target, BF16, *sizes) for target in ("sm_90", "gfx942") for sizes in ((512, 128, 28), (24, 8, 7))],
    ids=str,
)
def test_a_product_fits_where_it_is_admitted(
    target: str, dtype: torch.dtype, channels: int, reduced: int, side: int
) -> None:
    x, out = (meta(128, c, side, side, dtype=dtype, last=True) for c in (reduced, channels))
    matrix, terms = meta(channels, reduced, 1, 1, dtype=dtype), meta(128, channels)
    (product,) = captured(
        target, launch_projection.rescaled, ProductCall(RescaledArguments(x, matrix, terms, terms), out)
    )
    code = compiled(product)
    assert code.shared_bytes <= DEVICES[target].shared_bytes
    assert code.spilled_bytes == 0
