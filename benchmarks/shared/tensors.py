"""Dtypes and layouts by the names that options, tables and JSON have for them."""

from __future__ import annotations

from collections.abc import Sequence

import torch

LAYOUTS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def shape_name(sizes: Sequence[int]) -> str:
    """(128, 256, 56, 56) -> "128x256x56x56"."""
    return "x".join(map(str, sizes))
