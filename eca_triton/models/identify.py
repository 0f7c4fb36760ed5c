"""Which network a state dict is of: its kind and depth, attention, taps, classes and input channels."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import timm
import torch
from torch import Tensor, nn

from .attention import ATTENTION
from .mobilenetv2 import MOBILE_ATTENTION, SETTING, mobilenet_v2
from .names import NETWORKS
from .placement import BEHIND, Makers
from .resnet import resnet

DEPTHS: dict[tuple[str, tuple[int, ...]], str] = {
    ("basic", (2, 2, 2, 2)): "resnet18",
    ("basic", (3, 4, 6, 3)): "resnet34",
    ("bottleneck", (2, 2, 2, 2)): "resnet26",
    ("bottleneck", (3, 4, 6, 3)): "resnet50",
    ("bottleneck", (3, 4, 23, 3)): "resnet101",
    ("bottleneck", (3, 8, 36, 3)): "resnet152",
    ("bottleneck", (3, 24, 36, 3)): "resnet200",
    ("bottleneck", (3, 30, 48, 8)): "ecaresnet269",
    ("bottleneck", (1, 1, 11, 3)): "ecaresnet",
}
"""timm's names without their endings, by kind and number of blocks."""
ENDINGS = {(0, False): "", (0, True): "light", (32, True): "d", (24, True): "t"}
"""By the channels of a deep stem's first convolution, and whether shortcuts average before they convolve."""

MOBILE_STAGES = [stage for stage, (_, _, units, _) in enumerate(SETTING) for _ in range(units)]
"""Of each residual unit of MobileNetV2, from 0."""
COUNTER = "num_batches_tracked"
"""Of batch norms; state dicts of torch 0.4.0 lack it, and in evaluation nothing reads it."""


@dataclass(frozen=True)
class Network:
    """A network as it can be built.

    Attributes:
        name: "mobilenet_v2", or timm's name of a ResNet.
        attention: Key of `ATTENTION`, or None: none, or timm's own.
        arguments: Of `mobilenet_v2` or `resnet`.
    """

    name: str
    attention: str | None
    arguments: dict[str, Any]

    def build(self, **arguments: Any) -> nn.Module:
        """The network, with arguments that come before its own."""
        arguments = {**self.arguments, **arguments}
        if self.name == "mobilenet_v2":
            return mobilenet_v2(self.attention, **arguments)
        return resnet(self.name, self.attention, **arguments)

    def __str__(self) -> str:
        """The call of `eca_triton.models` that builds it."""
        shown = [f"{name}={value}" for name, value in self.arguments.items()]
        if self.name not in NETWORKS:
            shown = [*([repr(self.attention)] if self.attention else []), *shown]
            return f"resnet({', '.join([repr(self.name), *shown])})"
        if self.attention in (None, "eca"):
            return f"{'eca_' * bool(self.attention)}{self.name}({', '.join(shown)})"
        return f"create({', '.join([repr(f'{self.attention}_{self.name}'), *shown])})"


@dataclass(frozen=True)
class AttentionTensor:
    """A tensor of an attention module.

    Attributes:
        name: In the state dict: "layer2.0.se.conv.weight".
        unit: Of the residual unit: "layer2.0".
        leaf: Within the module: "conv.weight".
        stage: Of the unit, from 0.
        value: The tensor.
    """

    name: str
    unit: str
    leaf: str
    stage: int
    value: Tensor


def attention_tensors(state: Mapping[str, Tensor]) -> Iterator[AttentionTensor]:
    """Return those of the modules that `resnet` and `mobilenet_v2` add, told by their places."""
    for name, value in state.items():
        if found := re.match(rf"(layer([1-4])\.\d+)(?:\.se|{BEHIND})\.(.+)", name):
            yield AttentionTensor(name, found[1], found[3], int(found[2]) - 1, value)
        elif found := re.match(rf"(features[._](\d+))(?:\.conv\.(\d)|{BEHIND})\.(.+)", name):
            unit, place = int(found[2]), found[3]
            if 0 < unit <= len(MOBILE_STAGES) and place in (None, str(_last_norm(unit) + 1)):
                yield AttentionTensor(name, found[1], found[4], MOBILE_STAGES[unit - 1], value)


def _last_norm(unit: int) -> int:
    """Its place in `conv` of a unit of MobileNetV2, of which the first does not expand."""
    return 2 if unit == 1 else 3


def identify(state: Mapping[str, Tensor]) -> Network:
    """The network that these tensors are of, by its units; whether all sizes are right is not looked at.

    What leaves no trace in tensors is taken to be as in the paper: strides, activations, and attention
    without parameters, which is taken to be none.

    Raises:
        ValueError: it is none of those that `resnet` and `mobilenet_v2` build.
    """
    mobile = "features.0.0.weight" in state
    name = "mobilenet_v2" if mobile else _resnet_name(state)
    has_its_own = name.startswith("eca")
    attention = None if has_its_own else _attention(state, MOBILE_ATTENTION if mobile else ATTENTION)
    arguments: dict[str, Any] = {}
    if attention in ("eca", "eca_ns"):
        arguments["k_size"] = _taps(state, len(SETTING) if mobile else 4)
    classes = size_of(state, "classifier.1.weight" if mobile else "fc.weight")
    if classes != 1000:
        arguments["num_classes"] = classes
    image_channels = size_of(state, "conv1.weight", 1) or size_of(state, "conv1.0.weight", 1)
    if image_channels not in (0, 3):
        arguments["in_chans"] = image_channels
    return Network(name, attention, arguments)


def size_of(state: Mapping[str, Tensor], name: str, axis: int = 0) -> int:
    """Return the size of a tensor along an axis; 0 where there is no such tensor or axis."""
    tensor = state.get(name)
    return 0 if tensor is None or tensor.dim() <= axis else tensor.shape[axis]


def _resnet_name(state: Mapping[str, Tensor]) -> str:
    units = {each[0] for name in state if (each := re.match(r"layer[1-4]\.\d+\.", name))}
    blocks = tuple(sum(each.startswith(f"layer{stage}.") for each in units) for stage in range(1, 5))
    kind = "bottleneck" if "layer1.0.conv3.weight" in state else "basic"
    stem = size_of(state, "conv1.0.weight")
    averages = "layer2.0.downsample.2.weight" in state
    name = DEPTHS.get((kind, blocks), "") + ENDINGS.get((stem, averages), "?")
    if not timm.is_model(name):
        raise ValueError(
            "no network here has these tensors: "
            + (f"{kind} blocks {blocks}" if any(blocks) else ", ".join(list(state)[:3]))
        )
    return name


def _attention(state: Mapping[str, Tensor], known: Makers) -> str | None:
    """Whose parameters stand in the first unit with any: their names and first two sizes tell."""
    tensors = list(attention_tensors(state))
    if not tensors:
        return None
    unit = tensors[0].unit
    module = {each.leaf: each.value for each in tensors if each.unit == unit}
    norms = ("bn3", "bn2") if unit.startswith("layer") else (f"conv.{_last_norm(int(unit[9:]))}",)
    channels = next((size for each in norms if (size := size_of(state, f"{unit}.{each}.weight"))), 0)
    for name, make in known.items() if channels else ():
        with torch.device("meta"):
            ours = make(channels).state_dict()
        if _outline(ours) == _outline(module):
            return name
    listed = ", ".join(f"{leaf} {list(value.shape)}" for leaf, value in module.items())
    raise ValueError(f"no attention here has, for the {channels} channels of {unit}, the tensors {listed}")


def _outline(module: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {leaf: value.shape[:2] for leaf, value in module.items() if leaf.split(".")[-1] != COUNTER}


def _taps(state: Mapping[str, Tensor], stages: int) -> tuple[int, ...]:
    """One number of each stage."""
    found: list[dict[int, str]] = [{} for _ in range(stages)]
    for each in attention_tensors(state):
        found[each.stage].setdefault(each.value.shape[-1] if each.value.dim() else 0, each.name)
    for stage, taps in enumerate(found, 1):
        if len(taps) != 1:
            listed = ", ".join(f"{k} in {name}" for k, name in taps.items()) or "none"
            raise ValueError(f"the units of a stage have one number of taps, got in stage {stage}: {listed}")
    return tuple(k for taps in found for k in taps)
