"""Why a candidate was left to Inductor: stable codes, one line each; docs/reasons.md has the long form."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import fx

EVEN_TAPS = "ECA101"
CONVOLUTION = "ECA102"
PADDING = "ECA103"
GATE_PATH = "ECA104"
SHARED = "ECA105"
GATE_FUNCTION = "ECA106"
OTHER_OPERAND = "ECA107"
POOL_PATH = "ECA108"
NOT_MEAN = "ECA109"
CHANNEL_ORDER = "ECA110"
MUTATED = "ECA111"
DTYPE = "ECA112"
GRAD_MODE = "ECA113"
TRANSFORM = "ECA114"
UNEXPECTED = "ECA199"
DEVICE = "ECA201"
KERNEL_DTYPE = "ECA202"
TINY = "ECA203"
DISABLED = "ECA204"
NO_TRITON = "ECA205"
TRAINS = "ECA208"
PACKAGED = "ECA209"

REASONS: dict[str, str] = {
    EVEN_TAPS: "the channel convolution has an even number of taps",
    CONVOLUTION: "the channel convolution is strided, dilated or grouped",
    PADDING: "the padding of the channel convolution is not k // 2 zeros or k // 2 wrapped channels",
    GATE_PATH: "an operation between convolution and multiplication is not a view or the gate function",
    SHARED: "the pooled vector or the gate is also used elsewhere",
    GATE_FUNCTION: "the gate function is neither sigmoid nor hard-sigmoid",
    OTHER_OPERAND: "the gate does not multiply the map that was pooled",
    POOL_PATH: "an operation between the map and the convolution is not a view or a mean",
    NOT_MEAN: "the pooling is not the mean over all spatial positions",
    CHANNEL_ORDER: "the views reorder channels or mix images",
    MUTATED: "the map is changed in place between pooling and multiplication",
    DTYPE: "the map is not a real floating-point tensor",
    GRAD_MODE: "gradients are switched on or off between pooling and multiplication",
    TRANSFORM: "the map is inside torch.func's vmap, grad or jvp",
    UNEXPECTED: "this package raised an error on it, which is a bug of ours",
    DEVICE: "the map is not on a CUDA device",
    KERNEL_DTYPE: "the kernels take float32, float16 and bfloat16 only",
    TINY: "the map is so small that an opaque call costs more than it saves",
    DISABLED: "lowering is switched off by ECA_TRITON_DISABLE or by options",
    NO_TRITON: "Triton is not installed",
    TRAINS: "an exported program is lowered for inference, and this site trains",
    PACKAGED: "a package runs without Python, and no template of Inductor's takes this site",
}


class NoMatchError(Exception):
    """Raised inside the recognizer: this is not an ECA site, for the reason `code` and because of `node`."""

    def __init__(self, code: str, detail: str = "", node: fx.Node | None = None) -> None:
        super().__init__(f"{code} {REASONS[code]}" + (f": {detail}" if detail else ""))
        self.code = code
        self.detail = detail
        self.node = node
