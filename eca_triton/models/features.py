"""A network as a feature extractor: a list of maps instead of one result."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from timm.models import FeatureListNet
from torch import nn


def feature_extractor(
    model: Any, out_indices: Sequence[int] | None, *, flatten_sequential: bool = False
) -> nn.Module:
    """timm's FeatureListNet of a model that has a `feature_info`: [N, 3, H, W] -> a list of maps, by depth.

    Args:
        model: is taken apart.
        out_indices: which of the maps that `model.feature_info` lists, from its end if negative; None: all.
        flatten_sequential: whether the maps are results of the members of an `nn.Sequential` of the model.

    Raises:
        ValueError: there is no such map, or one is asked for twice.
    """
    count = len(model.feature_info)
    wanted = range(count) if out_indices is None else out_indices
    indices = sorted({index % count for index in wanted if -count <= index < count})
    if not indices or len(indices) != len(wanted):
        raise ValueError(f"out_indices must be different numbers from 0 to {count - 1}, got {out_indices}")
    extractor: nn.Module = FeatureListNet(
        model, out_indices=tuple(indices), flatten_sequential=flatten_sequential
    )
    return extractor
