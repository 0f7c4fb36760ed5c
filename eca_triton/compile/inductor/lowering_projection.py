"""How Inductor lowers `rescaled_projection`: to our template, else to the convolution and native code."""

from __future__ import annotations

from typing import Any

import sympy  # type: ignore[import-untyped]
import torch
from torch._inductor import ir
from torch._inductor.lowering import lowerings
from torch._inductor.virtualized import V, ops

from ...reference.arguments import RescaledArguments
from ...tuning.config import OPTIONS, Device, constants
from ...tuning.families.product import ProductConfig, takes
from ...tuning.layout import common_layout
from ...tuning.problem import ProductProblem
from ...tuning.select import select
from .epilogue import fits
from .template import attempt, template

aten = torch.ops.aten
CHANNELS_LAST = [0, 2, 3, 1]


def lower_rescaled_projection(*args: Any, **kwargs: Any) -> Any:
    """The op in Inductor's IR; arguments are those of its schema, with Inductor's boxes for tensors."""
    a: Any = RescaledArguments(*args, **kwargs)
    a = a._replace(out_dtype=a.out_dtype or a.x.get_dtype())
    product = attempt(_product, a)
    return _native(a) if product is None else product


def _product(a: Any) -> Any:
    """The map [N, C, H, W] as our template makes it, channels innermost, or None where that would not fit."""
    n, *rest = a.x.get_size()
    static = all(isinstance(size, (int, sympy.Integer)) for size in rest)
    half = a.x.get_dtype() in (torch.float16, torch.bfloat16) and a.x.get_dtype() == a.projection.get_dtype()
    if not static or len(rest) != 3 or not half or a.x.get_device().type != "cuda":
        return None
    if not _convolves_channels_last() or not fits(V.graph.current_node, V.graph.env, CHANNELS_LAST):
        return None
    reduced, height, width = (int(size) for size in rest)
    c = int(a.projection.get_size()[0])
    device = Device.of(torch.cuda.get_device_properties(a.x.get_device()))
    if not takes(a.x.get_dtype().itemsize, device):
        return None
    config, tiles = _choice(a, c, height * width, reduced, device)
    inputs = {"X": ir.ExternKernel.require_channels_last(ir.ExternKernel.realize_input(a.x))}
    inputs |= {
        name.upper(): stored(getattr(a, name))
        for name in ("projection", "factor", "summand")
        if getattr(a, name) is not None
    }
    size = [n, height, width, c]
    out: Any = template("product").generate(
        input_nodes=tuple(inputs.values()),
        layout=ir.FixedLayout(
            a.x.get_device(), a.out_dtype, size, ir.FlexibleLayout.contiguous_strides(size)
        ),
        num_stages=config.num_stages,
        num_warps=config.num_warps,
        call_sizes=[n * tiles],
        INPUTS=tuple(inputs),
        OPTIONAL=("SUMMAND",),
        SPATIAL=2,
        C=c,
        HW=height * width,
        REDUCED=reduced,
        **constants(config, OPTIONS),
    )
    return lowerings[aten.permute](out.output_node(), [0, 3, 1, 2])


def _choice(a: Any, c: int, hw: int, reduced: int, device: Device) -> tuple[ProductConfig, int]:
    """The config, and how many programs make an image."""
    n = V.graph.sizevars.optimization_hint(a.x.get_size()[0])
    layout = common_layout((n, c, hw), (c * hw, 1, c))
    dtype, summand = a.x.get_dtype(), a.summand is not None
    itemsize = max(dtype.itemsize, a.out_dtype.itemsize)
    choice = select(ProductProblem(layout, dtype, itemsize, device, reduced, summand))
    assert isinstance(choice.config, ProductConfig)
    return choice.config, choice.config.tiles(layout)


def stored(node: Any) -> Any:
    """A vector or a matrix in memory, its elements next to each other."""
    node = ir.ExternKernel.require_contiguous(ir.ExternKernel.realize_input(node))
    node.freeze_layout()
    return node


def _convolves_channels_last() -> bool:
    """Return whether a convolution in this place would take its input and leave its result channels-last."""
    node: Any = V.graph.current_node
    x = node.args[0].meta["val"]
    return bool(V.graph.layout_opt or x.is_contiguous(memory_format=torch.channels_last))


def _native(a: Any) -> Any:
    """The convolution as a library makes it, and the rescaling in Inductor's own code."""
    spatial = len(a.x.get_size()) - 2
    matrix = lowerings[aten.view](a.projection, [*a.projection.get_size()[:2], *[1] * spatial])
    ones, zeros = [1] * spatial, [0] * spatial
    y = lowerings[aten.convolution](a.x, matrix, None, ones, zeros, ones, False, zeros, 1)
    load, factor = y.make_loader(), a.factor.make_loader()
    summand = None if a.summand is None else a.summand.make_loader()

    def rescaled(index: list[Any]) -> Any:
        value = ops.to_dtype(load(index), torch.float32) * ops.to_dtype(factor(index[:2]), torch.float32)
        if summand is not None:
            value = value + ops.to_dtype(summand(index[:2]), torch.float32)
        return ops.to_dtype(value, a.out_dtype)

    return ir.Pointwise.create(
        device=y.get_device(), dtype=a.out_dtype, inner_fn=rescaled, ranges=y.get_size()
    )
