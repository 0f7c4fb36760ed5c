"""Decide what becomes of a site: a pure function of facts, with the traffic that it predicts.

Traffic is in units of S, the bytes of the map, for the site and its pointwise neighbours without the
convolution before it. The stock figures are those of the code that Inductor emits for a GPU
(`tests/test_deviceless_tail.py` compares them with it).
"""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from typing import Literal

import torch

from .reasons import DEVICE, DISABLED, KERNEL_DTYPE, NO_TRITON, TINY

Plan = Literal["skip", "pool", "gate", "block", "batch_norm", "convfold"]

KERNEL_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# Below this a site is bound by launches and dispatch: stock Inductor has three launches and so have we, but
# a call of an opaque op costs the host some 5 us more than Inductor's own launcher. Estimated, not
# measured.
TINY_MAP_BYTES = 32 * 1024
# What tells backward where ReLU was open, in S of a 16-bit map: a bit per element, or Inductor's bool.
PACKED_MASK, STORED_MASK = 1 / 16, 1 / 2
SELECTING, BENDING = ("relu", "relu6"), ("silu", "gelu", "hardswish")  # activations, by what backward needs


@dataclass(frozen=True)
class Settings:
    """What a user asked for: `force` lowers on any device and size, `device` plans as though on that one."""

    force: bool = False
    disabled: bool = False
    device: str | None = None

    @classmethod
    def from_environment(cls, *, force: bool = False, device: str | None = None) -> Settings:
        """These settings, and those of ECA_TRITON_FORCE and ECA_TRITON_DISABLE ("1" switches on)."""
        force = force or os.environ.get("ECA_TRITON_FORCE") == "1"
        return cls(force=force, disabled=os.environ.get("ECA_TRITON_DISABLE") == "1", device=device)


@dataclass(frozen=True)
class Facts:
    """What the decision depends on.

    `batch_norm` is "eval", "train" or None; `folds`: it is a fixed affine map; `source_is_stored`: what
    batch norm and activation read (the map itself where there are none) is in memory whatever we do;
    `in_place`: the map itself is rescaled; `templates`: Inductor puts neighbours into our kernels;
    `takes_over`: one op may compute from the input of a training batch norm to the end of the tail; `mask`:
    in S, what then tells backward where ReLU was open; `whole`: an opaque op trains site and tail.
    `expansion`: input channels per channel of the 1x1 convolution before the site, None where the gate cannot
    be computed from its input; `epilogues`: Inductor puts what follows a product of matrices into its kernel;
    `one_kernel`: the sizes are such, and the result is read so, that `block` is one launch.
    """

    numel: int
    positions: int
    dtype: torch.dtype
    device: str
    grad: bool
    batch_norm: str | None = None
    folds: bool = True
    source_is_stored: bool = True
    activation: str = "identity"
    tail: tuple[str, ...] = ()
    in_place: bool = False
    templates: bool = True
    takes_over: bool = False
    mask: float = 0.0
    whole: bool = False
    expansion: float | None = None
    epilogues: bool = False
    one_kernel: bool = True


@dataclass(frozen=True)
class Decision:
    """The plan, why not more (a reason code and its detail, or None), and traffic in S before and after."""

    plan: Plan
    reason: str | None
    detail: str
    traffic_before: float
    traffic_after: float
    fused: tuple[str, ...]


def decide(facts: Facts, settings: Settings) -> Decision:
    """Choose a plan.

    `block` rescales what batch norm and activation read, in one op that Inductor lowers to a kernel of ours
    with the tail in it: the map is read once. `gate` computes the gate alone from there, so that their
    output, now with one reader left, is never stored. In grad mode `pool` keeps the mean native: batch norm
    and its backward fuse with it, and an opaque op over the map would cut that (12.5 S against 10 S for the
    backward of a bottleneck's tail). The same plan serves a map that Inductor makes in a kernel of its own,
    which can pool it without a read. `batch_norm` takes batch norm in training in: one op for both, whose
    passes over the map are native code. `convfold` computes the gate before the 1x1 convolution that makes
    the map: where that then takes the rest as its epilogue, and where the map would be read twice otherwise.
    """
    before = stock_traffic(facts)
    reason, detail = _obstacle(facts, settings)
    if reason is not None:
        return Decision("skip", reason, detail, before, before, ())
    if facts.takes_over and batch_norm_traffic(facts) < before:
        fused = ("batch_norm", *facts.tail)
        return Decision("batch_norm", None, "", before, batch_norm_traffic(facts), fused)
    if facts.whole:
        fused = ("batch_norm",) * (facts.batch_norm is not None) + facts.tail
        return Decision("block", None, "", before, block_training_traffic(facts), fused)
    if folds_convolution(facts):
        absorbed = ("conv",) + ("batch_norm",) * (facts.batch_norm is not None)
        return Decision("convfold", None, "", before, convfold_traffic(facts), (*absorbed, *facts.tail))
    if facts.grad or facts.batch_norm == "train" or not facts.source_is_stored:
        return Decision("pool", None, "", before, before, facts.tail)
    absorbed = ("batch_norm",) * (facts.batch_norm is not None) + (facts.activation,) * (
        facts.activation != "identity"
    )
    absorbed = absorbed if facts.folds else ()
    after = before - (1.0 if absorbed else 0.0)
    fused = (*absorbed, *facts.tail)
    if facts.templates and not facts.in_place:
        return Decision("block", None, "", before, after - 1.0, fused)
    return Decision("gate", None, "", before, after, fused)


def stock_traffic(facts: Facts) -> float:
    """What Inductor moves for the site, in S; forward and backward together where gradients are needed.

    Forward: the mean reads the map, the rescale reads and writes it, a residual is read. Whatever makes the
    map has two readers and is stored: one write and one read more, and batch norm in training reads its
    input twice. ReLU in training stores its mask in half a map of bf16. Backward: dy and x for the gate's
    gradient, dy and dx for the map's; batch norm adds three passes over a large map and one over a map that
    a single program holds.
    """
    produced = facts.batch_norm is not None or facts.activation != "identity"
    residual = "residual" in facts.tail
    activation = any(name in facts.tail for name in ("relu", "relu6", "silu"))
    forward = 3.0 + residual + (1.0 if produced else 0.0) + (1.0 if facts.batch_norm == "train" else 0.0)
    if not facts.grad:
        return forward
    forward += 0.5 * activation
    backward = 4.0 + ((1.5 if residual else 1.0) if activation else 0.0)
    if facts.batch_norm == "train":
        backward += 3.0 if facts.positions >= 56 * 56 else 1.0
    return forward + backward


def folds_convolution(facts: Facts) -> bool:
    """Whether to compute the gate from the input of the convolution.

    That input may have to be read once more, unless the kernel that makes it pools it: not worth it where it
    has more channels than the map. Without epilogues the map is stored by the product and read once after it,
    as by `block`: then it serves where `block` is not one launch.
    """
    if facts.expansion is None or facts.expansion > 1.0:
        return False
    block = facts.templates and not facts.in_place and facts.source_is_stored and facts.one_kernel
    return facts.epilogues or not block


def convfold_traffic(facts: Facts) -> float:
    """As `stock_traffic`, of `convfold`; the convolution before stores nothing if it takes the tail in."""
    residual = "residual" in facts.tail
    stored = -1.0 if facts.epilogues else 1.0
    return 1.0 + residual + stored + (facts.expansion or 0.0)


def batch_norm_traffic(facts: Facts) -> float:
    """As `stock_traffic`, where one op takes batch norm and ECA from the moments of each image and channel.

    Forward: a pass for the moments; one that reads the map again and writes the result. Backward: dy and the
    map for the moments of the gradient, which is stored where a residual wants it; both again for the map's.
    """
    residual = "residual" in facts.tail
    activation = any(name in facts.tail for name in ("relu", "relu6", "silu"))
    forward = 3.0 + residual
    if not facts.grad:
        return forward
    stored = residual and activation
    masks = facts.mask * (2 if stored else 3) * activation
    return forward + 5.0 + stored + masks


def block_training_traffic(facts: Facts) -> float:
    """As `stock_traffic`, where one op each way reads every map once; activations but ReLU are recomputed."""
    residual = "residual" in facts.tail
    selects, bends = (any(name in facts.tail for name in names) for names in (SELECTING, BENDING))
    forward = 2.0 + residual + PACKED_MASK * selects
    backward = 3.0 + (residual and (selects or bends)) + (residual and bends) + PACKED_MASK * selects
    return forward + backward


def _obstacle(facts: Facts, settings: Settings) -> tuple[str | None, str]:
    if settings.disabled:
        return DISABLED, ""
    if settings.force:
        return None, ""
    device = settings.device or facts.device
    if device != "cuda":
        return DEVICE, f"it is on {device}"
    if facts.dtype not in KERNEL_DTYPES:
        return KERNEL_DTYPE, f"it is {facts.dtype}"
    if facts.numel * facts.dtype.itemsize < TINY_MAP_BYTES:
        return TINY, f"{facts.numel * facts.dtype.itemsize} bytes"
    if settings.device is None and importlib.util.find_spec("triton") is None:
        return NO_TRITON, ""
    return None, ""
