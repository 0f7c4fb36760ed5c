"""ReLUs that remember what they let through, and ReLUs that are told: rounding cannot part two such runs.

An element near zero is let through by one correct run and not by another, and what comes after differs by
more than any rounding. A run in float64 that is told the choices of the run that it judges has no such step.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ReLU(nn.Module):
    """Remembers its results, of which those above zero were let through."""

    def __init__(self) -> None:
        super().__init__()
        self.results: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        result = F.relu(x, inplace=True)
        self.results.append(result)
        return result


class GivenReLU(nn.Module):
    """Lets through what it is told; `doubt` is the largest element of which x itself says otherwise.

    As a share of the largest of all. A few roundings: the choices were right.
    """

    def __init__(self) -> None:
        super().__init__()
        self.opened: list[Tensor] = []
        self.doubt = 0.0

    def forward(self, x: Tensor) -> Tensor:
        opened, sizes = self.opened.pop(0), x.detach().abs()
        share = torch.where(opened == (x > 0), 0, sizes).max() / sizes.max()
        self.doubt = max(self.doubt, share.item())
        return x * opened


def _replace(network: nn.Module, old: type[nn.Module], new: type[nn.Module]) -> nn.Module:
    for name, module in list(network.named_modules()):
        if isinstance(module, old):
            network.set_submodule(name, new())
    return network


def remembering(network: nn.Module) -> nn.Module:
    """The network itself, with ReLUs that remember."""
    return _replace(network, nn.ReLU, ReLU)


def told(network: nn.Module) -> nn.Module:
    """A network with ReLUs that remember, itself, with ReLUs that are told."""
    return _replace(network, ReLU, GivenReLU)


def forget(network: nn.Module) -> None:
    """Before a run of which the choices are wanted."""
    for module in network.modules():
        if isinstance(module, ReLU):
            module.results.clear()


def tell(exact: nn.Module, network: nn.Module) -> None:
    """Give the choices of the last run of a network to `exact`, for its next."""
    for name, module in exact.named_modules():
        if isinstance(module, GivenReLU):
            relu = network.get_submodule(name)
            module.opened = [result.detach() > 0 for result in relu.results]


def doubt(exact: nn.Module) -> float:
    """The largest of all its ReLUs'."""
    return max((module.doubt for module in exact.modules() if isinstance(module, GivenReLU)), default=0.0)
