"""How Inductor lowers the `eca` op: to a template that reads the map once, else to the gate and native code.

Decided here and not in the plan, because only here the layout that Inductor gave the map is known.
Both ways leave what follows (gain, residual, activation, a second result) to Inductor's own fusion.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import sympy
import torch
from torch import fx
from torch._inductor import config as inductor_config
from torch._inductor import ir
from torch._inductor.lowering import fallback_handler, lowerings, register_lowering
from torch._inductor.virtualized import V, ops

from ..ops.schema import ECA, GATE, SiteArguments
from ..tuning.choice import choose
from ..tuning.config import Device
from ..tuning.heuristic import power_of_2
from ..tuning.layout import common_layout
from .compat import EPILOGUES_IN_ANY_LOOPS
from .plan import KERNEL_DTYPES
from .template import template

log = logging.getLogger("eca_triton")
aten = torch.ops.aten
REDUCTIONS = {aten.mean, aten.sum, aten.amax}


@functools.cache
def install() -> None:
    """Tell Inductor how to lower the op, once per process."""
    register_lowering(ECA, type_promotion_kind=None)(lower_eca)


def lower_eca(*args: Any, **kwargs: Any) -> Any:
    """The op in Inductor's IR; arguments are those of its schema, with Inductor's boxes for tensors."""
    a = SiteArguments(*args, **kwargs)
    tail = a.residual is not None or a.gain != 1.0 or a.activation != "identity"
    if tail or a.x.get_device().type != "cuda" or a.x.get_dtype() not in KERNEL_DTYPES:
        return fallback_handler(ECA, add_to_fallback_set=False)(*args, **kwargs)
    try:
        block = _block(a)
    except Exception:  # Inductor's private surface is not what it was; the other way needs little of it
        log.debug("no template for %s", a, exc_info=True)
        block = None
    return _native(a) if block is None else block


def _block(a: SiteArguments) -> Any:
    """The map [N, C, *spatial] as a template makes it, or None where no kernel takes it."""
    x = ir.ExternKernel.realize_input(a.x)
    n, *rest = x.get_size()
    # The batch may be symbolic, since only the grid depends on it.
    static = all(isinstance(size, (int, sympy.Integer)) for size in rest)
    if not static or not isinstance(x.get_layout(), ir.FixedLayout) or not inductor_config.epilogue_fusion:
        return None
    c, *spatial = (int(size) for size in rest)
    hw, taps, dtype = math.prod(spatial), int(a.weight.get_numel()), a.out_dtype or x.get_dtype()
    order = _memory_order(x)
    if order is None or not _neighbours_walk_along(order):
        return None
    contiguous = order[-1] != 1
    properties = torch.cuda.get_device_properties(x.get_device())
    choice = choose(
        common_layout(
            (V.graph.sizevars.optimization_hint(n), c, hw), (c * hw, hw, 1) if contiguous else (c * hw, 1, c)
        ),
        x.get_dtype().itemsize,
        max(x.get_dtype().itemsize, dtype.itemsize),
        taps,
        a.bn_mean is not None or a.pre_activation != "identity",
        Device(num_sms=properties.multi_processor_count, warp_size=properties.warp_size),
        True,
    )
    config = choice.config
    if config is None:
        return None

    # Where loops must look alike to be fused, a contiguous result has the map's dims, and vectors may not
    # run over the end of one.
    flat = contiguous and EPILOGUES_IN_ANY_LOOPS
    if contiguous and not flat and spatial[-1] % (config.vec if choice.kernel == "tile" else config.vec_hw):
        return None
    size = [n, c * hw] if flat else [n, c, *spatial] if contiguous else [n, *spatial, c]

    scratch: dict[str, Any] = {}
    constants = {"BLOCK_HALO": power_of_2(max(taps - 1, 1))}
    programs = n * -(-c // config.block_c)
    if choice.kernel == "lagged":
        chunks = -(-hw // config.block_hw)
        programs = programs * chunks + config.lag
        scratch["SCRATCH"] = _scratch(x, n * (chunks + 2) * c, torch.float32)
        scratch["ARRIVED"] = _scratch(x, n + 1, torch.int32, zero=True)
        constants = {
            "CHUNKS": chunks,
            "STRIDE_C": hw if contiguous else 1,
            "STRIDE_HW": 1 if contiguous else c,
        }
    constants |= {name.upper(): value for name, value in asdict(config).items() if name != "num_warps"}
    vectors = {
        "WEIGHT": a.weight,
        "BIAS": a.bias,
        "BN_MEAN": a.bn_mean,
        "BN_VAR": a.bn_var,
        "BN_WEIGHT": a.bn_weight,
        "BN_BIAS": a.bn_bias,
    }
    stored = {name: _stored(node) for name, node in vectors.items() if node is not None}
    inputs = {"X": x, **stored, **scratch}
    out = (
        template(choice.kernel)
        .generate(
            input_nodes=list(inputs.values()),
            layout=ir.FixedLayout(x.get_device(), dtype, size, ir.FlexibleLayout.contiguous_strides(size)),
            num_stages=1,
            num_warps=config.num_warps,
            call_sizes=[programs],
            mutated_inputs=list(scratch.values()) or None,
            INPUTS=tuple(inputs),
            SPATIAL=len(spatial),
            FLAT=flat,
            C=c,
            HW=hw,
            K=taps,
            BLOCK_K=power_of_2(taps),
            CIRCULAR=a.circular,
            GATE=repr(a.gate),
            PRE_ACTIVATION=repr(a.pre_activation),
            BN_EPS=a.bn_eps,
            **constants,
        )
        .output_node()
    )
    if contiguous:
        return lowerings[aten.view](out, [n, c, *spatial])
    return lowerings[aten.permute](out, [0, len(size) - 1, *range(1, len(size) - 1)])


def _native(a: SiteArguments) -> Any:
    """The gate by its op, which reads the map once, and the rescaling in Inductor's own code."""
    options = {"bn_eps": a.bn_eps, "pre_activation": a.pre_activation, "circular": a.circular, "gate": a.gate}
    gate_op = fallback_handler(GATE, add_to_fallback_set=False)
    load_gate = gate_op(*a[:7], **options, out_dtype=torch.float32).make_loader()
    load = a.x.make_loader()
    mean, var, scale, shift = (None if vector is None else vector.make_loader() for vector in a[3:7])

    def rescaled(index: list[Any]) -> Any:
        v, channel = fp32(load(index)), [index[1]]
        if mean is not None and var is not None:
            v = (v - fp32(mean(channel))) * ops.rsqrt(
                fp32(var(channel)) + ops.constant(a.bn_eps, torch.float32)
            )
            v = v if scale is None else v * fp32(scale(channel))
            v = v if shift is None else v + fp32(shift(channel))
        if a.pre_activation == "relu":
            v = ops.maximum(v, ops.constant(0.0, torch.float32))
        elif a.pre_activation == "silu":
            v = v * ops.sigmoid(v)
        return ops.to_dtype(v * load_gate(index[:2]), a.out_dtype or a.x.get_dtype())

    return ir.Pointwise.create(
        device=a.x.get_device(),
        dtype=a.out_dtype or a.x.get_dtype(),
        inner_fn=rescaled,
        ranges=a.x.get_size(),
    )


def fp32(value: Any) -> Any:
    return ops.to_dtype(value, torch.float32)


def _memory_order(x: Any) -> list[int] | None:
    """The dims of x as they follow each other in memory: contiguous or channels-last, else None."""
    dims = list(range(len(x.get_size())))
    return next(
        (order for order in (dims, [0, *dims[2:], 1]) if _dense(x.get_size(), x.get_stride(), order)), None
    )


def _dense(sizes: Sequence[Any], strides: Sequence[Any], order: list[int]) -> bool:
    """Whether a tensor has no gaps, its dims in memory in this order, the last one innermost."""
    step = 1
    for dim in reversed(order):
        if sizes[dim] != 1 and not V.graph.sizevars.statically_known_equals(strides[dim], step):
            return False
        step = step * sizes[dim]
    return True


def _neighbours_walk_along(order: list[int]) -> bool:
    """Whether the pointwise calls behind the current one can be in its kernel, and lose nothing there.

    They cannot if they also read, or leave to the caller, a map in another order. And a reduction that is the
    only one to read the result would have it from their kernel, without a store.
    """
    root = V.graph.current_node
    behind = _users_of({root})
    fused = [root]
    for node in fused:
        for user in node.users:
            others = [other for other in user.all_input_nodes if other is not node]
            if user.op == "output":
                value = node.meta["val"]
                if not _dense(value.shape, value.stride(), order):
                    return False
            elif _is_view(user.target):
                return False  # what reads the view has dims that are not the map's
            elif getattr(user.target, "overloadpacket", None) in REDUCTIONS:
                if len(node.users) == 1:
                    return False
            elif torch.Tag.pointwise in getattr(user.target, "tags", ()):
                if any(other in behind and other not in fused for other in others):
                    continue  # of a later kernel, whatever order it has
                if not all(_walks_along(V.graph.env.get(other), order) for other in others):
                    return False
                fused += [user] * (user not in fused)
    return True


def _users_of(nodes: set[fx.Node]) -> set[fx.Node]:
    """All calls behind these."""
    found: set[fx.Node] = set()
    todo = list(nodes)
    while todo:
        new = [user for user in todo.pop().users if user not in found]
        found.update(new)
        todo += new
    return found


def _walks_along(box: Any, order: list[int]) -> bool:
    """Whether an operand is in memory in this order, or none of that is known: it is broadcast, or not made."""
    layout = box.maybe_get_layout() if isinstance(box, ir.TensorBox) else None
    if not isinstance(layout, ir.FixedLayout) or len(layout.size) != len(order) or 1 in layout.size[1:]:
        return True
    return _dense(layout.size, layout.stride, order)


def _is_view(target: Any) -> bool:
    returns = target._schema.returns if isinstance(target, torch._ops.OpOverload) else ()
    return any(result.alias_info is not None for result in returns)


def _stored(node: Any) -> Any:
    """A vector in memory, with its elements next to each other."""
    node = ir.ExternKernel.require_contiguous(ir.ExternKernel.realize_input(node))
    node.freeze_layout()
    return node


def _scratch(x: Any, length: Any, dtype: torch.dtype, zero: bool = False) -> Any:
    """A buffer that the template writes."""
    if zero:
        buffer = lowerings[aten.full]([length], 0, dtype=dtype, device=x.get_device())
        buffer.realize()
        return buffer
    return lowerings[aten.empty_strided]([length], [1], dtype=dtype, device=x.get_device())
