"""Addresses past 2**31 elements, and more images than a grid axis takes. Untouched memory costs nothing."""

from __future__ import annotations

import pytest
import torch
from kernel_cases import Site

from eca_triton.launch import forward as launch_forward
from eca_triton.launch import gates as launch_gates
from eca_triton.reference.arguments import PoolArguments

FAR = 2**30 + 16  # elements; fits int32, twice as much does not


@pytest.mark.parametrize(
    ("shape", "strides"),
    [
        pytest.param((3, 2, 2, 2), (FAR, 4, 2, 1), id="images"),
        pytest.param((2, 3, 2, 2), (4, FAR, 2, 1), id="channels"),
        pytest.param((2, 2, 1, 3), (2, 1, 4, FAR), id="elements"),
        pytest.param((2, 2, 2, 3), (2, 1, 4, FAR), id="columns"),
        pytest.param((2, 2, 3, 2), (2, 1, FAR, 4), id="rows"),
        pytest.param((2, 2, 3, 1, 2), (2, 1, FAR, 1, 4), id="depth"),
    ],
)
def test_offsets_past_int32(shape: tuple[int, ...], strides: tuple[int, ...]) -> None:
    near = torch.randn(shape).half()
    far = torch.empty(2 * FAR + 64, dtype=torch.float16).as_strided(shape, strides).copy_(near)
    weight = torch.randn(3)
    assert torch.equal(Site(far, weight).gates_by_kernel(), Site(near, weight).gates_by_kernel())

    expected = Site(near, weight, residual=near).map_by_kernel()
    assert torch.equal(Site(near, weight, residual=far).map_by_kernel(), expected), "residual"
    out = torch.empty(2 * FAR + 64, dtype=torch.float16).as_strided(shape, strides)
    launch_forward.eca(Site(far, weight, residual=near).call(out))
    assert torch.equal(out, expected), "x and out"


def test_pooled_rows_past_int32() -> None:
    near = torch.randn(3, 5).half()
    far = torch.empty(2 * FAR + 64, dtype=torch.float16).as_strided((3, 5), (FAR, 1)).copy_(near)
    weight = torch.randn(3)
    got, expected = (torch.empty(3, 5) for _ in range(2))
    launch_gates.gate_from_pool(PoolArguments(far, weight), got)
    launch_gates.gate_from_pool(PoolArguments(near, weight), expected)
    assert torch.equal(got, expected)


def test_more_images_than_a_grid_axis_takes() -> None:
    pooled, weight = torch.randn(65_537, 2), torch.randn(1)
    out = torch.full((65_537, 2), float("nan"))
    launch_gates.gate_from_pool(PoolArguments(pooled, weight), out)
    torch.testing.assert_close(out, torch.sigmoid(pooled * weight))
