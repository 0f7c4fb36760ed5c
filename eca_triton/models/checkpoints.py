"""Checkpoints of others: official ECA-Nets, torchvision's networks, timm's.

    model = load_checkpoint("eca_resnet50_k3557.pth.tar")
    fresh = load_into(eca_resnet50(), "resnet50-0676ba61.pth")  # torchvision's: all but the attention

Files are read with `weights_only=True`: no code of theirs runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import timm
import torch
from timm.models import FeatureListNet, get_pretrained_cfg_value
from timm.utils.model import unwrap_model
from torch import Tensor, nn

from .checkpoint_files import Source, read_state_dict
from .identify import COUNTER, Network, attention_tensors, identify, size_of
from .names import create, names

SHOWN = 5
"""How many layers an error lists."""


def load_checkpoint(
    source: Source, network: str | None = None, *, num_classes: int | None = None, **network_arguments: Any
) -> nn.Module:
    """The network that a checkpoint is of, with its weights; in training mode, as every new network.

    Args:
        source: a file of torch.save or safetensors, or the mapping that it holds: a state dict, or a training
            script's dict with one; with or without `module.` before each name; with official or timm's names.
        network: one of `names()` or any name of timm's, whose builder is then used as it is. None: told from
            the tensors, with attention and taps. SE-Var1, which has no tensors, must be named.
        num_classes: of a new classifier with initial values, if not the checkpoint's number; 0: of none.
        network_arguments: of the network, as `features_only` or `drop_path_rate`.

    Raises:
        OSError: the file cannot be read.
        TypeError: source is neither a path nor a mapping.
        ValueError: it is no checkpoint, or of no network here, or not of the one that is named.

    Examples:
        >>> model = load_checkpoint(eca_resnet18(k_size=(3, 5, 7, 7)).state_dict(), num_classes=10)
        >>> model.layer4[0].se.conv.kernel_size, model.fc.out_features
        ((7,), 10)
    """
    state = read_state_dict(source)
    if network is None or network in names() or not timm.is_model(network.split(".")[0]):
        found = _identify(state, network)
        classes = found.arguments.get("num_classes", 1000)
        arguments = {**found.arguments, **network_arguments}
        arguments["num_classes"] = classes if num_classes is None else num_classes
        model = found.build(**arguments) if network is None else create(network, **arguments)
    else:
        classes = size_of(state, f"{get_pretrained_cfg_value(network, 'classifier')}.weight")
        arguments = {**network_arguments, "num_classes": classes if num_classes is None else num_classes}
        model = timm.create_model(network, **arguments)
    _load(model, state, head=arguments["num_classes"] == classes, attention=True)
    return model


def load_into(model: nn.Module, source: Source, *, head: bool = True) -> list[str]:
    """Load a checkpoint into a network of this package or of timm's ResNets.

    Names and shapes must agree. But a checkpoint of the plain network, such as torchvision's, may go into one
    with attention, whose modules then keep their values; and a network with `features_only` takes what it has
    of a whole one. Nothing is loaded where an error is raised.

    Args:
        model: the network; may be compiled or wrapped for data parallelism.
        source: as for `load_checkpoint`.
        head: False: the classifier keeps its values, and may have other sizes.

    Returns:
        The names of the network's parameters and buffers that were not loaded.

    Raises:
        OSError: the file cannot be read.
        TypeError: source is neither a path nor a mapping.
        ValueError: it is no checkpoint, or does not fit; the message names layers, both shapes and what fits.

    Examples:
        >>> load_into(eca_resnet18(), torchvision.models.resnet18().state_dict())[:2]
        ['layer1.0.se.conv.weight', 'layer1.1.se.conv.weight']
    """
    state = read_state_dict(source)
    unwrapped: nn.Module = unwrap_model(model)  # type: ignore[no-untyped-call]
    return _load(unwrapped, state, head=head, attention=any(attention_tensors(state)))


def _identify(state: Mapping[str, Tensor], network: str | None) -> Network:
    """The network of the state dict, which is to be the named one."""
    try:
        found = identify(state)
    except ValueError as error:
        raise ValueError(
            f"{error}; name the network if it is timm's, as network='ecaresnet50t', or build it and call"
            " load_into(model, source)"
        ) from error
    name = f"{found.attention}_{found.name}" if found.attention else found.name
    same = [name] if found.attention else [name, f"se_var1_{name}"]
    if network in names() and network not in same:
        trunk = not found.attention and str(network).endswith(f"_{name}")
        raise ValueError(
            f"the checkpoint is of {found}, not of {network}"
            + f"; load_into(create({network!r}), source) loads all but the attention" * trunk
        )
    return found


def _load(model: nn.Module, state: Mapping[str, Tensor], *, head: bool, attention: bool) -> list[str]:
    """Load what the checkpoint has to have: all, or all but the classifier, or all but the attention.

    Returns:
        What it need not have, and was not loaded.

    Raises:
        ValueError: a tensor is missing, left over, or of another shape.
    """
    ours = model.state_dict()
    theirs = _of_features(state, ours) if isinstance(model, FeatureListNet) else dict(state)
    classifier = f"{_classifier(model)}."
    kept = {name for name in ours if not head and name.startswith(classifier)}
    if not head:
        theirs = {name: value for name, value in theirs.items() if not name.startswith(classifier)}
    if not attention:
        kept |= {each.name for each in attention_tensors(ours)}
    differences = _differences(theirs, {name: value for name, value in ours.items() if name not in kept})
    if differences:
        lines = [f"  {line}" for line in differences.values()]
        more = [f"  and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
        advice = _advice(state, differences, classifier)
        raise ValueError("\n".join(["the checkpoint does not fit:", *lines[:SHOWN], *more, advice]))
    model.load_state_dict(theirs, strict=False)  # for the counters alone
    return [name for name in ours if name in kept]


def _differences(theirs: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> dict[str, str]:
    """List tensors that only one has, or whose shapes differ, by name; counters may be missing."""
    found = {}
    for name in {**ours, **theirs}:
        left, right = (_shape(each.get(name)) for each in (theirs, ours))
        if left != right and not (name not in theirs and name.endswith(COUNTER)):
            found[name] = f"{name}: the checkpoint has {left}, the network {right}"
    return found


def _advice(state: Mapping[str, Tensor], differences: Mapping[str, str], classifier: str) -> str:
    """Return what to change."""
    if all(name.startswith(classifier) for name in differences):
        classes = size_of(state, f"{classifier}weight")
        fits = f"num_classes={classes} makes one that fits, " if classes else ""
        return f"The classifier alone differs: {fits}load_into(..., head=False) leaves the network's."
    try:
        found = identify(state)
    except ValueError as error:
        return f"Build the network that it was saved from: {error}."
    with torch.device("meta"):
        built = found.build().state_dict()
    if _differences(state, built):
        return (
            f"Its blocks are those of {found}, its sizes are not: name the network, as in"
            " load_checkpoint(source, 'ecaresnet50d_pruned'), or give its arguments, as width_mult=0.5."
        )
    return f"Build it with {found}, as load_checkpoint(source) does."


def _of_features(state: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Pick a `features_only` network's tensors from a whole one's; MobileNetV2's is flat: `features_1`."""
    children = {name.split(".")[0] for name in ours}
    found = {}
    for name, value in state.items():
        flat = name.replace(".", "_", 1)
        name = flat if flat.split(".")[0] in children else name
        if name.split(".")[0] in children:
            found[name] = value
    return found


def _classifier(model: nn.Module) -> str:
    """Name the classifier of a network of timm's, which says so, or of torchvision's MobileNetV2."""
    config: Any = getattr(model, "pretrained_cfg", None)
    return str(config["classifier"]) if config else "classifier.1"


def _shape(tensor: Tensor | None) -> str:
    return "none" if tensor is None else str(list(tensor.shape))
