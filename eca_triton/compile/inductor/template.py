"""Our one-launch kernels as Inductor templates: their last step is Inductor's own store, epilogue included.

A template's result is dense, and its dims stand in the order of memory: [N, H, W, C] for a channels-last map.
The loops of a pointwise neighbour are in that order too, so Inductor sees that they walk together, and puts
the neighbour before the store.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch._inductor.select_algorithm import SymbolicGridFn, TritonTemplate, TritonTemplateKernel
from torch._inductor.virtualized import V

from ..chain import is_strict
from ..reasons import UNEXPECTED, NotLoweredError

log = logging.getLogger("eca_triton")

# What every template starts with: the kernel's arguments, None for those that this call does not have.
_HEAD = """
{{def_kernel(*INPUTS)}}
{%- for name in OPTIONAL if name not in INPUTS %}
    {{name}} = None
{%- endfor %}
{%- macro spatial(first) %}
{%- for i in range(SPATIAL) %}
    idx_{{i}} = p
    {%- for j in range(i + 1, SPATIAL) %} // {{size(None, first + j)}}{% endfor %}
    {%- if i %} % {{size(None, first + i)}}{% endif %}
{%- endfor %}
{%- endmacro %}
{%- set NAMES = ["idx_0", "idx_1", "idx_2"][:SPATIAL] %}
"""

TILE = (
    """
from eca_triton.kernels.tile import gated_tile, rescaled_chunk
"""
    + _HEAD
    + """
    n, offs_c, mask_c, tile, terms, next_terms = gated_tile(
        tl.program_id(0), X, WEIGHT, BIAS, BN_MEAN, BN_VAR, BN_WEIGHT, BN_BIAS, BN_EPS, 1.0, C, 1,
        HW, K, CIRCULAR, GATE, PRE_ACTIVATION, BLOCK_K, BLOCK_HALO,
        BLOCK_C, BLOCK_HW, CHUNKS, BLOCK_TAIL, VEC, WINDOWED,
    )
    idx_n = n.to(INDEX_DTYPE)
{%- macro chunk(i, width, indent) %}
{%- set shape = ("BLOCK_C", width) %}
{%- filter indent(indent) %}
    offs, mask, value = rescaled_chunk(
        tile[{{i}}], {{i}}, offs_c, mask_c, terms, next_terms, tl.num_programs(0), HW, BN_MEAN is not None,
        PRE_ACTIVATION, BLOCK_HW, CHUNKS, BLOCK_TAIL, VEC, WINDOWED, PACKED,
    )
{%- if FLAT %}
    idx_chw = offs
    {{store_output(["idx_n", "idx_chw"], "value", "mask", 4 + indent, shape)}}
{%- else %}
    idx_c = offs_c[:, None]
    p = offs - idx_c * HW
    {{- spatial(2)}}
    {{store_output(["idx_n", "idx_c"] + NAMES, "value", "mask", 4 + indent, shape)}}
{%- endif %}
{%- endfilter %}
{%- endmacro %}
    for i in tl.static_range(CHUNKS):
    {{- chunk("i", "BLOCK_HW", 4)}}
{%- if BLOCK_TAIL %}
    {{- chunk("CHUNKS", "BLOCK_TAIL", 0)}}
{%- endif %}
"""
)

TILE_CHANNELS_LAST = (
    """
from eca_triton.kernels.tile_channels_last import gated_tile, rescaled_piece
"""
    + _HEAD
    + """
    n, offs_c, mask_c, tile, terms = gated_tile(
        tl.program_id(0), X, WEIGHT, BIAS, BN_MEAN, BN_VAR, BN_WEIGHT, BN_BIAS, BN_EPS, 1.0, 1.0 / HW,
        C, HW, 1, K, CIRCULAR, GATE, PRE_ACTIVATION, BLOCK_K, BLOCK_C, BLOCK_HW, STEPS, BLOCK_HALO,
        HALO_STEPS,
    )
    idx_n = n.to(INDEX_DTYPE)
    idx_c = offs_c[None, :]
    for step in tl.static_range(STEPS):
        p = step * BLOCK_HW + tl.arange(0, BLOCK_HW)[:, None]
        mask = mask_c[None, :] & (p < HW)
        value = rescaled_piece(tile[step], terms, tl.num_programs(0), BN_MEAN is not None, PRE_ACTIVATION)
        {{- spatial(1) | indent(4)}}
        {{store_output(["idx_n"] + NAMES + ["idx_c"], "value", "mask", 8, ("BLOCK_HW", "BLOCK_C"))}}
"""
)

LAGGED = (
    """
from eca_triton.kernels.lagged import draw_ticket, rescaled, sum_task
"""
    + _HEAD
    + """
    N = {{size("X", 0)}}
    MEAN = SCRATCH + N * CHUNKS * C
    GATES = MEAN + N * C
    ticket = draw_ticket(ARRIVED, N)
    sum_task(
        ticket, X, WEIGHT, BIAS, SCRATCH, MEAN, GATES, ARRIVED, BN_MEAN, BN_VAR, BN_WEIGHT, BN_BIAS, BN_EPS,
        1.0 / HW, N, C, HW, STRIDE_C, STRIDE_HW, 1, K, CIRCULAR, GATE, PRE_ACTIVATION, BLOCK_K,
        BLOCK_C, BLOCK_HW, BLOCK_P, BLOCK_G, VEC_C, VEC_HW,
    )
    tasks = N * tl.cdiv(C, BLOCK_C) * tl.cdiv(HW, BLOCK_HW)
    if (ticket >= LAG) & (ticket < LAG + tasks):
        n, offs_c, offs_hw, mask, value = rescaled(
            ticket - LAG, X, WEIGHT, BIAS, SCRATCH, MEAN, GATES, ARRIVED, BN_MEAN, BN_VAR, BN_WEIGHT, BN_BIAS,
            BN_EPS, 1.0, 1.0 / HW, C, HW, STRIDE_C, STRIDE_HW, 1, K, CIRCULAR, GATE, PRE_ACTIVATION, BLOCK_K,
            BLOCK_C, BLOCK_HW, BLOCK_P, BLOCK_G, VEC_C, VEC_HW, PATIENCE,
        )
        idx_n = n.to(INDEX_DTYPE)
        idx_c = offs_c[:, None]
        p = offs_hw[None, :]
{%- set shape = ("BLOCK_C", "BLOCK_HW") %}
{%- if FLAT %}
        idx_chw = idx_c * HW + p
        {{store_output(["idx_n", "idx_chw"], "value", "mask", 8, shape)}}
{%- elif VEC_C > 1 %}
        {{- spatial(1) | indent(4)}}
        {{store_output(["idx_n"] + NAMES + ["idx_c"], "value", "mask", 8, shape)}}
{%- else %}
        {{- spatial(2) | indent(4)}}
        {{store_output(["idx_n", "idx_c"] + NAMES, "value", "mask", 8, shape)}}
{%- endif %}
"""
)

PRODUCT = (
    """
from eca_triton.kernels.product import projected_tile
"""
    + _HEAD
    + """
    n, offs_hw, offs_c, mask, value = projected_tile(
        tl.program_id(0), X, PROJECTION, FACTOR, SUMMAND, C, HW, REDUCED, "ieee", BLOCK_HW, BLOCK_C, BLOCK_I,
    )
    idx_n = n.to(INDEX_DTYPE)
    idx_c = offs_c[None, :]
    p = offs_hw[:, None]
    {{- spatial(1)}}
    {{store_output(["idx_n"] + NAMES + ["idx_c"], "value", "mask", 4, ("BLOCK_HW", "BLOCK_C"))}}
"""
)

MUTATED = {"SCRATCH", "ARRIVED"}
"""Inputs that a template's kernel writes."""

_SOURCES = {"tile": TILE, "tile_channels_last": TILE_CHANNELS_LAST, "lagged": LAGGED, "product": PRODUCT}


@SymbolicGridFn
def grid(programs: Any, _: dict[str, Any]) -> tuple[Any, int, int]:
    """The launch grid of `programs` programs; Inductor calls it with integers or with symbols."""
    return programs, 1, 1


class _Kernel(TritonTemplateKernel):
    """Lets every store derive its own indices: Inductor would leave those of the first to the second.

    It also tells Inductor what to restore where it launches the kernel again to time it, as templates do not.
    """

    def inductor_meta_common(self) -> dict[str, Any]:  # type: ignore[override]  # of the class there
        """Return what the generated code says of the kernel."""
        common: dict[str, Any] = super().inductor_meta_common()  # type: ignore[no-untyped-call]
        buffers = [node.get_name() for name, node in self.named_input_nodes.items() if name in MUTATED]
        arguments = [self.args.input_buffers[buffer] for buffer in buffers]
        return {**common, "mutated_arg_names": arguments}

    @contextmanager
    def set_subgraph_body(self, body_name: str) -> Iterator[None]:
        """Enter the code of one store."""
        with super().set_subgraph_body(body_name):
            for tree in self.range_trees:
                tree.cache_clear()
            yield


class _Template(TritonTemplate):
    kernel_type = _Kernel


@functools.cache
def template(kernel: str) -> TritonTemplate:
    """The template of one of `tuning.choice`'s kernels, or of the "product"."""
    return _Template(f"eca_{kernel}", grid, _SOURCES[kernel])


def attempt(make: Callable[[Any], Any], arguments: Any) -> Any:
    """Lower an op's arguments by the template that `make` fills, or return None where that fails.

    Raises:
        NotLoweredError: it fails, and the compilation is strict.
    """
    try:
        return make(arguments)
    except Exception as error:  # Inductor's surface is not what it was; the other way needs little of it
        if is_strict():
            raise NotLoweredError([(V.graph.current_node.name, UNEXPECTED, repr(error))]) from error
        log.debug("no template for %s", arguments, exc_info=True)
        return None
