"""Bits for backward come in whole bytes of eight channels, which must be innermost."""

from __future__ import annotations

import pytest
import torch

from eca_triton.compile.plan.reach import _channels_last_in_bytes


@pytest.mark.parametrize(
    ("shape", "memory_format", "packs"),
    [
        ((2, 16, 3, 3), torch.channels_last, True),
        ((2, 12, 3, 3), torch.channels_last, False),
        ((2, 16, 3, 3), torch.contiguous_format, False),
        ((2, 16, 3, 3, 3), torch.channels_last_3d, False),
    ],
    ids=["channels-last", "half a byte", "contiguous", "three dims"],
)
def test_maps_whose_bits_are_packed(
    shape: tuple[int, ...], memory_format: torch.memory_format, packs: bool
) -> None:
    x = torch.empty(shape).contiguous(memory_format=memory_format)
    assert _channels_last_in_bytes(x) is packs
