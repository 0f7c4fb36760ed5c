"""Host side of what is computed before a 1x1 convolution, from its pooled input, and of the convolution."""

from __future__ import annotations

import torch
from torch import Tensor

from ..kernels.product import product_kernel
from ..kernels.projection import projection_kernel
from ..reference.arguments import ProjectionArguments
from ..tuning.config import Choice, constants
from ..tuning.families import product
from ..tuning.families.product import ProductConfig
from ..tuning.families.projection import projection_config
from . import devices
from .call import ProductCall, vectors
from .replay import run


def gates(a: ProjectionArguments, out: Tensor, shift: Tensor | None) -> None:
    """Fills out [N, C] (contiguous, any float dtype); tensors of the arguments have any strides.

    With shift, like out, the two are the gates times the factor and the summand that follow the product.

    For 16-bit weights the product is one of TF32 where a GPU has it: they are exact in it, and the pooled
    values have more digits than the map that they are means of. For fp32 weights it is exact fp32.
    """
    (n, i), c = a.pooled.shape, a.projection.shape[0]
    taps, device = a.weight.numel(), devices.device_of(a.pooled.device)
    config = projection_config(n, c, taps, a.projection.dtype.itemsize, device)
    blocks = -(-n // config.block_n) * -(-c // (config.block_c - taps + 1))
    with devices.on_device_of(a.pooled):
        run(
            projection_kernel, (blocks,),
            a.pooled, a.projection, a.projection_bias, a.weight, a.bias, *vectors(a.bn), a.bn_eps, out, shift,
            n, c, i, *a.pooled.stride(), *a.projection.stride()[:2], a.weight.stride(-1),
            K=taps, CIRCULAR=a.circular, GATE=a.gate, **constants(config),
        )  # fmt: skip


def takes(x: Tensor) -> bool:
    """Return whether `rescaled` is for x. Triton's interpreter multiplies the bits of bf16."""
    if x.dtype == torch.bfloat16 and x.device.type == "cpu":
        return False
    return product.takes(x.element_size(), devices.device_of(x.device))


def rescaled(call: ProductCall) -> None:
    """Fills call.out."""
    x = call.a.x
    with devices.on_device_of(x):
        launched(call, devices.chosen(x, call.problem(devices.device_of(x.device))))


def launched(call: ProductCall, choice: Choice) -> None:
    """Fills call.out as chosen; there is one kernel.

    For 16-bit maps the product is exact but for its fp32 sums; fp32 ones take no tensor cores.
    """
    a, config, layout = call.a, choice.config, call.layout
    assert isinstance(config, ProductConfig)
    run(
        product_kernel, (layout.n * config.tiles(layout),),
        a.x, a.projection.flatten(1).to(a.x.dtype).contiguous(), a.factor.contiguous(),
        None if a.summand is None else a.summand.contiguous(), call.out, layout.c,
        HW=layout.hw, REDUCED=a.x.shape[1], PRECISION="ieee", **constants(config),
    )  # fmt: skip
