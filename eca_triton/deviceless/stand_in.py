"""A model and its inputs with fake tensors in the place of real ones: structure and shapes, no storage."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn
from torch._guards import TracingContext
from torch._subclasses.fake_tensor import FakeTensorMode

from ..compile.compat import needs_data

T = TypeVar("T")
aten = torch.ops.aten
ASSUMED = (
    "elements that Python asks for, as by .item(), are taken for 1, masks for full: there are no data here"
)


class Fakes(FakeTensorMode):  # type: ignore[no-untyped-call]  # mypy means __init_subclass__
    """Fake tensors that go on where a program between two graphs asks for their elements.

    Each element is taken for 1, and a mask to be true everywhere. What is traced by Dynamo is left to it.

    Attributes:
        assumed: Whether a program asked.
    """

    assumed = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Answer what fake tensors cannot; the rest is theirs."""
        answer = ANSWERS.get(func)
        if answer is None or TracingContext.try_get() is not None or not isinstance(args[0], Tensor):
            return super().__torch_dispatch__(func, types, args, kwargs)
        self.assumed = True
        with self:
            return answer(*args)

    def lacks_data(self, error: Exception) -> bool:
        """Return whether a program may have raised this only because its tensors lack their elements."""
        return self.assumed or needs_data(error)


class NoDataError(RuntimeError):
    """Raised where a program cannot go on without the elements of its tensors."""


def _element(x: Tensor) -> bool | int | float:
    return True if x.dtype == torch.bool else 1.0 if x.is_floating_point() else 1


ANSWERS: dict[Any, Callable[..., Any]] = {
    aten.item.default: _element,
    aten._local_scalar_dense.default: _element,
    aten.is_nonzero.default: lambda x: True,
    aten.equal.default: lambda x, other: True,
    aten.nonzero.default: lambda x: x.new_zeros((x.numel(), x.dim()), dtype=torch.int64),
    aten.masked_select.default: lambda x, mask: x.new_empty(x.numel()),
}


class StandIn:
    """Makes fake tensors on one device, of one dtype and layout if given.

    Args:
        mode: Fake tensors belong to it.
        device: Device that they seem to be on.
        dtype: Replaces every floating dtype.
        channels_last: 4-dimensional tensors get channels-last strides.
    """

    def __init__(
        self, mode: FakeTensorMode, device: torch.device, dtype: torch.dtype | None, channels_last: bool
    ) -> None:
        self.mode = mode
        self.device = device
        self.dtype = dtype
        self.channels_last = channels_last

    def model(self, model: nn.Module) -> nn.Module:
        """A copy that shares nothing with the model. Tensors used in several places stay shared within it."""
        memo: dict[int, Any] = {id(tensor): self.tensor(tensor) for tensor in _tensors_of(model)}
        return copy.deepcopy(model, memo)

    def inputs(self, inputs: T) -> T:
        """The same nest of containers with fake tensors."""
        result: T = pytree.tree_map_only(Tensor, self.tensor, inputs)
        return result

    def tensor(self, tensor: Tensor) -> Tensor:
        """A fake tensor of the same shape, strides and requires_grad; a parameter stays one."""
        dtype = self.dtype if self.dtype is not None and tensor.is_floating_point() else tensor.dtype
        with self.mode:
            fake = torch.empty_strided(tensor.shape, tensor.stride(), dtype=dtype, device=self.device)
            if self.channels_last and fake.ndim == 4:
                fake = fake.contiguous(memory_format=torch.channels_last)
            if isinstance(tensor, nn.Parameter):
                return nn.Parameter(fake, requires_grad=tensor.requires_grad)
            return fake.requires_grad_(tensor.requires_grad)


def _tensors_of(model: nn.Module) -> Iterator[Tensor]:
    """Parameters, buffers and the tensors that a module keeps as plain attributes."""
    for module in model.modules():
        for value in (*module._parameters.values(), *module._buffers.values(), *vars(module).values()):
            if isinstance(value, Tensor):
                yield value
