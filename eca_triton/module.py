"""Efficient Channel Attention as modules."""

from __future__ import annotations

from torch import Tensor, nn

from .functional import adaptive_kernel_size, eca


class ECA(nn.Module):
    """Efficient Channel Attention of a map [N, C, *spatial].

    The one parameter is `conv.weight` [1, 1, k], as in the official code and in timm's EcaModule, whose
    checkpoints load as they are. The number of channels only chooses k: any number may be passed through.

    Equivalent to: `x * sigmoid(conv1d over channels of the spatial mean of x)`.

    Args:
        channels: chooses the number of taps by `adaptive_kernel_size`, unless k_size is given.
        k_size: number of taps, odd; None: from channels, or 3 without channels.
        gamma: divisor of the rule.
        b: offset of the rule.

    Raises:
        ValueError: k_size is even or not positive.

    Examples:
        >>> ECA(256)(torch.randn(2, 256, 56, 56)).shape
        torch.Size([2, 256, 56, 56])
    """

    def __init__(
        self, channels: int | None = None, k_size: int | None = None, gamma: float = 2, b: float = 1
    ) -> None:
        super().__init__()
        if k_size is None:
            k_size = 3 if channels is None else adaptive_kernel_size(channels, gamma, b)
        if k_size < 1 or k_size % 2 == 0:
            raise ValueError(f"k_size must be odd and positive, got {k_size}")
        self.channels = channels
        # Holds the weight, under the name and with the initial values of everyone's code; never called.
        self.conv = nn.Conv1d(1, 1, k_size, padding=k_size // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, *spatial] -> [N, C, *spatial], as `eca_triton.eca`."""
        conv = self.conv
        return eca(x, conv.weight, conv.bias)

    def extra_repr(self) -> str:
        return "" if self.channels is None else f"channels={self.channels}"


class ECABlock(ECA):
    """`ECA` with the positional arguments of the well-known block: ECABlock(channels, gamma, b).

    Examples:
        >>> ECABlock(256, 2, 1).conv.kernel_size
        (5,)
    """

    def __init__(self, channels: int, gamma: float = 2, b: float = 1) -> None:
        super().__init__(channels, gamma=gamma, b=b)
