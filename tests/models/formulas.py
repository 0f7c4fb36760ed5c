"""What each attention computes and how many parameters it has, written from the papers in numpy.

Names of weights are those of the modules' state dicts; maps are [N, C, H, W] in float64.
"""

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Weights = Mapping[str, Array]


def sigmoid(z: Array) -> Array:
    return 1 / (1 + np.exp(-z))


def softmax(z: Array, axis: int) -> Array:
    e = np.exp(z - z.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def means(x: Array) -> Array:
    n, c, h, w = x.shape
    return x.reshape(n, c, h * w).sum(2) / (h * w)


def rescaled(x: Array, z: Array) -> Array:
    return x * sigmoid(z).reshape(*z.shape, 1, 1)


def neighbours(y: Array, taps: Array) -> Array:
    """sum_j taps[c, j] * y[n, c + j - k // 2] over those j where there is a channel."""
    n, channels = y.shape
    z = np.zeros_like(y)
    for image in range(n):
        for c in range(channels):
            for j, tap in enumerate(taps[c]):
                if 0 <= c + j - len(taps[c]) // 2 < channels:
                    z[image, c] += tap * y[image, c + j - len(taps[c]) // 2]
    return z


def eca(x: Array, weights: Weights) -> Array:
    taps = weights["conv.weight"].reshape(1, -1).repeat(x.shape[1], 0)
    return rescaled(x, neighbours(means(x), taps))


def eca_ns(x: Array, weights: Weights) -> Array:
    return rescaled(x, neighbours(means(x), weights["conv.weight"][:, 0]))


def excitation(y: Array, first: Array, second: Array) -> Array:
    """W2 relu(W1 y)."""
    return np.einsum("cr,nr->nc", second[:, :, 0, 0], np.einsum("rc,nc->nr", first[:, :, 0, 0], y).clip(0))


def se(x: Array, weights: Weights) -> Array:
    return rescaled(x, excitation(means(x), weights["fc1.weight"], weights["fc2.weight"]))


def se_var1(x: Array, weights: Weights) -> Array:
    return rescaled(x, means(x))


def se_var2(x: Array, weights: Weights) -> Array:
    return rescaled(x, np.einsum("c,nc->nc", weights["weight"], means(x)))


def se_var3(x: Array, weights: Weights) -> Array:
    return rescaled(x, np.einsum("cd,nd->nc", weights["fc.weight"][:, :, 0, 0], means(x)))


def cbam(x: Array, weights: Weights) -> Array:
    """In evaluation mode: batch norm by its running statistics."""
    perceptron = weights["channel.fc1.weight"], weights["channel.fc2.weight"]
    x = rescaled(x, excitation(means(x), *perceptron) + excitation(x.max((2, 3)), *perceptron))
    n, _, h, w = x.shape
    pooled = np.pad(np.stack([x.mean(1), x.max(1)], 1), ((0, 0), (0, 0), (3, 3), (3, 3)))
    kernel = weights["spatial.conv.conv.weight"][0]
    z = np.zeros((n, h, w))
    for row in range(h):
        for column in range(w):
            window = pooled[:, :, row : row + 7, column : column + 7]
            z[:, row, column] = (window * kernel).sum((1, 2, 3))
    norm = {
        name: weights[f"spatial.conv.bn.{name}"] for name in ("running_mean", "running_var", "weight", "bias")
    }
    z = (z - norm["running_mean"]) / np.sqrt(norm["running_var"] + 1e-5) * norm["weight"] + norm["bias"]
    return x * sigmoid(z)[:, None]


def a2(x: Array, weights: Weights) -> Array:
    """By right association, A (softmax(B)^T softmax(V)), the paper's other way."""
    out = x.copy()
    for image, pixels in enumerate(x.reshape(*x.shape[:2], -1)):  # [C, HW]
        a, b, v = (
            weights[f"{name}.weight"][:, :, 0, 0] @ pixels for name in ("features", "gather", "distribute")
        )
        positions = softmax(b, axis=1).T @ softmax(v, axis=0)  # [HW, HW]
        out[image] += (weights["expand.weight"][:, :, 0, 0] @ (a @ positions)).reshape(x.shape[1:])
    return out


FORMULAS: dict[str, Callable[[Array, Weights], Array]] = {
    "eca": eca,
    "eca_ns": eca_ns,
    "se": se,
    "se_var1": se_var1,
    "se_var2": se_var2,
    "se_var3": se_var3,
    "cbam": cbam,
    "a2": a2,
}


def adaptive(channels: int) -> int:
    """Taps by equation 12 of the ECA-Net paper, as its code rounds."""
    t = int((np.log2(channels) + 1) / 2)
    return t if t % 2 else t + 1


def reduced(channels: int, reduction: int) -> int:
    """channels / reduction, halves rounded up."""
    return max(1, (2 * channels + reduction) // (2 * reduction))


PARAMETERS: dict[str, Callable[[int], int]] = {
    "eca": adaptive,
    "eca_ns": lambda c: adaptive(c) * c,
    "se": lambda c: 2 * c * reduced(c, 16),
    "se_var1": lambda c: 0,
    "se_var2": lambda c: c,
    "se_var3": lambda c: c**2,
    "cbam": lambda c: 2 * c * reduced(c, 16) + 7 * 7 * 2 + 2,
    "a2": lambda c: 4 * c * reduced(c, 2),
}
