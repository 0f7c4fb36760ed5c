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
from .mobilenetv2 import BLOCKS, mobilenet_v2
from .names import NETWORKS
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

COUNTER = "num_batches_tracked"
"""Of batch norms; state dicts of torch 0.4.0 lack it, and in evaluation nothing reads it."""


@dataclass(frozen=True)
class Network:
    """A network as it can be built.

    Attributes:
        name: "mobilenet_v2", or timm's name of a ResNet.
        attention: Key of `ATTENTION`, or None.
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
            return f"resnet({', '.join([repr(self.name), repr(self.attention), *shown])})"
        if self.attention in (None, "eca"):
            return f"{'eca_' * bool(self.attention)}{self.name}({', '.join(shown)})"
        return f"create({', '.join([repr(f'{self.attention}_{self.name}'), *shown])})"


@dataclass(frozen=True)
class AttentionTensor:
    """A tensor of an attention module.

    Attributes:
        name: In the state dict: "layer2.0.se.conv.weight".
        norm: Of the batch norm before the module: "layer2.0.bn2", whose weight is [C].
        leaf: Within the module: "conv.weight".
        stage: Of its block, from 0.
        value: The tensor.
    """

    name: str
    norm: str
    leaf: str
    stage: int
    value: Tensor


def attention_tensors(state: Mapping[str, Tensor]) -> Iterator[AttentionTensor]:
    """Those of the modules that `resnet` and `mobilenet_v2` add, told by their places."""
    last = "bn3" if "layer1.0.bn3.weight" in state else "bn2"
    stages = [stage for stage, blocks in enumerate(BLOCKS) for _ in range(blocks)]
    for name, value in state.items():
        if found := re.match(r"(layer(\d)\.\d+)\.se\.(.+)", name):
            yield AttentionTensor(name, f"{found[1]}.{last}", found[3], int(found[2]) - 1, value)
        elif found := re.match(r"(features[._](\d+)\.conv)\.([34])\.(.+)", name):
            block, place = int(found[2]), int(found[3])
            if place == (3 if block == 1 else 4):  # the first block does not expand
                yield AttentionTensor(name, f"{found[1]}.{place - 1}", found[4], stages[block - 1], value)


def identify(state: Mapping[str, Tensor]) -> Network:
    """The network that these tensors are of.

    What leaves no trace in tensors is taken to be as in the paper: strides, activations, and attention
    without parameters, which is taken to be none.

    Raises:
        ValueError: it is none of those that `resnet` and `mobilenet_v2` build.
    """
    mobile = "features.0.0.weight" in state
    name = "mobilenet_v2" if mobile else _resnet_name(state)
    attention = _attention(state)
    arguments: dict[str, Any] = {}
    if attention in ("eca", "eca_ns"):
        arguments["k_size"] = _taps(state, len(BLOCKS) if mobile else 4)
    head = state.get("classifier.1.weight" if mobile else "fc.weight")
    classes = 0 if head is None else head.shape[0]
    if classes != 1000:
        arguments["num_classes"] = classes
    stem = state.get("conv1.weight", state.get("conv1.0.weight"))
    if stem is not None and stem.shape[1] != 3:
        arguments["in_chans"] = stem.shape[1]
    return Network(name, attention, arguments)


def _resnet_name(state: Mapping[str, Tensor]) -> str:
    found = {each[0] for name in state if (each := re.match(r"layer[1-4]\.\d+\.", name))}
    blocks = tuple(sum(each.startswith(f"layer{stage}.") for each in found) for stage in range(1, 5))
    kind = "bottleneck" if "layer1.0.conv3.weight" in state else "basic"
    stem = state["conv1.0.weight"].shape[0] if "conv1.0.weight" in state else 0
    averages = "layer2.0.downsample.2.weight" in state
    name = DEPTHS.get((kind, blocks), "") + ENDINGS.get((stem, averages), "?")
    if not timm.is_model(name):
        raise ValueError(
            "no network here has these tensors"
            + (f": {kind} blocks {blocks}" if any(blocks) else f": {', '.join(list(state)[:3])}")
        )
    return name


def _attention(state: Mapping[str, Tensor]) -> str | None:
    """Whose parameters stand in the first block with any: their names and first two sizes tell."""
    tensors = list(attention_tensors(state))
    if not tensors:
        return None
    norm = tensors[0].norm
    module = {each.leaf: each.value for each in tensors if each.norm == norm}
    channels = state[f"{norm}.weight"].shape[0]
    for name, make in ATTENTION.items():
        with torch.device("meta"):
            ours = make(channels).state_dict()
        if _outline(ours) == _outline(module):
            return name
    listed = ", ".join(f"{leaf} {list(value.shape)}" for leaf, value in module.items())
    raise ValueError(f"no attention here has, for {channels} channels, the tensors {listed}")


def _outline(module: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {leaf: value.shape[:2] for leaf, value in module.items() if leaf.split(".")[-1] != COUNTER}


def _taps(state: Mapping[str, Tensor], stages: int) -> tuple[int, ...]:
    """One number of each stage."""
    found: list[dict[int, str]] = [{} for _ in range(stages)]
    for each in attention_tensors(state):
        found[each.stage].setdefault(each.value.shape[-1], each.name)
    for stage, taps in enumerate(found, 1):
        if len(taps) != 1:
            listed = ", ".join(f"{k} in {name}" for k, name in taps.items()) or "none"
            raise ValueError(f"the blocks of a stage have one number of taps, got in stage {stage}: {listed}")
    return tuple(k for taps in found for k in taps)
