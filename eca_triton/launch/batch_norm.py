"""Host side of ECA behind a batch norm that trains: two passes over the maps in either direction.

Between them the batch's statistics are as good as running ones, so the calls' `bn` holds them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..kernels.batch_statistics import batch_statistics_kernel, image_statistics_kernel
from ..tuning.config import constants
from ..tuning.families.passes import batch_statistics_blocks, pass_config
from ..tuning.layout import common_layout
from ..tuning.problem import PassProblem
from . import devices, two_pass
from .call import BackwardCall, EcaCall
from .replay import run, scratch
from .training import arranged, arranged_backward, copy_back, parameter_gradients


def forward(call: EcaCall, unbiased: Tensor) -> None:
    """Fills the outputs, bn_mean and bn_var; unbiased: the other variance.

    Four launches. The call's pre_activation is "identity"; statistics are fp32, of more than one element.
    """
    with devices.on_device_of(call.a.x):
        dense = arranged(call)
        _statistics(dense, unbiased)
        assert dense.pooled is not None, "the means of every image, of which the gates are made"
        two_pass.rescale(dense, dense.pooled[:, None, :], 1.0, None)
        if dense.out is not call.out:
            call.out.copy_(dense.out)


def backward(
    call: BackwardCall,
    d_weight: Tensor | None,
    d_bias: Tensor | None,
    d_bn_weight: Tensor | None,
    d_bn_bias: Tensor | None,
) -> None:
    """Fills what of the call there is, and the parameters' gradients; seven launches at most.

    p_sum and p_dot_x are wanted with d_gate; d_gate where more is than d_residual.
    """
    with devices.on_device_of(call.a.x):
        dense = arranged_backward(call)
        parameters = d_weight, d_bias, d_bn_weight, d_bn_bias
        if dense.d_x is None:
            two_pass.backward(dense)
            if dense.d_gate is not None:
                parameter_gradients(dense, *parameters)
        else:
            pooled = call.a.pooled
            beta = scratch((pooled.shape[1],), torch.float32, pooled.device)
            gamma = scratch(tuple(pooled.shape), torch.float32, pooled.device)
            factor, offset = two_pass.forward_terms(dense, pooled[:, None, :], 1.0, None)
            two_pass.moments(dense, factor, offset, None)
            parameter_gradients(dense, *parameters, beta, gamma)
            two_pass.gradients_of_maps(dense, factor, offset, beta, gamma)
        copy_back(call, dense)


def _statistics(call: EcaCall, unbiased: Tensor) -> None:
    x = call.a.x
    layout = common_layout(x.shape, x.stride())
    n, c, hw = layout.n, layout.c, layout.hw
    device = devices.device_of(x.device)
    config: Any = pass_config(PassProblem(layout, x.dtype, x.element_size(), device, "moments"))
    chunk = -(-hw // (config.splits * config.block_hw)) * config.block_hw
    strides = (hw, 1) if layout.contiguous else (1, c)
    mean, spread = (scratch((n, config.splits, c), torch.float32, x.device) for _ in range(2))
    run(
        image_statistics_kernel, (n * config.tiles(layout),),
        x, mean, spread, c, hw, chunk, *strides, **constants(config, {"window"}),
    )  # fmt: skip
    block_n, block_c = batch_statistics_blocks(n)
    count = n * hw
    run(
        batch_statistics_kernel, (-(-c // block_c),),
        x, mean, spread, call.pooled, call.a.bn_mean, call.a.bn_var, unbiased,
        n, c, hw, chunk, strides[0], 1.0 / count, count / (count - 1),
        SPLITS=config.splits, BLOCK_N=block_n, BLOCK_C=block_c,
    )  # fmt: skip
