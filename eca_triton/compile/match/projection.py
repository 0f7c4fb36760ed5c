"""The 1x1 convolution before a site: a matrix product, which the mean over the positions commutes with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import fx

from .batch_norm import BatchNorm
from .graph import as_tuple, bind, op_name, tensor_users, value
from .mutation import changed_between, same_grad_mode

POINTWISE_CONVOLUTIONS = {"conv1d", "conv2d", "conv3d"}
AUTOCAST = {"_enter_autocast", "_exit_autocast"}


@dataclass(frozen=True)
class Projection:
    """A convolution of one tap with stride 1 and one group, whose result the site and its batch norm read."""

    node: fx.Node
    input: fx.Node
    weight: fx.Node
    bias: fx.Node | None

    @property
    def expansion(self) -> float:
        """Channels of the input per channel of the result: 1/4 in a bottleneck, 6 in an inverted one."""
        channels, reduced = value(self.weight).shape[:2]
        return float(reduced) / float(channels)

    def stays_until(self, last: fx.Node, *others: fx.Node | None) -> bool:
        """Return whether the product can be made at `last`: what it and `others` read is the same there."""
        read = [node for node in (self.input, self.weight, self.bias, *others) if node is not None]
        if any(changed_between(node, self.node, last) for node in read):
            return False
        node = self.node
        while node is not last:
            if op_name(node) in AUTOCAST:
                return False
            node = node.next
        return same_grad_mode([self.node, last])


def projection_of(x: fx.Node, readers: set[fx.Node], batch_norm: BatchNorm | None) -> Projection | None:
    """The 1x1 convolution that makes `x`, or the input of `batch_norm`, and is read there alone."""
    node = x if batch_norm is None else batch_norm.input
    if op_name(node) not in POINTWISE_CONVOLUTIONS:
        return None
    if set(tensor_users(node)) != (readers if batch_norm is None else {batch_norm.reader}):
        return None
    arguments = bind(node)
    u, weight = value(arguments["input"]), value(arguments["weight"])
    # An input of one dimension less is an image without a batch.
    if u.dim() != weight.dim() or not all(isinstance(size, int) for size in weight.shape):
        return None
    if weight.shape[2:].numel() != 1 or arguments.get("groups", 1) != 1:
        return None
    if set(as_tuple(arguments.get("stride", 1))) != {1} or not _pads_nothing(arguments.get("padding", 0)):
        return None
    return Projection(node, arguments["input"], arguments["weight"], arguments.get("bias"))


def _pads_nothing(padding: Any) -> bool:
    # "same" is nothing for one tap.
    return isinstance(padding, str) or set(as_tuple(padding)) == {0}
