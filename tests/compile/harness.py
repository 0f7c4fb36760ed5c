"""Dynamo graphs, lowered but not compiled: what the tests of recognition and of numbers run on."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._dynamo.backends.registry import lookup_backend

from eca_triton.compile.passes import lower_graph
from eca_triton.compile.settings import Settings

OLDEST = torch.__version__.startswith("2.11.")
"""Whether this is the oldest torch that is supported: it runs what could differ there, for CI's time."""
WHOLE = os.environ.get("ECA_TRITON_FULL_DEPTH") == "1"
"""Whether networks of timm have all their blocks: otherwise `network` cuts the deepest."""


class Lowering:
    """A backend for torch.compile that lowers every ECA site and hands the graph on to the backend `then`.

    `device`: plan as though the maps were there, "cuda" for what a GPU gets; `plan`: the only one allowed.

    Attributes:
        graphs: the lowered graphs, in the order in which Dynamo delivered them.
        sites: the records of the sites that were lowered.
        rejected: the records of the sites and candidates that were left alone.
    """

    def __init__(self, then: str = "eager", device: str | None = None, plan: str = "auto") -> None:
        self.then: Callable = lookup_backend(then)
        self.settings = Settings(force=True, device=device, plan=plan)
        self.graphs: list[fx.GraphModule] = []
        self.records: list = []

    def __call__(self, gm: fx.GraphModule, example_inputs: list[Tensor]) -> Callable:
        self.records += lower_graph(gm, self.settings)
        self.graphs.append(gm)
        return self.then(gm, example_inputs)

    @property
    def plans(self) -> list[str]:
        return [record.decision.plan for record in self.records]

    @property
    def reasons(self) -> list[str | None]:
        return [record.decision.reason for record in self.records]

    @property
    def sites(self) -> list:
        return [record for record in self.records if record.lowered]

    @property
    def rejected(self) -> list:
        return [record for record in self.records if not record.lowered]

    def compile(self, model: nn.Module, dynamic: bool | None = False) -> Callable:
        """Compile model as one graph, forgetting what was compiled before."""
        torch._dynamo.reset()
        return torch.compile(model, backend=self, fullgraph=True, dynamic=dynamic)

    def nodes(self) -> Iterator[fx.Node]:
        """All nodes of all graphs and their sub-graphs."""
        for graph in self.graphs:
            for module in graph.modules():
                if isinstance(module, fx.GraphModule):
                    yield from module.graph.nodes

    def calls(self, *targets: Callable) -> list[fx.Node]:
        return [node for node in self.nodes() if node.target in targets]

    def own_calls(self) -> list[str]:
        """The names of our ops in the graphs: "gate", "gate_from_pool" or "eca"."""
        names = [str(node.target) for node in self.nodes() if node.op == "call_function"]
        return [name.split(".")[1] for name in names if name.startswith("eca_triton.")]


def results(returned: Any) -> tuple[Any, ...]:
    """What a network returns, as a tuple."""
    return returned if isinstance(returned, tuple) else (returned,)


def leaf(x: Tensor) -> Tensor:
    """A copy of x with the same strides that requires grad."""
    return x.detach().clone(memory_format=torch.preserve_format).requires_grad_()


class Inside(nn.Module):
    """A block whose map is an intermediate of the network, not its input."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> object:
        return self.block(x * 2)
