"""What the decision about a site depends on, and nothing else of the graph."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from ...activations import PRE_ACTIVATIONS
from ..match.neighbours import STEPS

KNOWN = {
    "batch_norm": (None, "eval", "train"),
    "activation": tuple(PRE_ACTIVATIONS),
    "tail": STEPS,
}
"""What the facts that are names may say: no cost is made up for what it was not counted for."""


@dataclass(frozen=True)
class Facts:
    """One site, its neighbours, and where it runs. S: the bytes of the map.

    Attributes:
        images: Batch size, N.
        channels: Of the map, C.
        positions: Spatial elements of one image and channel, H * W.
        taps: Of the convolution over channels, k.
        dtype: Of the map.
        device: Type of its device.
        channels_last: Channels are innermost where Dynamo sees the map; Inductor may change that.
        grad: Gradients are needed.
        target: Key in `TARGETS` of the GPU to plan for.
        batch_norm: Before the site and read by it alone: "eval", "train" or None.
        activation: Between it and the site, read by the site alone: "relu", "silu" or "identity".
        source_is_stored: What the gate could be computed from, through the activation and a batch norm that
            is a fixed affine map, is in memory under any plan.
        tail: What follows, as Inductor fuses it: gain, residual, an activation.
        inlined: Every reader of the tail's result computes it anew, as pooling and padding do: it is not
            stored.
        reindexed: A reader of the tail's result indexes it in another way than our kernel: a view, a
            concatenation, what `inlined` and `repeated` name.
        reordered: The result of one op would have another memory order than the result has now.
        repeated: Readers compute each element of the tail's result several times, or store it if that is
            dear: group norm, interpolation, another site.
        shared: The gate has readers beside the multiplication.
        normalized: A batch norm that trains reads the tail's result, which needs not be stored otherwise.
        in_place: The map is rescaled in place.
        templates: Inductor fuses neighbours into our kernels.
        one_kernel: A kernel of ours takes the map in one launch, in any layout that Inductor may choose: all
            sizes but the batch are known, and channels come in vectors.
        takes_over: One op may compute from the input of a training batch norm to the end of the tail.
        mask_traffic: Bytes of what then tells backward where ReLU was open, in S.
        trains_as_block: An opaque op can train site and tail, and costs no neighbour its fusion.
        wraps: The convolution over channels pads around: stock has a kernel for that.
        casts: Its weight is cast: stock has a kernel for that.
        expansion: Input channels of the 1x1 convolution that makes the map, or its batch norm's input, per
            channel of the map; None where there is none, or none that a gate can be computed before.
        pooled_by_producer: The kernel that makes the input of that convolution can pool it without a read.
        epilogues: Inductor's products of matrices, as it is configured, take what follows as an epilogue.
        products: They do not, but one of ours can be that convolution, and takes what follows.
        served: Triton compiles for the GPU.
    """

    images: int
    channels: int
    positions: int
    taps: int
    dtype: torch.dtype
    device: str
    channels_last: bool
    grad: bool
    target: str
    batch_norm: str | None = None
    activation: str = "identity"
    source_is_stored: bool = True
    tail: tuple[str, ...] = ()
    inlined: bool = False
    reindexed: bool = False
    reordered: bool = False
    repeated: bool = False
    shared: bool = False
    normalized: bool = False
    in_place: bool = False
    templates: bool = True
    one_kernel: bool = True
    takes_over: bool = False
    mask_traffic: float = 0.0
    trains_as_block: bool = False
    wraps: bool = False
    casts: bool = False
    expansion: float | None = None
    pooled_by_producer: bool = False
    epilogues: bool = False
    products: bool = False
    served: bool = True

    def __post_init__(self) -> None:
        """Refuse a name that nobody counted."""
        for fact, names in KNOWN.items():
            said = self.tail if fact == "tail" else (getattr(self, fact),)
            if not set(said) <= set(names):
                raise ValueError(f"{fact} must be of {names}, got {getattr(self, fact)!r}")

    @property
    def numel(self) -> int:
        """Elements of the map."""
        return math.prod((self.images, self.channels, self.positions))
