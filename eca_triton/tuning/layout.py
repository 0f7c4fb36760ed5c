"""A map as the kernels see it: batch, channels, and as few spatial dims as its strides allow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Layout:
    """Sizes and strides that several tensors of one shape share.

    Attributes:
        n: batch size.
        c: channels.
        spatial: sizes (D, H, W), outermost first; merged and reordered, so D and H are often 1.
        strides: per tensor the element strides (n, c, d, h, w).
    """

    n: int
    c: int
    spatial: tuple[int, int, int]
    strides: tuple[tuple[int, int, int, int, int], ...]

    @property
    def hw(self) -> int:
        """Number of spatial elements."""
        d, h, w = self.spatial
        return d * h * w

    @property
    def flat(self) -> bool:
        """Return whether one stride serves all spatial dims."""
        return self.spatial[0] == self.spatial[1] == 1

    @property
    def contiguous(self) -> bool:
        """Return whether every tensor is [N, C, HW] without gaps."""
        return self._all_have((self.c * self.hw, self.hw, 0, 0, 1))

    @property
    def dense_channels_last(self) -> bool:
        """Return whether every tensor is [N, HW, C] without gaps."""
        return self._all_have((self.c * self.hw, 1, 0, 0, self.c))

    def _all_have(self, expected: tuple[int, int, int, int, int]) -> bool:
        return self.flat and all(
            stride == want or size == 1
            for strides in self.strides
            for size, stride, want in zip((self.n, self.c, *self.spatial), strides, expected, strict=True)
        )

    def vector(self, axis: int, limit: int) -> int:
        """Elements up to `limit` (a power of two) that one access may cover along axis 1 (c) or 2 (hw).

        All tensors must be contiguous along the axis, and its extent and all other strides multiples of the
        vector, so that every row starts and ends on one. A run of W inside a cropped map does not qualify.
        """
        unit = 1 if axis == 1 else 4
        if (axis == 2 and not self.flat) or any(strides[unit] != 1 for strides in self.strides):
            return 1
        extents = [self.c if axis == 1 else self.hw]
        for strides in self.strides:
            extents += [stride for dim, stride in enumerate(strides) if dim != unit]
        while any(extent % limit for extent in extents):
            limit //= 2
        return limit


def common_layout(shape: Sequence[int], *strides: Sequence[int]) -> Layout:
    """Layout of tensors of one shape [N, C, *spatial] with 1 to 3 spatial dims.

    Spatial dims may come in any order, since every kernel treats all spatial elements alike: they are sorted
    by the first tensor's strides and merged where all tensors allow it. Dims of size 1 get stride 0.

    Raises:
        ValueError: if there are more than 3 spatial dims.
    """
    if not 1 <= len(shape) - 2 <= 3:
        raise ValueError(f"shape must be [N, C, *spatial] with 1 to 3 spatial dims, got {tuple(shape)}")
    dims = [d for d in range(2, len(shape)) if shape[d] != 1]
    dims.sort(key=lambda d: strides[0][d], reverse=True)
    sizes: list[int] = []
    steps: list[list[int]] = []  # per remaining dim, the stride of every tensor
    for d in dims:
        inner = [tensor[d] for tensor in strides]
        if sizes and steps[-1] == [shape[d] * step for step in inner]:
            sizes[-1] *= shape[d]
            steps[-1] = inner
        else:
            sizes.append(shape[d])
            steps.append(inner)
    missing = 3 - len(sizes)
    depth, height, width = [1] * missing + sizes
    steps = [[0] * len(strides)] * missing + steps
    return Layout(
        n=shape[0],
        c=shape[1],
        spatial=(depth, height, width),
        strides=tuple(
            (
                tensor[0] if shape[0] != 1 else 0,
                tensor[1] if shape[1] != 1 else 0,
                steps[0][i],
                steps[1][i],
                steps[2][i],
            )
            for i, tensor in enumerate(strides)
        ),
    )
