"""Why a site was left to Inductor, or a plan does not fit it: stable codes; docs/reasons.md says more."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

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
WRAPPED = "ECA114"
UNEXPECTED = "ECA199"
DEVICE = "ECA201"
KERNEL_DTYPE = "ECA202"
TINY = "ECA203"
DISABLED = "ECA204"
NO_TRITON = "ECA205"
NO_WIN = "ECA206"
ASKED = "ECA207"
TRAINS = "ECA208"
PACKAGED = "ECA209"
TRAINING = "ECA301"
NOT_STORED = "ECA302"
RESCALED_IN_PLACE = "ECA303"
SPREAD = "ECA304"
NO_TEMPLATES = "ECA305"
NOT_WHOLE = "ECA306"
NOT_TAKEN_OVER = "ECA307"
NO_CONVOLUTION = "ECA308"
REPEATED = "ECA309"
NO_PRODUCT = "ECA310"
GATE_READ = "ECA311"

REASONS: dict[str, str] = {
    EVEN_TAPS: "the channel convolution has an even number of taps",
    CONVOLUTION: "the channel convolution is strided, dilated or grouped",
    PADDING: "the padding of the channel convolution is not k // 2 zeros or k // 2 wrapped channels",
    GATE_PATH: "an operation between convolution and multiplication is not a view or the gate function",
    SHARED: "the pooled vector, or the gate before it is complete, is also used elsewhere",
    GATE_FUNCTION: "the gate function is neither sigmoid nor hard-sigmoid",
    OTHER_OPERAND: "the gate does not multiply the map that was pooled",
    POOL_PATH: "an operation between the map and the convolution is not a view or a mean",
    NOT_MEAN: "the pooling is not the mean over all spatial positions",
    CHANNEL_ORDER: "the views reorder channels or mix images",
    MUTATED: "the map is changed in place between pooling and multiplication",
    DTYPE: "the map is not a real floating-point tensor",
    GRAD_MODE: "gradients are switched on or off between pooling and multiplication",
    WRAPPED: "the map is inside torch.func's vmap, grad or jvp, or of a subclass around other tensors",
    UNEXPECTED: "this package raised an error on it, which is a bug of ours",
    DEVICE: "the map is not on a CUDA device that Triton serves",
    KERNEL_DTYPE: "the kernels take float32, float16 and bfloat16 only",
    TINY: "the map is so small that an opaque call costs more than it saves",
    DISABLED: "lowering is switched off by ECA_TRITON_DISABLE or by options",
    NO_TRITON: "Triton is not installed",
    NO_WIN: "no plan is predicted to be faster than stock Inductor",
    ASKED: "the plan that was asked for does not fit this site",
    TRAINS: "an exported program is lowered for inference, and this site trains",
    PACKAGED: "a package runs without Python, and no template of Inductor's takes this site",
    TRAINING: "in training an op over the map would cut the fusion of its neighbours",
    NOT_STORED: "Inductor makes the map in a kernel of its own, which can pool it without a read",
    RESCALED_IN_PLACE: "the map itself is rescaled, in place",
    SPREAD: "who reads the result walks over it in another way than the kernel",
    NO_TEMPLATES: "this release of Inductor does not put neighbours into our kernels",
    NOT_WHOLE: "in training an opaque op would cost a neighbour its fusion",
    NOT_TAKEN_OVER: "there is no batch norm in training that an op may take over",
    NO_CONVOLUTION: "there is no 1x1 convolution before the site that the gate can be computed before",
    REPEATED: "who reads the result would compute the site and what comes before it several times",
    NO_PRODUCT: "the convolution before the site waits for more than its bytes, or Inductor tunes it",
    GATE_READ: "the gate is also read elsewhere, so an op must not keep it to itself",
}

# What `strict` does not take for an answer. Left alone without an error: what costs more than it saves
# (TINY, NO_WIN), and what the user switched off.
UNEXPLAINED_BY_COST = {code for code in REASONS if code.startswith("ECA1")} | {
    DEVICE,
    KERNEL_DTYPE,
    NO_TRITON,
    ASKED,
    TRAINS,
    PACKAGED,
}


class NotLoweredError(RuntimeError):
    """Raised with `eca.strict`: ECA-like sites would stay with Inductor for another reason than cost.

    Attributes:
        sites: Per site its name, the reason's code and the detail.
    """

    def __init__(self, sites: Iterable[tuple[str, str, str]]) -> None:
        self.sites = tuple(sites)
        lines = [
            f"  {name}: {explained(code, detail)} (docs/reasons.md#{code.lower()})"
            for name, code, detail in self.sites
        ]
        super().__init__("\n".join([f"eca.strict: {len(self.sites)} sites were not lowered", *lines]))

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle by what it was made of: exceptions do so by their message."""
        return type(self), (self.sites,)


def explained(code: str, detail: str = "") -> str:
    """The code, its line and what it is about."""
    return f"{code} {REASONS[code]}" + (f": {detail}" if detail else "")


class NoMatchError(Exception):
    """Raised inside the recognizer: this is not an ECA site, for the reason `code` and because of `node`."""

    def __init__(self, code: str, detail: str = "", node: fx.Node | None = None) -> None:
        super().__init__(explained(code, detail))
        self.code = code
        self.detail = detail
        self.node = node
