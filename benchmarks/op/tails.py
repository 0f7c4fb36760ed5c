"""What stands around ECA in networks: the tails that `python -m benchmarks op` knows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from eca_triton.activations import ACTIVATIONS


@dataclass(frozen=True)
class TailKind:
    """activation(gain * xhat * gate(xhat) + residual), xhat = pre_activation(batch_norm(x)).

    Attributes:
        label: In tables.
        normalises: Whether batch norm comes first.
        pre_activation: Behind it: "identity", "relu" or "silu".
        gate: "sigmoid" or "hard_sigmoid".
        circular: Whether the channels are a ring.
        bias: Whether the convolution over channels has one.
        gain: Factor of the attended map.
        adds: Whether a residual is added.
        activation: Last.
    """

    label: str
    normalises: bool = False
    pre_activation: str = "identity"
    gate: str = "sigmoid"
    circular: bool = False
    bias: bool = False
    gain: float = 1.0
    adds: bool = False
    activation: str = "identity"

    @property
    def trainable(self) -> bool:
        """Return whether gradients can be judged: not where rounding may open a ReLU before the pooling."""
        return self.pre_activation != "relu"

    def activate(self, out: Tensor) -> Tensor:
        """The last activation."""
        return ACTIVATIONS[self.activation].function(out)

    def undecided(self, before: Tensor, error: float) -> Tensor:
        """Mark where the last activation's slope depends on rounding: within `error` of one of its bends."""
        close = torch.zeros_like(before, dtype=torch.bool)
        for bend in ACTIVATIONS[self.activation].corners:
            close |= (before - bend).abs() <= error
        return close


HEADLINE = {  # what the goals speak of, and what is measured unless others are asked for
    "eca": TailKind("ECA"),
    "bn_eca_add_relu": TailKind("BN + ECA + add + ReLU", normalises=True, adds=True, activation="relu"),
    "eca_add_relu": TailKind("ECA + add + ReLU", adds=True, activation="relu"),
}
TAILS = {
    **HEADLINE,
    "bn_eca": TailKind("BN + ECA", normalises=True),  # MobileNetV2
    "bn_eca_add": TailKind("BN + ECA + add", normalises=True, adds=True),
    "bn_silu_eca": TailKind("BN + SiLU + ECA", normalises=True, pre_activation="silu"),  # eca_resnet33ts
    "bn_relu_eca_add": TailKind(  # eca_vovnet39b
        "BN + ReLU + ECA + add", normalises=True, pre_activation="relu", adds=True
    ),
    "eca_gain_add": TailKind("2 ECA + add", gain=2.0, adds=True),  # NFNets
    "eca_bias": TailKind("ECA with bias", bias=True),
    "ceca_add_relu": TailKind("circular ECA + add + ReLU", circular=True, adds=True, activation="relu"),
    "hard_eca_add_relu": TailKind(
        "hard-sigmoid ECA + add + ReLU", gate="hard_sigmoid", adds=True, activation="relu"
    ),
    "eca_add_relu6": TailKind("ECA + add + ReLU6", adds=True, activation="relu6"),
    "eca_add_silu": TailKind("ECA + add + SiLU", adds=True, activation="silu"),
    "eca_add_gelu": TailKind("ECA + add + GELU", adds=True, activation="gelu"),
    "eca_add_hardswish": TailKind("ECA + add + hardswish", adds=True, activation="hardswish"),
}
