"""A site with everything, trained by our operator and by eager code."""

import torch
from eager_block import eager_eca
from torch.utils._python_dispatch import TorchDispatchMode

from eca_triton.ops.schema import ECA

FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
NAMES = ("x", "weight", "bias", "bn_weight", "bn_bias", "residual")


class OperatorsRun(TorchDispatchMode):
    """Our operators that reach a backend, with their keyword arguments."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "eca_triton":
            self.calls.append((func._opname, kwargs or {}))
        return func(*args, **(kwargs or {}))

    def names(self):
        return [name for name, _ in self.calls]


def site(
    shape=(2, 8, 6, 6), dtype=torch.float32, memory_format=torch.contiguous_format, k=5, batch_norm=True
):
    """Every tensor of a site; the statistics of its batch norm first, or None for each."""
    c = shape[1]
    maps = [torch.randn(shape).to(dtype=dtype, memory_format=memory_format) for _ in range(2)]
    vectors = (torch.randn(1, 1, k), torch.randn(1), torch.rand(c) + 0.5, torch.randn(c))
    x, residual = maps
    tensors = (x, *(v.to(dtype) for v in vectors), residual)
    statistics, named = (torch.randn(c), torch.rand(c) + 0.5), dict(zip(NAMES, tensors, strict=True))
    if batch_norm:
        return tuple(each.to(dtype) for each in statistics), named
    return (None, None), {name: t for name, t in named.items() if not name.startswith("bn")}


def by_op(statistics, x, weight, bias, bn_weight=None, bn_bias=None, residual=None, **options):
    return ECA(x, weight, bias, *statistics, bn_weight, bn_bias, residual, **options)


def by_eager(
    statistics, x, weight, bias, bn_weight=None, bn_bias=None, residual=None, *, out_dtype=None, **options
):
    bn = None if statistics[0] is None else (*statistics, bn_weight, bn_bias)
    out = eager_eca(x, weight, bias, bn=bn, residual=residual, **options)
    return out if out_dtype is None else out.to(out_dtype)


def gradients(block, statistics, tensors, wanted=NAMES, upstream=None, **options):
    leaves = {name: t.detach().requires_grad_(name in wanted) for name, t in tensors.items()}
    out = block(statistics, **leaves, **options)
    if upstream is None:  # the same number in every dtype, and positive: sums that cancel have few digits
        upstream = (torch.arange(out.numel()).view_as(out) * 5 % 8 + 1) / 8
    out.backward(upstream.to(out.dtype))
    return {"out": out.detach()} | {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}
