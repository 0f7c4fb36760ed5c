"""The sites of a model, and the distinct calls that they become: traced as for a GPU, without one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ..compile.match.graph import value
from ..compile.match.neighbours import Closing, closing, tail_of
from ..compile.match.where import naming
from ..compile.passes import lower_graph
from ..compile.record import SiteRecord
from ..compile.settings import Settings
from ..deviceless.stand_in import Fakes, StandIn
from ..ops.schema import ECA
from .examples import OF_INFERENCE, TUNED, Example


@dataclass(frozen=True)
class Sites:
    """Calls of our operators in a model.

    Attributes:
        records: Of every site, with the plan that the compiler pass has for it.
        examples: The distinct calls of operators whose kernels can be tuned, and how many sites make each.
    """

    records: tuple[SiteRecord, ...]
    examples: Mapping[Example, int]


def sites_of(
    model: nn.Module, inputs: tuple[Any, ...], *, training: bool, target: str | None = None
) -> Sites:
    """Trace a copy of the model that has no elements, compiled and eager; nothing is computed.

    Inductor decides about layouts when it compiles: it may run a contiguous model channels-last. So a site
    of inference that was traced contiguous counts for both.

    Args:
        model: Any module, in the dtype and layout that it will run in.
        inputs: Its example inputs.
        training: Forward and backward instead of inference; the copy is in training mode.
        target: The GPU that plans are made for, a key of `TARGETS`; None: this machine's, else an H200.
    """
    records: list[SiteRecord] = []
    settings = Settings.from_environment(device="cuda", target=target)
    compiled, eager = _Listener(), _Listener()

    def lowered(gm: fx.GraphModule, _: list[Any]) -> Callable[..., Any]:
        records.extend(lower_graph(gm, settings))

        def run(*args: Any) -> Any:
            with compiled:
                return gm.forward(*args) if training else _Templates(gm, compiled).run(*args)

        return run

    fakes = Fakes()
    # Not on the meta device, where a convolution of channels-last maps makes contiguous ones.
    stand_in = StandIn(fakes, torch.device("cpu"), dtype=None, channels_last=False)
    copy, arguments = stand_in.model(model).train(training), stand_in.inputs(inputs)
    torch._dynamo.reset()
    try:
        with torch.set_grad_enabled(training), fakes, naming(copy):
            with eager:  # a compiler meets our own functions as native code, and runs other operators
                results = copy(*arguments)
            _backward(results, eager)
            _backward(torch.compile(copy, backend=lowered, dynamic=False)(*arguments), compiled)
    finally:
        torch._dynamo.reset()
    calls = compiled.calls
    for example in [each for each in calls if each.operator in OF_INFERENCE and len(each.x.shape) > 3]:
        twin = example.channels_last()
        if twin != example and twin not in calls:
            calls[twin] = calls[example]
    return Sites(tuple(records), calls | eager.calls)


def _backward(results: Any, listener: _Listener) -> None:
    """The backward of all results, if they have one."""
    leaves = [leaf for leaf in pytree.tree_leaves(results) if isinstance(leaf, Tensor) and leaf.requires_grad]
    if leaves:
        total: Any = sum(leaf.sum() for leaf in leaves)
        with listener:
            total.backward()


class _Listener(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the calls of operators that can be tuned; `node`: an `eca` of inference that is being run."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: Counter[Example] = Counter()
        self.node: fx.Node | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in TUNED:
            example = Example.of(func, args, kwargs or {})
            self.calls[example if self.node is None else _in_template(example, self.node)] += 1
        return func(*args, **(kwargs or {}))


def _in_template(example: Example, node: fx.Node) -> Example:
    """The call that a node makes, with the tail that Inductor will fuse behind it, unless it has its own."""
    if example.has_tail:
        return example
    tail = closing(node, tail_of(node), ()) or Closing(1.0, None, "identity", ())
    residual = None if tail.residual is None else value(tail.residual).dtype
    return example.in_template(tail.gain, residual, tail.activation)


class _Templates(fx.Interpreter):
    """Runs a lowered graph of inference, and tells the listener whenever Inductor will ask our template."""

    def __init__(self, gm: fx.GraphModule, listener: _Listener) -> None:
        super().__init__(gm)
        self.listener = listener

    def run_node(self, node: fx.Node) -> Any:
        self.listener.node = node if node.target is ECA else None
        try:
            return super().run_node(node)
        finally:
            self.listener.node = None
