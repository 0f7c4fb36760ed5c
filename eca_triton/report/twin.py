"""The same network without ECA: what the attention costs is measured against it."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from torch import Tensor, nn

if TYPE_CHECKING:
    from ..compile.record import SiteRecord


class NoTwinError(Exception):
    """The network cannot be had without its sites; the message says why."""


def without_attention(model: nn.Module, records: Iterable[SiteRecord]) -> nn.Module:
    """A network of the same tensors with `nn.Identity` for every module that is an ECA site.

    Raises:
        NoTwinError: There is no site, or one that is not a module of its own.
    """
    sites = [record for record in records if record.map_bytes]
    if not sites:
        raise NoTwinError("there is no ECA site to take out")
    inline = [record.name for record in sites if record.owner is None]
    if inline:
        raise NoTwinError(f"{inline[0]} holds a site among other code: no module can be taken out")
    twin = copy.deepcopy(model, {id(tensor): tensor for tensor in _tensors(model)})
    attention = {twin.get_submodule(record.owner) for record in sites if record.owner is not None}
    for path, module in list(twin.named_modules(remove_duplicate=False)):
        if module in attention:
            parent, _, name = path.rpartition(".")
            setattr(twin.get_submodule(parent), name, nn.Identity())
    return twin


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    for module in model.modules():
        for value in (*module._parameters.values(), *module._buffers.values(), *vars(module).values()):
            if isinstance(value, Tensor):
                yield value
