"""Code around batch norm and ECA: what of it one op takes with them in training, and what it must leave."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from styles import CHANNELS, Network, batch_norm
from torch import Tensor, nn

SHAPE = (4, CHANNELS, 6, 5)


def in_place(net: Network, x: Tensor) -> Tensor:
    y = net.attend(x)
    y += x
    return F.relu(y, inplace=True)


def many_readers(net: Network, x: Tensor) -> tuple[Tensor, ...]:
    y = F.relu(net.attend(x) + x)
    return y, F.max_pool2d(y, 2), y.mean((2, 3)), y + x


# code: gain, whether a residual and ReLU are in the op
WHOLE: dict[str, tuple[Callable[[Network, Tensor], Any], tuple[float, bool, bool]]] = {
    "add and relu in place": (in_place, (1.0, True, True)),
    "gain, residual, relu": (lambda net, x: F.relu(0.5 * net.attend(x) + x), (0.5, True, True)),
    "shortcut first": (lambda net, x: torch.relu(x + net.attend(x)), (1.0, True, True)),
    "shortcut with its own batch norm": (
        lambda net, x: F.relu(net.attend(x) + F.batch_norm(x, None, None, training=True)),
        (1.0, True, True),
    ),
    "result read by many": (many_readers, (1.0, True, True)),
    "relu alone": (lambda net, x: F.relu(net.attend(x)), (1.0, False, True)),
    "no tail": (lambda net, x: net.attend(x), (1.0, False, False)),
}


def changed_shortcut(net: Network, x: Tensor) -> Tensor:
    shortcut = x.sin()
    y = net.attend(x) + shortcut
    shortcut.mul_(2)
    return F.relu(y) + shortcut


def sum_into_the_shortcut(net: Network, x: Tensor) -> Tensor:
    shortcut = x.sin()
    shortcut += net.attend(x)
    return F.relu(shortcut)


def sum_read_twice(net: Network, x: Tensor) -> Tensor:
    y = net.attend(x) + x
    return F.relu(y) + y.tanh()


def rescaled_map_read_twice(net: Network, x: Tensor) -> tuple[Tensor, Tensor]:
    y = net.attend(x)
    return F.relu(y + x), y


# code: how many additions and activations stay outside the op
WITHOUT_TAIL: dict[str, tuple[Callable[[Network, Tensor], Any], int]] = {
    "relu6": (lambda net, x: F.relu6(net.attend(x) + x), 2),
    "silu": (lambda net, x: F.silu(net.attend(x) + x), 2),
    "residual alone": (lambda net, x: net.attend(x) + x, 1),
    "alpha": (lambda net, x: F.relu(torch.add(net.attend(x), x, alpha=2)), 2),
    "broadcast shortcut": (lambda net, x: F.relu(net.attend(x) + net.offset), 2),
    "a number as shortcut": (lambda net, x: F.relu(net.attend(x) + 1.0), 2),
    "shortcut changed before relu": (changed_shortcut, 3),
    "sum into the shortcut": (sum_into_the_shortcut, 2),
    "sum read twice": (sum_read_twice, 3),
    "rescaled map read twice": (rescaled_map_read_twice, 2),
    "gain of a tensor": (lambda net, x: F.relu(net.attend(x) * net.offset + x), 2),
}


def input_changed(net: Network, x: Tensor) -> Tensor:
    y = net.conv(x)
    z = net.eca(net.bn(y))
    y.zero_()
    return F.relu(z + x)


def result_of_batch_norm_read(net: Network, x: Tensor) -> Tensor:
    y = net.bn(net.conv(x))
    return F.relu(net.eca(y) + y)


def batch_norm_weight_changed(net: Network, x: Tensor) -> Tensor:
    weight = net.bn.weight * 2
    y = net.eca(F.batch_norm(net.conv(x), None, None, weight, net.bn.bias, training=True))
    weight.zero_()
    return F.relu(y + x)


def taps_changed(net: Network, x: Tensor) -> Tensor:
    y = net.bn(net.conv(x))
    taps = net.eca.conv.weight * 2
    y = y * F.conv1d(y.mean((2, 3)).unsqueeze(1), taps, padding=1).sigmoid().view(*y.shape[:2], 1, 1)
    taps.zero_()
    return F.relu(y + x)


# What the op reads is changed between the product and the end of the tail, which autograd forbids.
CHANGED_BEHIND: dict[str, Callable[[Network, Tensor], Any]] = {
    "input of batch norm": input_changed,
    "weight of batch norm": batch_norm_weight_changed,
    "taps": taps_changed,
}
NOT: dict[str, Callable[[Network, Tensor], Any]] = {
    "one batch norm called twice": lambda net, x: F.relu(net.attend(x) + net.bn(x)),
    "result of batch norm read": result_of_batch_norm_read,
    "running mean read": lambda net, x: F.relu(net.attend(x) + x) * net.bn.running_mean.view(1, -1, 1, 1),
    "activation between": lambda net, x: net.eca(F.relu(net.bn(net.conv(x)))) + x,
}

BATCH_NORMS: dict[str, Callable[[], nn.Module]] = {
    "no affine": lambda: batch_norm(affine=False),
    "no running statistics": lambda: nn.BatchNorm2d(CHANNELS, track_running_stats=False),
    "momentum and eps of its own": lambda: nn.BatchNorm2d(CHANNELS, momentum=0.3, eps=1e-2),
}
