"""Gather the facts of a site from its graph, and from where it runs."""

from __future__ import annotations

import math
from dataclasses import asdict

import torch

from ...tuning.config import Device
from ...tuning.targets import TARGETS, target_like
from ..inductor.trial import products_work, templates_work
from ..match.graph import bind, hints, is_contiguous, op_name, value
from ..match.neighbours import IN_PLACE_MULTIPLICATIONS
from ..match.site import Site, comes_stored
from ..settings import Settings
from .cost import PACKED_MASK, STORED_MASK, VECTOR
from .facts import Facts
from .reach import becomes_block, epilogue_of, keeps_order, packs_mask, pools_input, stays_whole
from .readers import readers_of

DEFAULT_TARGET = "h200"


def facts_of(site: Site, settings: Settings) -> Facts:
    """The facts of one site; symbolic sizes by the example that was traced."""
    x, norm = value(site.x), site.batch_norm
    shape = hints(site.shape)
    images, channels = shape[0], shape[site.channel_dim]
    grad = value(site.mul).requires_grad
    # Asked only where the answer counts: it takes a moment, and a device, or the wish to plan for one.
    asked = not grad and x.device.type == "cuda"
    # What is forced runs where the maps are.
    device = x.device.type if settings.force else settings.device or x.device.type
    convolution, readers = bind(site.conv), readers_of(site.end)
    return Facts(
        images=images,
        channels=channels,
        positions=math.prod(shape[1:]) // max(1, channels),
        taps=site.k,
        dtype=x.dtype,
        device=x.device.type,
        channels_last=site.channel_dim != 1 or not is_contiguous(x),
        grad=grad,
        target=_target(x.device, settings),
        batch_norm=None if norm is None else "train" if norm.training else "eval",
        activation=site.activation,
        source_is_stored=site.source_is_stored,
        tail=site.tail,
        shared=bool(site.shared),
        **asdict(readers),
        reordered=not keeps_order(site),
        in_place=op_name(site.mul) in IN_PLACE_MULTIPLICATIONS,
        templates=templates_work(x.device) if asked else settings.device == "cuda",
        one_kernel=all(isinstance(size, int) for size in site.shape[1:]) and channels % VECTOR == 0,
        takes_over=site.takes_over,
        mask_traffic=PACKED_MASK if packs_mask(site, readers) else STORED_MASK,
        trains_as_block=grad and stays_whole(site),
        wraps=op_name(convolution["input"]) == "pad",
        casts=value(site.weight).dtype != value(site.conv).dtype,
        expansion=site.projection.expansion if site.projection is not None and pools_input(site) else None,
        pooled_by_producer=site.projection is not None and not comes_stored(site.projection.input),
        epilogues=epilogue_of(site, device) is not None,
        products=becomes_block(site, device)
        and (products_work(x.device) if asked else settings.device == "cuda"),
        served=_served(x.device, settings),
    )


def _served(device: torch.device, settings: Settings) -> bool:
    """Return whether Triton compiles for the GPU at hand; every one that is only planned for is served."""
    if settings.device is not None or device.type != "cuda" or not torch.cuda.is_available():
        return True
    return Device.of(torch.cuda.get_device_properties(device)).served


def _target(device: torch.device, settings: Settings) -> str:
    """The GPU that was named, or the one at hand, or the default one to plan for where there is none."""
    if settings.target is not None:
        return settings.target
    if "cuda" not in (device.type, settings.device) or not torch.cuda.is_available():
        return TARGETS[DEFAULT_TARGET].name
    at_hand = device if device.type == "cuda" else torch.cuda.current_device()
    return target_like(torch.cuda.get_device_properties(at_hand)).name
