"""The kernels of batch norm in training, compiled for a GPU that is not there, and launched twice."""

from __future__ import annotations

import pytest
import torch
from aot import captured, compiled_within
from recording_driver import plans, recorded_launches
from torch import Tensor

from eca_triton.launch import batch_norm as launch_batch_norm
from eca_triton.launch.call import BackwardCall, Call
from eca_triton.ops import BATCH_NORM_ECA

REGISTERS = 128  # of a thread; with 4 warps that leaves 16 warps to a multiprocessor


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def calls(shape: tuple[int, ...], memory_format: torch.memory_format) -> tuple[Call, BackwardCall]:
    """Both directions, with everything."""
    n, c = shape[:2]

    def a_map() -> Tensor:
        return meta(*shape, dtype=torch.bfloat16).contiguous(memory_format=memory_format)

    small, mask = meta(n, c), meta(n, c * shape[2] * shape[3] // 8, dtype=torch.uint8)
    bn = (meta(c), meta(c), meta(c), meta(c))
    forward = Call(
        a_map(), meta(1, 1, 5), None, bn, 1e-5, "identity", False, "sigmoid", 1.0, a_map(), "relu",
        a_map(), small, mask,
    )  # fmt: skip
    backward = BackwardCall(
        a_map(), a_map(), meta(1, 1, 5), None, bn, 1e-5, False, "sigmoid", 1.0, None, "relu",
        small, mask, a_map(), a_map(), small, small, small,
    )  # fmt: skip
    return forward, backward


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_statistics_stream_vectors_and_the_rest_does_not_spill(memory_format: torch.memory_format) -> None:
    forward, backward = calls((128, 256, 56, 56), memory_format)
    order = "contiguous" if memory_format == torch.contiguous_format else "channels_last"
    launches = captured("sm_90", launch_batch_norm.forward, forward, meta(256), order)
    assert [item.kernel.__name__ for item in launches] == [
        "image_statistics_kernel", "batch_statistics_kernel", "forward_terms_kernel", "affine_kernel",
    ]  # fmt: skip
    parameters = meta(1, 1, 5), None, meta(256), meta(256)
    last = captured("sm_90", launch_batch_norm.backward, backward, order, *parameters)
    assert [item.kernel.__name__ for item in last] == [
        "forward_terms_kernel", "moments_kernel", "backward_terms_kernel", "gate_backward_kernel",
        "gate_backward_finish_kernel", "batch_norm_backward_kernel", "affine_backward_kernel",
    ]  # fmt: skip
    statistics, *_ = [compiled_within(REGISTERS, item) for item in (*launches[:2], last[5])]
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
