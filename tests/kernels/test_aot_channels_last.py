"""The kernels that read a map once, compiled ahead of time: no spills, 128-bit accesses, few registers."""

from __future__ import annotations

import os
import re

import pytest
import torch
from aot import DEVICES, TARGETS, Launch, built, captured, compiled, orders_of

from eca_triton.launch import channels_last as launch_channels_last
from eca_triton.launch.call import Call
from eca_triton.tuning.families.lagged import lagged_config
from eca_triton.tuning.families.tile_channels_last import tile_channels_last_config
from eca_triton.tuning.layout import common_layout

pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1",
    reason="the interpreter has no compiler: unset TRITON_INTERPRET",
)

NVIDIA = [target for target in TARGETS if target.startswith("sm_")]
PLAIN = (None, "identity", None, "identity")  # batch norm, activation before, residual, activation after


def meta(*shape: int, dtype: torch.dtype = torch.float32, **options: object) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta", **options)


def tail_of(shape: tuple[int, ...], dtype: torch.dtype, name: str) -> tuple[object, ...]:
    bn = tuple(meta(shape[1]) for _ in range(4))
    residual = meta(*shape, dtype=dtype, memory_format=torch.channels_last)
    return {
        "plain": PLAIN,
        "relu": (None, "identity", residual, "relu"),
        "silu": (None, "identity", residual, "silu"),
        "bn+relu": (bn, "identity", residual, "relu"),
        "bn+silu+relu": (bn, "silu", residual, "relu"),
        "bn+silu+gelu": (bn, "silu", residual, "gelu"),
        "silu+gelu": (None, "silu", residual, "gelu"),
    }[name]


def launched(
    kernel: str,
    shape: tuple[int, ...],
    k: int,
    dtype: torch.dtype,
    target: str,
    tail: str = "plain",
    memory_format: torch.memory_format = torch.channels_last,
) -> Launch:
    """The one launch of a site, as its config rule cuts it."""
    x = meta(*shape, dtype=dtype, memory_format=memory_format)
    bn, pre_activation, residual, activation = tail_of(shape, dtype, tail)
    layout = common_layout(x.shape, x.stride())
    front = bn is not None or pre_activation != "identity"
    if kernel == "tile":
        config = tile_channels_last_config(layout, x.element_size(), k, front, DEVICES[target])
    else:
        config = lagged_config(layout, x.element_size(), front, DEVICES[target])
    assert config is not None
    (launch,) = captured(
        target, getattr(launch_channels_last, "lagged" if kernel == "lagged" else "tile_channels_last"),
        Call(
            x, meta(1, 1, k), None, bn, 1e-5, pre_activation, False, "sigmoid", 1.0, residual, activation, x,
        ),
        config,
    )  # fmt: skip
    return launch


SITES = [
    pytest.param((128, 2048, 7, 7), 7, torch.bfloat16, id="2048x7x7-bf16"),
    pytest.param((128, 1024, 14, 14), 5, torch.float16, id="1024x14x14-fp16"),
    pytest.param((128, 512, 28, 28), 5, torch.bfloat16, id="512x28x28-bf16"),
    pytest.param((1, 160, 7, 7), 3, torch.float32, id="160x7x7-fp32"),
]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("shape", "k", "dtype"), SITES)
def test_a_tile_is_loaded_once_in_vectors(
    shape: tuple[int, ...], k: int, dtype: torch.dtype, target: str
) -> None:
    item = launched("tile", shape, k, dtype, target)
    code = compiled(item)
    steps = item.arguments["STEPS"]
    assert code.loads[128] >= steps + item.arguments["HALO_STEPS"]
    assert min(code.loads) >= 32, "taps alone, which are fp32 here"
    assert code.stores == {128: steps}
    assert code.spilled_bytes == 0
    # Three programs of 128 threads per SM, one of 512.
    assert code.registers <= (168 if item.num_warps * TARGETS[target].warp_size == 128 else 128)
    assert code.shared_bytes <= 16 << 10


TAILS = ["relu", "bn+relu", "bn+silu+gelu", "silu+gelu"]
MEDIUM, LARGE = (128, 1024, 14, 14), (128, 512, 28, 28)


# 28x28 with something before the pooling is left to `lagged`.
@pytest.mark.parametrize(
    ("shape", "dtype", "tail", "target"),
    [(shape, torch.bfloat16, tail, t) for shape in (MEDIUM, LARGE) for tail in TAILS[1:3] for t in NVIDIA]
    + [((128, 2048, 7, 7), torch.bfloat16, tail, "sm_90") for tail in TAILS]
    + [(MEDIUM, torch.float32, tail, "sm_90") for tail in TAILS],
)
def test_no_tail_spills(shape: tuple[int, ...], dtype: torch.dtype, tail: str, target: str) -> None:
    kernel = "lagged" if shape[2] == 28 and tail != "relu" else "tile"
    assert compiled(launched(kernel, shape, 5, dtype, target, tail)).spilled_bytes == 0


LAGGED = [
    pytest.param((128, 256, 56, 56), torch.bfloat16, torch.channels_last, id="256x56x56-bf16"),
    pytest.param((128, 64, 112, 112), torch.float16, torch.channels_last, id="64x112x112-fp16"),
    pytest.param((8, 24, 56, 56), torch.float32, torch.channels_last, id="24x56x56-fp32"),
    pytest.param((1, 16, 112, 112), torch.bfloat16, torch.contiguous_format, id="contiguous-batch-1"),
]


@pytest.mark.parametrize("target", NVIDIA)
@pytest.mark.parametrize(("shape", "dtype", "memory_format"), LAGGED)
def test_lagged_tiles_are_read_twice_in_vectors(
    shape: tuple[int, ...], dtype: torch.dtype, memory_format: torch.memory_format, target: str
) -> None:
    item = launched("lagged", shape, 5, dtype, target, memory_format=memory_format)
    code = compiled(item)
    threads = item.num_warps * TARGETS[target].warp_size
    vectors = item.arguments["BLOCK_C"] * item.arguments["BLOCK_HW"] * dtype.itemsize // (16 * threads)
    assert code.loads[128] >= 2 * vectors
    assert code.stores[128] == vectors
    assert code.spilled_bytes == 0
    assert code.registers <= 128
    assert code.shared_bytes <= 16 << 10


# Those which a change of tiles or register limits made spill, of all that `lagged_config` can produce.
@pytest.mark.parametrize(
    ("shape", "dtype", "tail", "target"),
    [((128, 256, 56, 56), torch.bfloat16, "bn+relu", target) for target in NVIDIA]
    + [
        ((128, 256, 56, 56), torch.bfloat16, "relu", "sm_100"),
        ((128, 256, 56, 56), torch.bfloat16, "bn+silu+gelu", "sm_90"),
        ((128, 64, 112, 112), torch.bfloat16, "bn+relu", "sm_90"),
        ((128, 64, 112, 112), torch.bfloat16, "bn+silu+relu", "sm_100"),
        ((128, 128, 56, 56), torch.bfloat16, "silu", "sm_100"),
        ((8, 24, 56, 56), torch.float32, "bn+silu+gelu", "sm_80"),
    ],
)
def test_no_lagged_tail_spills(shape: tuple[int, ...], dtype: torch.dtype, tail: str, target: str) -> None:
    assert compiled(launched("lagged", shape, 9, dtype, target, tail)).spilled_bytes == 0


@pytest.mark.parametrize("target", NVIDIA)
def test_lagged_programs_order_their_accesses_across_the_gpu(target: str) -> None:
    """A ticket, an arrival, the gates, then two polls: what the argument in kernels/lagged.py relies on."""
    code = built(launched("lagged", (128, 256, 56, 56), 5, torch.bfloat16, target)).asm
    assert orders_of(code["ptx"]) == ["relaxed", "acq_rel", "release", "acquire", "acquire"]


def test_whoever_sums_a_lagged_tile_adds_in_the_same_order() -> None:
    item = launched("lagged", (128, 256, 56, 56), 9, torch.bfloat16, "sm_90", "bn+silu+gelu")
    tile = f"{item.arguments['BLOCK_C']}x{item.arguments['BLOCK_HW']}"
    code = built(item).asm["ttgir"]
    layouts = re.findall(rf"}}\) : \(tensor<{tile}xf32, (#\w+)>\)", code)
    assert len(layouts) == 2, "at first, and when patience ends"
    assert layouts[0] == layouts[1]


def test_launches_have_one_axis() -> None:
    """The second and third axis of a grid end at 65,535."""
    for kernel, size in (("tile", 7), ("lagged", 56)):
        item = launched(kernel, (70_000, 64, size, size), 3, torch.bfloat16, "sm_90")
        assert len(item.grid) == 1
        assert item.grid[0] >= 70_000
