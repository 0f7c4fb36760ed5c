"""Which function of its logits a gate is: tested on numbers on which no two functions agree."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, fx

from ..reasons import GATE_FUNCTION, NoMatchError
from .graph import execute, op_name

# The gate functions, and how far in float64 another way to write one may be off: some units in the last place
# of the result; in hard-sigmoid also of the 0.5 that z / 6 is added to.
GATES: dict[str, tuple[Callable[[Tensor], Tensor], float, float]] = {
    "sigmoid": (torch.sigmoid, 1e-14, 0.0),
    "hard_sigmoid": (torch.nn.functional.hardsigmoid, 1e-14, 2.0**-52),
}


def gate_function(calls: Sequence[fx.Node]) -> str:
    """Name the function of one number that calls in a row compute: sigmoid or hard_sigmoid."""
    result = gate_points().clone()
    for node in calls:
        try:
            result = execute(node, dict.fromkeys(node.all_input_nodes, result).__getitem__)
        except (RuntimeError, TypeError) as error:
            raise NoMatchError(GATE_FUNCTION, str(error)) from error
    for name in GATES:
        if is_gate(name, result):
            return name
    raise NoMatchError(GATE_FUNCTION, " then ".join(map(op_name, calls)) or "no gate function")


def is_gate(name: str, result: Tensor) -> bool:
    """Return whether these are the values of that gate function at `gate_points`, with the same zeros."""
    function, rtol, atol = GATES[name]
    expected = function(gate_points())
    close = torch.allclose(result, expected, rtol=rtol, atol=atol, equal_nan=True)
    return close and torch.equal(result == 0, expected == 0)


@functools.cache
def gate_points() -> Tensor:
    """Numbers on which two functions differ if they differ anywhere: float64, exact in every sum with 3.

    Dense to 1024, where sigmoid is 0 and 1 in float64; close to hard-sigmoid's corners; far out; not finite.
    """
    dense = torch.arange(-(2**14), 2**14 + 1, dtype=torch.float64, device="cpu") / 16
    steps = torch.logspace(-40, -5, 36, base=2.0, dtype=torch.float64, device="cpu")
    near = [corner + side * steps for corner in (-3, 0, 3) for side in (-1, 1)]
    far = torch.logspace(11, 120, 110, base=2.0, dtype=torch.float64, device="cpu")
    odd = torch.tensor([torch.nan, torch.inf, -torch.inf], dtype=torch.float64, device="cpu")
    return torch.cat([dense, *near, far, -far, odd])
