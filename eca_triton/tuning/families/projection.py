"""Config of the kernel that computes gates from the pooled input of a 1x1 convolution."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..config import Device
from .blocks import power_of_2

REDUCED = 64  # columns of the matrix in one step: whole 128-byte lines of 16-bit weights
FEW_REDUCED = 16  # the same where they stay in registers of threads, which spill more


@dataclass(frozen=True)
class ProjectionConfig:
    """Cut of the kernel's work; blocks are powers of two.

    Attributes:
        block_c: channels that a program projects; it owns all but the halo of the band.
        block_n: images of a program.
        block_i: columns of the matrix in one step of its loop.
        precision: of the product, as `tl.dot` names it.
        num_warps: warps of one program.
    """

    block_c: int
    block_n: int
    block_i: int
    precision: Literal["tf32", "ieee"]
    num_warps: int = 4


def projection_config(n: int, c: int, taps: int, itemsize: int, device: Device) -> ProjectionConfig:
    """Config for N images, C channels, a band of `taps`, and weights of `itemsize` bytes.

    Every block of images reads the whole matrix again, and every block of channels the pooled values: large
    blocks where there are programs for all multiprocessors anyway. A block is four bands wide at least, so
    that the halo costs a third at most. 16 images are the least that a matrix unit takes.
    """
    halo = taps - 1
    block_c = max(64, power_of_2(4 * halo))
    block_n = 32 if -(-n // 32) * -(-c // (block_c - halo)) >= device.num_sms else 16
    if block_c == 64 and -(-n // block_n) * -(-c // (64 - halo)) < device.num_sms // 2 and halo <= 8:
        block_c = 32
    tf32 = device.vendor == "nvidia" and device.multiplies(itemsize)
    block_i = REDUCED if tf32 or device.multiplies(4) else FEW_REDUCED  # the pooled values are fp32
    return ProjectionConfig(block_c, block_n, block_i, "tf32" if tf32 else "ieee")
