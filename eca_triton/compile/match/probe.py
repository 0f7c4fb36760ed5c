"""What a chain of calls does to a map, found by running it on indices instead of listing spellings.

The stand-in for a map x [N, C, *spatial] is an integer tensor that holds n * C + c at every position of
channel c of image n; its spatial strides are 0, so it costs N * C numbers whatever the map's size. Views
are executed on it as they are; a mean or sum over dims may only drop dims along which the stand-in is
constant. Symbolic sizes are replaced by numbers, so that a view that is right only by a coincidence of sizes
does not pass: see `sizes`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from ..reasons import CHANNEL_ORDER, GATE_FUNCTION, GATE_PATH, NOT_MEAN, POOL_PATH, SHARED, NoMatchError
from .graph import DROPOUTS, bind, execute, op_name, symbols_of, tensor_inputs, tensor_users, value
from .sizes import Sizes

RESHAPES = {"view", "reshape", "flatten", "unflatten", "view_as", "reshape_as", "ravel"}
VIEWS = RESHAPES | {
    "squeeze", "unsqueeze", "transpose", "permute", "swapaxes", "swapdims", "movedim", "moveaxis", "t", "T",
    "mT", "expand", "expand_as", "broadcast_to", "getitem", "select", "slice", "rearrange",
}  # fmt: skip
SAME_ELEMENTS = {"contiguous", "clone", "to", "type", "type_as", "float", "half", "bfloat16", "double"}
SCALAR_FUNCTIONS = {
    "sigmoid", "sigmoid_", "expit", "special_expit", "hardsigmoid", "hardsigmoid_", "relu6", "relu6_",
    "hardtanh", "hardtanh_", "clamp", "clamp_", "clip", "clip_", "add", "add_", "iadd", "sub", "sub_", "isub",
    "mul", "mul_", "imul", "multiply", "div", "div_", "truediv", "itruediv", "divide", "neg",
}  # fmt: skip
SCALINGS = {"mul", "mul_", "imul", "multiply", "div", "div_", "truediv", "itruediv", "divide"}
LARGEST_COPY = 2**24


@dataclass
class Probe:
    """A stand-in on its way through a chain of calls."""

    index: Tensor
    sizes: Sizes
    map_positions: int = 1
    symbols: frozenset[Any] = frozenset()
    scale: float = 1.0
    positions: int = 1
    functions: list[fx.Node] = field(default_factory=list)

    @classmethod
    def of_map(cls, shape: Sequence[Any], channel_dim: int, sizes: Sizes) -> Probe:
        """The stand-in for a map of this shape whose channels lie along `channel_dim`."""
        plain = list(sizes(tuple(shape)))
        index = in_order(plain[0] * plain[channel_dim]).view(plain[0], plain[channel_dim])
        for dim in range(1, len(plain)):
            if dim != channel_dim:
                index = index.unsqueeze(dim)
        positions = math.prod(plain) // (plain[0] * plain[channel_dim] or 1)
        return cls(index.expand(plain), sizes, positions, symbols_of(*shape))

    def view(self, node: fx.Node, source: fx.Node, code: str) -> None:
        """Run a view; the tensor arguments beside the stand-in lend their shape only."""
        if op_name(node) in RESHAPES:
            self._reshape(node, source, code)
            return

        def argument(arg: fx.Node) -> Any:
            if arg is source:
                return self.index
            seen = value(arg)
            if isinstance(seen, Tensor):
                return self.index.new_zeros(()).expand(self.sizes(tuple(seen.shape)))
            return self.sizes(seen)

        try:
            self.index = execute(node, argument)
        except (RuntimeError, TypeError, IndexError, ValueError) as error:
            raise NoMatchError(code, f"{op_name(node)} ({error})") from error
        if tuple(self.index.shape) != self.sizes(tuple(value(node).shape)):
            raise NoMatchError(code, f"{op_name(node)} has another shape for other sizes", node)

    def _reshape(self, node: fx.Node, source: fx.Node, code: str) -> None:
        result = value(node)
        shape = self.sizes(tuple(result.shape))
        if result.dtype != value(source).dtype or math.prod(shape) != self.index.numel():
            raise NoMatchError(code, op_name(node))
        try:
            self.index = self.index.view(shape)
        except RuntimeError:  # the real tensor may have strides for it that the stand-in lacks
            if self.index.numel() > LARGEST_COPY:
                raise NoMatchError(code, f"{op_name(node)} mixes channels and positions") from None
            self.index = self.index.reshape(shape)

    def pool(self, node: fx.Node, source: fx.Node) -> None:
        """Run one call between the map and the convolution: a view, a mean or sum, a scaling by a number."""
        name = op_name(node)
        _check_precision(node, source, POOL_PATH)
        if keeps_elements(node):
            return
        if name in VIEWS:
            before = self.index.numel()
            self.view(node, source, POOL_PATH)
            if self.index.numel() != before:
                raise NoMatchError(NOT_MEAN, f"{name} takes a part of the map", node)
        elif name == "reduce":
            self._einops_reduce(node)
        elif name in ("mean", "sum"):
            arguments = bind(node)
            if arguments.get("dim") is None:
                raise NoMatchError(NOT_MEAN, f"{name} over all dims")
            self._reduce(arguments["dim"], bool(arguments.get("keepdim", False)), name)
        elif name.startswith(("adaptive_avg_pool", "avg_pool")):
            self._average_pool(node)
        elif name in SCALINGS:
            self.scale *= self._factor(node)
        else:
            raise NoMatchError(POOL_PATH, name or str(node.target), node)

    def _reduce(self, dims: Any, keepdim: bool, how: str) -> None:
        dims = (dims,) if isinstance(dims, int) else tuple(dims)
        for dim in sorted((d % self.index.dim() for d in dims), reverse=True):
            size = self.index.size(dim)
            if size > 1 and self.index.stride(dim) != 0:
                raise NoMatchError(NOT_MEAN, f"{how} runs over channels, images or reordered positions")
            self.positions *= size
            self.scale *= 1 / size if how == "mean" and size else 1
            self.index = self.index.select(dim, 0) if size else self.index.sum(dim)
            self.index = self.index.unsqueeze(dim) if keepdim else self.index

    def _average_pool(self, node: fx.Node) -> None:
        arguments, spatial = bind(node), int(op_name(node)[-2])
        if op_name(node).startswith("adaptive"):
            whole = _each(self._number(arguments["output_size"]), spatial) == [1] * spatial
        else:
            window = _each(self._number(arguments["kernel_size"]), spatial)
            padding = _each(self._number(arguments.get("padding", 0)), spatial)
            whole = window == list(self.index.shape[-spatial:]) and padding == [0] * spatial
            whole = whole and arguments.get("divisor_override") is None
        if not whole or self.index.dim() != spatial + 2:
            raise NoMatchError(NOT_MEAN, f"{op_name(node)} leaves more than one position per channel")
        self._reduce(range(-spatial, 0), True, "mean")

    def _einops_reduce(self, node: fx.Node) -> None:
        import einops

        given = dict(zip(("pattern", "reduction"), node.args[1:], strict=False)) | node.kwargs
        pattern, how = given.pop("pattern"), given.pop("reduction")
        if how not in ("mean", "sum"):
            raise NoMatchError(NOT_MEAN, f"einops.reduce by {how}")

        def drop(index: Tensor, dims: Sequence[int]) -> Tensor:
            self.index = index
            self._reduce(dims, False, str(how))
            return self.index

        try:
            axes = {axis: self._number(size) for axis, size in given.items()}
            self.index = einops.reduce(self.index, str(pattern), drop, **axes)
        except (RuntimeError, einops.EinopsError) as error:
            raise NoMatchError(POOL_PATH, f"einops.reduce ({error})") from error

    def _number(self, argument: Any) -> Any:
        """The number, or tuple of numbers, behind an argument that may hold nodes and symbolic sizes."""
        if isinstance(argument, (tuple, list)):
            return [self._number(item) for item in argument]
        return self.sizes(value(argument))

    def _factor(self, node: fx.Node) -> float:
        data, factor = node.args[:2] if len(node.args) > 1 else (None, None)
        divides = "div" in op_name(node)
        if not isinstance(value(data), Tensor) and not divides:
            data, factor = factor, data
        number = self._number(factor)
        if not symbols_of(value(factor)) <= self.symbols:  # it may be 0, or another one in the next call
            raise NoMatchError(NOT_MEAN, f"{op_name(node)} by a number that is no size of the map", node)
        if (
            not isinstance(value(data), Tensor)
            or not isinstance(number, (int, float))
            or number == 0
            or node.kwargs
        ):
            raise NoMatchError(POOL_PATH, f"{op_name(node)} by something that is not a number")
        return 1 / number if divides else float(number)

    def pooled_like(self, shape: Sequence[int]) -> None:
        """Raise unless the chain so far is the mean over all positions, channels in order, in this shape."""
        if self.positions != self.map_positions:
            raise NoMatchError(NOT_MEAN, f"{self.positions} of {self.map_positions} positions")
        if not math.isclose(self.scale * self.positions, 1.0, rel_tol=1e-12):
            raise NoMatchError(NOT_MEAN, f"the sum is scaled by {self.scale:g}")
        if list(self.index.shape) != list(shape) or not torch.equal(
            self.index.reshape(-1), in_order(self.index.numel())
        ):
            raise NoMatchError(CHANNEL_ORDER, "on the way to the convolution")

    def gate(self, node: fx.Node, source: fx.Node) -> None:
        """Run one call between the convolution and the multiplication: a view or a function of one number."""
        name = op_name(node)
        _check_precision(node, source, GATE_PATH)
        if name in VIEWS:
            self.view(node, source, GATE_PATH)
        elif name in SCALAR_FUNCTIONS and tensor_inputs(node) == [source]:
            if node.all_input_nodes != [source]:
                raise NoMatchError(GATE_FUNCTION, f"{name} by a number that may be another one", node)
            self.functions.append(node)
        elif not keeps_elements(node):
            raise NoMatchError(GATE_PATH, name or str(node.target), node)

    def channels_lie_along(self, images: int, channels: int, node: fx.Node) -> int:
        """The dim of the channels in the gate, [N, 1, C] or alike, that `node` gives to other readers."""
        first, *rest = self.index.shape
        if (
            first != images
            or channels not in rest
            or not torch.equal(self.index.reshape(-1), in_order(images * channels))
        ):
            raise NoMatchError(SHARED, f"{len(tensor_users(node))} users of {node.name}", node)
        return 1 + rest.index(channels)

    def covers(self, shape: Sequence[int], channel_dim: int) -> None:
        """Raise unless the stand-in, broadcast to `shape`, gives every position its own channel's gate."""
        index, dims = self.index, len(shape)
        if index.dim() > dims:
            raise NoMatchError(CHANNEL_ORDER, "on the way to the multiplication")
        index = index[(None,) * (dims - index.dim())]
        for dim in reversed(range(dims)):
            if dim in (0, channel_dim):
                continue
            if index.size(dim) not in (1, shape[dim]) or (index.size(dim) > 1 and index.stride(dim) != 0):
                raise NoMatchError(CHANNEL_ORDER, "the gate differs between positions")
            index = index.select(dim, 0)
        if list(index.shape) != [shape[0], shape[channel_dim]] or not torch.equal(
            index.reshape(-1), in_order(index.numel())
        ):
            raise NoMatchError(CHANNEL_ORDER, "on the way to the multiplication")


def _check_precision(node: fx.Node, source: fx.Node, code: str) -> None:
    """Raise for a dtype in which a gate is coarser, or finer, than our ops compute it."""
    dtype = value(node).dtype
    if dtype != value(source).dtype and not (dtype.is_floating_point and dtype.itemsize in (2, 4)):
        raise NoMatchError(code, f"{op_name(node)} in {str(dtype).removeprefix('torch.')}", node)


def keeps_elements(node: fx.Node) -> bool:
    """Return whether a call keeps its argument's elements, at most rounded: a copy, dropout in eval mode."""
    if op_name(node) in DROPOUTS:
        return bind(node).get("training") is False
    return op_name(node) in SAME_ELEMENTS and value(node).dtype.is_floating_point


def in_order(numel: int) -> Tensor:
    """0, 1, 2, ... on the CPU, whatever the default device."""
    return torch.arange(numel, device="cpu")


def _each(size: Any, dims: int) -> list[Any]:
    """One size per dim, from one for all or a sequence."""
    sizes = list(size) if isinstance(size, (tuple, list)) else [size]
    return sizes * dims if len(sizes) == 1 else sizes
