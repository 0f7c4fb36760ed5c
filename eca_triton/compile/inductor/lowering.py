"""How Inductor lowers the `eca` op: to a template that reads the map once, else to the gate and native code.

Decided here and not in the plan, because only here the layout that Inductor gave the map is known.
Both ways leave what follows (gain, residual, activation, a second result) to Inductor's own fusion. A package
that runs without Python calls no operator of ours: there the second way is native code altogether.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable
from typing import Any

import sympy  # type: ignore[import-untyped]
import torch
from torch._inductor import config as inductor_config
from torch._inductor import ir
from torch._inductor.lowering import fallback_handler, lowerings, register_lowering
from torch._inductor.virtualized import V, ops

from ...launch.call import KERNEL_DTYPES
from ...ops.schema import ECA, GATE, RESCALED_PROJECTION
from ...reference.arguments import SiteArguments
from ...tuning.config import OPTIONS, Device, constants
from ...tuning.families.blocks import power_of_2
from ...tuning.layout import common_layout
from ...tuning.problem import EcaProblem
from ...tuning.select import select
from ..compat import EPILOGUES_IN_ANY_LOOPS
from ..match.graph import memory_order
from ..reasons import NotLoweredError
from .epilogue import fits
from .lowering_projection import lower_rescaled_projection, stored
from .native import lower_natively
from .template import MUTATED, attempt, template

log = logging.getLogger("eca_triton")
aten = torch.ops.aten
# What comes before pooling, in Inductor's operators: all of `reference.PRE_ACTIVATIONS`.
PRE_ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    "identity": lambda v: v,
    "relu": lambda v: ops.relu(v),
    "silu": lambda v: v * ops.sigmoid(v),
}
VECTORS = ("weight", "bias", "bn_mean", "bn_var", "bn_weight", "bn_bias")


@functools.cache
def install() -> None:
    """Tell Inductor how to lower the ops, once per process."""
    for op, lower in ((ECA, lower_eca), (RESCALED_PROJECTION, lower_rescaled_projection)):
        register_lowering(op, type_promotion_kind=None)(functools.partial(_lowered, op, lower))


def _lowered(op: Any, lower: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Lower a call by `lower`, else as the call itself: whatever goes wrong, the program compiles."""
    try:
        return lower(*args, **kwargs)
    except NotLoweredError:
        raise
    except Exception:
        if V.graph.aot_mode:  # where nobody could run it
            raise
        log.debug("%s is not lowered", op, exc_info=True)
        return _call(op, *args, **kwargs)


def lower_eca(*args: Any, **kwargs: Any) -> Any:
    """The op in Inductor's IR; arguments are those of its schema, with Inductor's boxes for tensors."""
    a: Any = SiteArguments(*args, **kwargs)
    tail = a.residual is not None or a.gain != 1.0 or a.activation != "identity"
    if tail or a.x.get_device().type != "cuda" or a.x.get_dtype() not in KERNEL_DTYPES:
        return lower_natively(ECA) if V.graph.aot_mode else _call(ECA, *args, **kwargs)
    a = a._replace(out_dtype=a.out_dtype or a.x.get_dtype())
    block = attempt(_block, a)
    if block is None:
        return lower_natively(ECA) if V.graph.aot_mode else _native(a)
    return block


def _block(a: Any) -> Any:
    """The map [N, C, *spatial] as a template makes it, or None where no kernel takes it."""
    x: Any = ir.ExternKernel.realize_input(a.x)
    n, *rest = x.get_size()
    # The batch may be symbolic, since only the grid depends on it.
    static = all(isinstance(size, (int, sympy.Integer)) for size in rest)
    if not static or not isinstance(x.get_layout(), ir.FixedLayout) or not inductor_config.epilogue_fusion:
        return None
    c, *spatial = (int(size) for size in rest)
    order = memory_order(x.get_size(), x.get_stride())
    if order is None or not fits(V.graph.current_node, V.graph.env, order):
        return None
    contiguous, hw = order[-1] != 1, math.prod(spatial)
    kernel, config = _choice(a, x, c, hw, contiguous)
    if config is None:
        return None

    # Where only loops that look alike are fused, a contiguous result has the map's own dims, and no vector
    # may run over the end of a row.
    flat = contiguous and EPILOGUES_IN_ANY_LOOPS
    if contiguous and not flat and spatial[-1] % (config.vec if kernel == "tile" else config.vec_hw):
        return None
    size = [n, c * hw] if flat else [n, c, *spatial] if contiguous else [n, *spatial, c]
    programs, scratch, own = _launch(kernel, config, x, n, c, hw, contiguous)
    vectors = {name.upper(): stored(getattr(a, name)) for name in VECTORS if getattr(a, name) is not None}
    inputs = {"X": x, **vectors, **scratch}
    taps = int(a.weight.get_numel())
    out: Any = template(kernel).generate(
        input_nodes=tuple(inputs.values()),
        layout=ir.FixedLayout(x.get_device(), a.out_dtype, size, ir.FlexibleLayout.contiguous_strides(size)),
        num_stages=1,
        num_warps=config.num_warps,
        call_sizes=[programs],
        mutated_inputs=[buffer for name, buffer in inputs.items() if name in MUTATED] or None,
        INPUTS=tuple(inputs),
        OPTIONAL=tuple(name.upper() for name in VECTORS),
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
        **own,
    )
    out = out.output_node()
    if contiguous:
        return lowerings[aten.view](out, [n, c, *spatial])
    return lowerings[aten.permute](out, [0, len(size) - 1, *range(1, len(size) - 1)])


def _choice(a: Any, x: Any, c: int, hw: int, contiguous: bool) -> tuple[str, Any]:
    """The kernel and its config, or None where two passes are best."""
    n = V.graph.sizevars.optimization_hint(x.get_size()[0])
    strides = (c * hw, hw, 1) if contiguous else (c * hw, 1, c)
    layout = common_layout((n, c, hw), strides, strides)  # x and out, as the op's own call has them: one key
    front = a.bn_mean is not None or a.pre_activation != "identity"
    device = Device.of(torch.cuda.get_device_properties(x.get_device()))
    taps = int(a.weight.get_numel())
    largest = max(x.get_dtype().itemsize, a.out_dtype.itemsize)
    choice = select(EcaProblem(layout, x.get_dtype(), largest, device, "forward", taps, front=front))
    return choice.kernel, choice.config


def _launch(
    kernel: str, config: Any, x: Any, n: Any, c: int, hw: int, contiguous: bool
) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """Return the number of programs, the buffers that they need beside their inputs, and their constants."""
    found = constants(config, OPTIONS)
    programs = n * -(-c // config.block_c)
    if kernel != "lagged":
        return programs, {}, found
    chunks = -(-hw // config.block_hw)
    found |= {"CHUNKS": chunks, "STRIDE_C": hw if contiguous else 1, "STRIDE_HW": 1 if contiguous else c}
    device = x.get_device()
    arrived = lowerings[aten.full]([n + 1], 0, dtype=torch.int32, device=device)
    arrived.realize()
    # Partial sums, means and gates.
    sums = lowerings[aten.empty_strided]([n * (chunks + 2) * c], [1], dtype=torch.float32, device=device)
    return programs * chunks + config.lag, {"SCRATCH": sums, "ARRIVED": arrived}, found


def _native(a: Any) -> Any:
    """The gate by its op, which reads the map once, and the rescaling in Inductor's own code."""
    options = {"bn_eps": a.bn_eps, "pre_activation": a.pre_activation, "circular": a.circular, "gate": a.gate}
    gate = _call(GATE, a.x, *(getattr(a, name) for name in VECTORS), **options, out_dtype=torch.float32)
    load, load_gate, activate = a.x.make_loader(), gate.make_loader(), PRE_ACTIVATIONS[a.pre_activation]
    mean, var, scale, shift = (
        None if vector is None else vector.make_loader()
        for vector in (a.bn_mean, a.bn_var, a.bn_weight, a.bn_bias)
    )

    def fp32(value: Any) -> Any:
        return ops.to_dtype(value, torch.float32)

    def rescaled(index: list[Any]) -> Any:
        v, channel = fp32(load(index)), [index[1]]
        if mean is not None and var is not None:
            eps = ops.constant(a.bn_eps, torch.float32)
            v = (v - fp32(mean(channel))) * ops.rsqrt(fp32(var(channel)) + eps)
            v = v if scale is None else v * fp32(scale(channel))
            v = v if shift is None else v + fp32(shift(channel))
        return ops.to_dtype(activate(v) * load_gate(index[:2]), a.out_dtype)

    return ir.Pointwise.create(
        device=a.x.get_device(), dtype=a.out_dtype, inner_fn=rescaled, ranges=a.x.get_size()
    )


def _call(op: Any, *args: Any, **kwargs: Any) -> Any:
    """The op itself, as a kernel that Inductor knows nothing about."""
    return fallback_handler(op, add_to_fallback_set=False)(*args, **kwargs)  # type: ignore[no-untyped-call]
