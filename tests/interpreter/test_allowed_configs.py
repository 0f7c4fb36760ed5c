"""Every config that may run computes the same, also those that nobody would choose."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from eager_block import eager_eca, eager_gate
from torch import Tensor

import eca_triton
from eca_triton.launch import devices
from eca_triton.tuning.allowed import allowed
from eca_triton.tuning.config import FLAT, TILED, Choice, Config, FlatConfig
from eca_triton.tuning.families.blocks import power_of_2
from eca_triton.tuning.families.lagged import LaggedConfig
from eca_triton.tuning.families.product import ProductConfig
from eca_triton.tuning.families.tile import TileBackwardConfig, TileConfig
from eca_triton.tuning.families.tile_channels_last import TileChannelsLastConfig
from eca_triton.tuning.problem import EcaProblem, PassProblem, Problem, ProductProblem

TRIES = 20_000
ROUNDS = 2
Pick = Callable[[int, int], int]


def tile(problem: EcaProblem, pick: Pick) -> TileConfig:
    block_hw = pick(1, 512)
    chunks, rest = divmod(problem.layout.hw + pick(1, 8) - 1, block_hw)
    tail = pick(power_of_2(rest), block_hw) if rest and chunks and pick(1, 2) == 1 else 0
    config = TileConfig(
        block_c=pick(1, 64), block_hw=block_hw, chunks=max(1, chunks + (rest > 0 and not tail)),
        block_tail=tail, block_halo=power_of_2(max(problem.taps - 1, 1)), vec=pick(1, 8),
        windowed=pick(1, 2) == 1, packed=False, num_warps=pick(1, 8),
    )  # fmt: skip
    if problem.direction == "forward":
        return config
    return TileBackwardConfig(**vars(config), block_halo_hw=pick(1, 512))


def tile_channels_last(problem: EcaProblem, pick: Pick) -> TileChannelsLastConfig:
    block_hw, block_halo, hw = pick(1, 64), pick(1, 64), problem.layout.hw
    return TileChannelsLastConfig(
        block_c=pick(8, 64), block_hw=block_hw, steps=-(-hw // block_hw),
        block_halo=block_halo, halo_steps=-(-hw // block_halo), num_warps=pick(1, 8),
    )  # fmt: skip


def lagged(problem: EcaProblem, pick: Pick) -> LaggedConfig:
    layout, last = problem.layout, problem.layout.dense_channels_last
    config = LaggedConfig(
        block_c=pick(4, 16), block_hw=pick(8, 64), lag=0, block_p=pick(1, 16), block_g=pick(1, 128),
        num_warps=pick(1, 8), vec_c=4 if last else 1, vec_hw=1 if last else 4, max_registers=64,
    )  # fmt: skip
    tiles = config.tiles(layout)
    return LaggedConfig(**vars(config) | {"lag": random.randint(tiles, layout.n * tiles)})


def product(problem: ProductProblem, pick: Pick) -> ProductConfig:
    return ProductConfig(pick(8, 256), pick(8, 256), pick(8, 256), pick(1, 32), num_stages=pick(1, 8))


def one_of_two(problem: PassProblem, pick: Pick) -> Config:
    return Config(
        block_c=pick(2, 32), block_hw=pick(4, 64), splits=pick(1, 32), num_warps=pick(1, 8),
        vec_c=pick(1, 4), vec_hw=pick(1, 4), window=pick(1, 4),
    )  # fmt: skip


def flat(problem: PassProblem, pick: Pick) -> FlatConfig:
    return FlatConfig(pick(64, 2048), pick(1, 8))


RANDOM = {"tile": tile, "tile_channels_last": tile_channels_last, "lagged": lagged, "product": product}
RANDOM |= {"pool": one_of_two, "rescale": one_of_two, "moments": one_of_two}
RANDOM |= {"affine": flat, "affine_backward": flat}


def some(kernel: str, problem: Problem) -> Choice:
    """A random choice that is allowed."""

    def pick(least: int, most: int) -> int:
        """A power of two."""
        return 1 << random.randint(least.bit_length() - 1, most.bit_length() - 1)

    for _ in range(TRIES):
        choice = Choice(kernel, RANDOM[kernel](problem, pick))
        if allowed(problem, choice):
            return choice
    raise AssertionError(f"no {kernel} for {problem}")


@pytest.mark.parametrize(
    (
        "kernel",
        "shape",
        "last",
        "taps",
        "activation",
    ),  # of ReLU there are bits; SiLU's slope is computed anew
    [
        pytest.param("tile", (2, 24, 7, 7), False, 5, "relu", id="tile by windows"),
        pytest.param("tile", (2, 16, 6, 12), False, 7, "silu", id="tile"),
        pytest.param("tile_channels_last", (2, 24, 5, 6), True, 5, "relu", id="tile_channels_last"),
        pytest.param("lagged", (2, 12, 4, 8), False, 3, "relu", id="lagged"),
        pytest.param("lagged", (2, 16, 5, 6), True, 5, "silu", id="lagged channels_last"),
        pytest.param("two_pass", (1, 16, 7, 7), False, 5, "relu", id="two passes by windows"),
        pytest.param("two_pass", (2, 8, 4, 12), False, 5, "silu", id="two passes"),
        pytest.param("two_pass", (2, 24, 3, 6), True, 5, "relu", id="two passes channels_last"),
        pytest.param("two_pass", (1, 17, 3, 3), True, 5, "silu", id="two passes odd channels_last"),
    ],
)
def test_random_configs_compute_what_torch_does(
    kernel: str, shape: tuple[int, ...], last: bool, taps: int, activation: str
) -> None:
    random.seed(0)
    memory_format = torch.channels_last if last else torch.contiguous_format
    x, r, dy = (torch.randn(shape).to(memory_format=memory_format) for _ in range(3))
    w = torch.randn(1, 1, taps)
    double = [each.double() for each in (x, w, r, dy)]
    exact = step(lambda x, w, r: eager_eca(x, w, residual=r, activation=activation), *double)
    gates = eager_gate(*double[:2], pre_activation=activation)
    chosen: dict[str, set[Choice]] = defaultdict(set)

    def select(problem: Problem, may_read: bool) -> Choice:
        name = problem.step if isinstance(problem, PassProblem) else kernel
        if name == "two_pass":
            return Choice("two_pass", None)
        choice = some(name, problem)
        chosen[name].add(choice)
        return choice

    for _ in range(ROUNDS):
        with mock.patch.object(devices, "select", select):
            got = step(lambda x, w, r: eca_triton.eca(x, w, residual=r, activation=activation), x, w, r, dy)
            if kernel == "two_pass":
                with torch.no_grad():
                    got += (eca_triton.eca(x, w, residual=r, activation=activation),)
                got += (eca_triton.eca_gate(x, w, pre_activation=activation),)
        for one, other in zip(got, (*exact, exact[0], gates)[: len(got)], strict=True):
            torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=1e-4)
    if kernel == "two_pass":
        assert set(chosen) == {*TILED, *FLAT}
        assert all(len(chosen[name]) > 1 for name in TILED)
    else:
        assert len(chosen[kernel]) == 2 * ROUNDS


@pytest.mark.parametrize("summand", [False, True], ids=["factor", "and summand"])
@pytest.mark.parametrize(
    ("side", "reduced", "c"), [((9, 15), 33, 40), ((1, 5), 130, 136)], ids=["135 positions", "5 positions"]
)
def test_random_configs_of_a_product_compute_what_torch_does(
    side: tuple[int, int], reduced: int, c: int, summand: bool
) -> None:
    random.seed(0)
    x = torch.randn(3, reduced, *side).half().to(memory_format=torch.channels_last)
    matrix, factor = torch.randn(c, reduced, 1, 1).half(), torch.rand(3, c)
    shift = torch.randn(3, c) if summand else None
    terms = [factor, torch.zeros(3, c) if shift is None else shift]
    factors, shifts = (term.double()[:, :, None, None] for term in terms)
    exact = F.conv2d(x.double(), matrix.double()) * factors + shifts
    chosen: set[Choice] = set()

    def select(problem: Problem, may_read: bool) -> Choice:
        chosen.add(choice := some("product", problem))
        return choice

    with mock.patch.object(devices, "select", select):
        for _ in range(2 * ROUNDS):
            got = torch.ops.eca_triton.rescaled_projection(x, matrix, factor, shift, out_dtype=torch.float32)
            torch.testing.assert_close(got.double(), exact, rtol=1e-4, atol=1e-4)
    assert len(chosen) == 2 * ROUNDS


def step(function: Callable[..., Tensor], *tensors: Tensor) -> tuple[Tensor, ...]:
    """What a function of x, weight and residual returns, and their gradients for dy, the last tensor."""
    *inputs, dy = (each.clone() for each in tensors)
    for each in inputs:
        each.requires_grad_()
    out = function(*inputs)
    return (out.detach(), *torch.autograd.grad(out, inputs, dy))
