"""Our operators as Inductor's own code, for compiled programs that call nothing of ours when they run."""

from __future__ import annotations

from typing import Any

from torch._inductor.decomposition import select_decomp_table
from torch._inductor.lowering import process_subgraph_nodes
from torch._inductor.virtualized import V

from ...ops.decompositions import decomposition_table
from .inline import traced


def lower_natively(op: Any) -> Any:
    """Lower the call that Inductor is at by the operators of torch that compute the same."""
    node = V.graph.current_node
    table = select_decomp_table() | decomposition_table()
    body = traced(table[op], node, table)
    return process_subgraph_nodes(body, [V.graph.env[given] for given in node.all_input_nodes])
