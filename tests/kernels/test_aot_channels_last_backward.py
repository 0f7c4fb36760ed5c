"""The channels-last backward, compiled ahead of time: no spills, 128-bit accesses, few registers."""

from __future__ import annotations

import os
import re

import pytest
import torch
from aot import DEVICES, TARGETS, Launch, built, captured, compiled, compiled_within, orders_of

from eca_triton.launch import backward_channels_last as launch_backward_channels_last
from eca_triton.launch import channels_last as launch_channels_last
from eca_triton.launch.call import BackwardCall, Call
from eca_triton.tuning.families.lagged import lagged_backward_config, lagged_config
from eca_triton.tuning.families.tile_channels_last import (
    tile_channels_last_backward_config,
    tile_channels_last_config,
)

pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1",
    reason="the interpreter has no compiler: unset TRITON_INTERPRET",
)


def meta(*shape: int, dtype: torch.dtype = torch.float32, **options: object) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta", **options)


def launched(
    kernel: str,
    shape: tuple[int, ...],
    target: str,
    tail: str = "plain",
    dtype: torch.dtype = torch.bfloat16,
    k: int = 5,
) -> Launch:
    """The one launch of a site; tail: "bn", "bits" or a recomputed activation, "stored" p, or several."""
    words = tail.split("+")
    (activation,) = {"silu", "gelu"} & {*words} or {"relu" if "bits" in words else "identity"}
    recomputed, stored = activation in ("silu", "gelu"), "stored" in words
    n, c, h, w = shape
    x = meta(*shape, dtype=dtype, memory_format=torch.channels_last)
    channels, moments = meta(n, c), meta(n, c) if "bn" in words else None
    call = BackwardCall(
        x, x, meta(1, 1, k), None, tuple(meta(c) for _ in range(4)) if "bn" in words else None, 1e-5,
        False, "sigmoid", 1.0, x if recomputed and stored else None, activation, channels,
        meta(n, c * h * w // 8, dtype=torch.uint8) if "bits" in words else None,
        x, x if stored else None, channels, moments, moments,
    )  # fmt: skip
    if kernel == "tile":
        function = launch_backward_channels_last.tile_channels_last_backward
        config = tile_channels_last_backward_config(call.layout, dtype.itemsize, k, DEVICES[target])
    else:
        function = launch_backward_channels_last.lagged_backward
        config = lagged_backward_config(
            call.layout, dtype.itemsize, recomputed, stored, "bits" in words, DEVICES[target]
        )
    assert config is not None
    (item,) = captured(target, function, call, config)
    return item


SMALL, MEDIUM, LARGE = (128, 2048, 7, 7), (128, 1024, 14, 14), (128, 512, 28, 28)


@pytest.mark.parametrize("target", ["sm_90", "gfx942"])
@pytest.mark.parametrize(("shape", "tail"), [(SMALL, "plain"), (MEDIUM, "bits+stored")])
def test_a_tile_is_read_once_in_vectors(shape: tuple[int, ...], tail: str, target: str) -> None:
    item = launched("tile", shape, target, tail)
    # Three programs of 128 threads per SM, or two of 256; with bits, Triton 3.6 has one of these.
    code = compiled_within(168, item)
    steps, halo = item.arguments["STEPS"], item.arguments["HALO_STEPS"]
    assert code.loads[128] >= 2 * (steps + halo), "dy and x"
    assert code.stores[128] == steps * (2 if "stored" in tail else 1)
    assert code.shared_bytes <= 16 << 10


@pytest.mark.parametrize(
    ("shape", "tail", "dtype", "target"),
    [
        (SMALL, "bn+bits+stored", torch.bfloat16, "sm_100"),
        (MEDIUM, "bn+silu+stored", torch.bfloat16, "sm_80"),
        (MEDIUM, "bn+gelu+stored", torch.float32, "sm_90"),
    ],
)
def test_no_tail_spills(shape: tuple[int, ...], tail: str, dtype: torch.dtype, target: str) -> None:
    assert compiled(launched("tile", shape, target, tail, dtype, k=9)).spilled_bytes == 0


STAGE = (128, 256, 56, 56)


@pytest.mark.parametrize(
    ("shape", "tail", "dtype", "target"),
    [
        (LARGE, "bn+bits+stored", torch.bfloat16, "sm_90"),
        (STAGE, "bn+silu+stored", torch.bfloat16, "sm_100"),
        (STAGE, "silu", torch.float16, "sm_90"),
        ((8, 24, 56, 56), "bn+gelu+stored", torch.float32, "sm_80"),
    ],
)
def test_lagged_tiles_are_accessed_in_vectors(
    shape: tuple[int, ...], tail: str, dtype: torch.dtype, target: str
) -> None:
    item = launched("lagged", shape, target, tail, dtype)
    code = compiled(item)
    threads = item.num_warps * TARGETS[target].warp_size
    vectors = item.arguments["BLOCK_C"] * item.arguments["BLOCK_HW"] * dtype.itemsize // (16 * threads)
    # dy and x, again when patience ends, and what comes back.
    assert code.loads[128] >= 5 * vectors
    assert code.stores[128] == vectors * (3 if "stored" in tail else 1)
    assert code.spilled_bytes == 0
    assert code.registers <= (255 if "lu" in tail else 128)
    assert code.shared_bytes <= 16 << 10


def test_lagged_programs_order_their_accesses_across_the_gpu() -> None:
    """A ticket, an arrival, the sums, then two polls: what the argument in kernels/tickets.py relies on."""
    code = built(launched("lagged", STAGE, "sm_90")).asm
    assert orders_of(code["ptx"]) == ["relaxed", "acq_rel", "release", "acquire", "acquire"]


def test_whoever_sums_a_lagged_tile_adds_in_the_same_order() -> None:
    item = launched("lagged", STAGE, "sm_90", "bn+silu+stored")
    tile = f"{item.arguments['BLOCK_C']}x{item.arguments['BLOCK_HW']}"
    layouts = re.findall(rf"}}\) : \(tensor<{tile}xf32, (#\w+)>\)", built(item).asm["ttgir"])
    assert len(layouts) == 4, "two sums, at first and when patience ends"
    assert len({*layouts}) == 1


def test_launches_have_one_axis() -> None:
    """The second and third axis of a grid end at 65,535."""
    for kernel, size in (("tile", 7), ("lagged", 56)):
        item = launched(kernel, (70_000, 64, size, size), "sm_90", k=3)
        assert len(item.grid) == 1
        assert item.grid[0] >= 70_000


@pytest.mark.parametrize("kernel", ["tile", "lagged"])
def test_a_forward_that_saves_means_and_bits_does_not_spill(kernel: str) -> None:
    shape = MEDIUM if kernel == "tile" else STAGE
    n, c, h, w = shape
    x = meta(*shape, dtype=torch.bfloat16, memory_format=torch.channels_last)
    call = Call(
        x, meta(1, 1, 5), None, None, 1e-5, "identity", False, "sigmoid", 1.0, x, "relu", x,
        meta(n, c), meta(n, c * h * w // 8, dtype=torch.uint8),
    )  # fmt: skip
    if kernel == "tile":
        function = launch_channels_last.tile_channels_last
        config = tile_channels_last_config(call.layout, 2, 5, False, DEVICES["sm_90"])
    else:
        function = launch_channels_last.lagged
        config = lagged_config(call.layout, 2, False, DEVICES["sm_90"], bits=True)
    (item,) = captured("sm_90", function, call, config)
    assert compiled(item).spilled_bytes == 0
