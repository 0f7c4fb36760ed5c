"""What recognition finds: sites, and candidates that it rejected."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import fx

from .batch_norm import BatchNorm
from .graph import bind, op_name, tensor_inputs
from .neighbours import Closing
from .projection import Projection

CONVOLUTIONS = {f"conv{transposed}{dims}d" for transposed in ("", "_transpose") for dims in (1, 2, 3)}
MATRIX_PRODUCTS = {"linear", "matmul"}


@dataclass(frozen=True)
class Site:
    """One ECA site.

    `x` is the map of shape `shape` (ints or SymInts), channels along `channel_dim`; `mul` rescales it and
    `scaled_by` is the operand that holds the gate. `batch_norm` and `activation` ("identity", "relu",
    "silu") make `x` and are read by this site alone. `tail` names what follows, as Inductor fuses it: gain,
    residual, an activation; `end` is the last of these calls; `closing` is all of it, where one op computes
    it. `chain` lists the calls that a lowering makes superfluous, and `shared` those of them whose result,
    the gate, has other readers too, with the dim of its channels. `takes_over`: one op may compute from the
    input of `batch_norm`, which trains, to the end. `projection` is the 1x1 convolution before all this,
    where the gate can be computed from its input.
    """

    name: str
    shape: tuple[Any, ...]
    k: int
    gate: str
    circular: bool
    channel_dim: int
    x: fx.Node
    conv: fx.Node
    mul: fx.Node
    scaled_by: fx.Node
    weight: fx.Node
    bias: fx.Node | None
    chain: tuple[fx.Node, ...]
    shared: tuple[tuple[fx.Node, int], ...]
    batch_norm: BatchNorm | None
    activation: str
    tail: tuple[str, ...]
    end: fx.Node
    closing: Closing | None
    takes_over: bool
    projection: Projection | None

    @property
    def folds(self) -> bool:
        """Return whether `batch_norm`, if any, is a fixed affine map: a gate can be computed through it."""
        return self.batch_norm is None or self.batch_norm.is_fixed

    @property
    def source(self) -> fx.Node:
        """Return what the gate can be computed from: the input of `batch_norm` and `activation`, or `x`."""
        if not self.folds:
            return self.x
        if self.batch_norm is not None:
            return self.batch_norm.input
        return self.x if self.activation == "identity" else tensor_inputs(self.x)[0]

    @property
    def source_is_stored(self) -> bool:
        """Return whether `source` is in memory anyway, and its producer could not pool it without a read."""
        return comes_stored(self.source)


def comes_stored(node: fx.Node) -> bool:
    """Return whether no kernel of Inductor's makes this map: an input, or the result of an external kernel.

    Inductor adds a convolution's bias in a kernel of its own.
    """
    if op_name(node) in CONVOLUTIONS:
        return bind(node).get("bias") is None
    return node.op == "placeholder" or op_name(node) in MATRIX_PRODUCTS


def must_be_stored(node: fx.Node) -> bool:
    """Return whether a map is stored anyway: it comes so, or the caller or an external kernel reads it."""
    return comes_stored(node) or any(map(reads_stored, node.users))


def reads_stored(user: fx.Node) -> bool:
    """Return whether what a node reads is in memory: for the caller, or for an external kernel."""
    return user.op == "output" or op_name(user) in CONVOLUTIONS | MATRIX_PRODUCTS


@dataclass(frozen=True)
class Rejection:
    """A convolution that looks like ECA's and is not, or not provably: a reason code and what stopped it.

    `source` is the user's line of the call that stopped it, or of the convolution: "file.py:18".
    """

    name: str
    shape: tuple[Any, ...]
    k: int
    reason: str
    detail: str
    source: str = ""
