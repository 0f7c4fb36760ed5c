"""Batch norm in training, ECA, residual and ReLU: one operator, which a compiler takes apart again.

All that they need of a map are moments per image and channel, so either direction makes two passes over it:

    forward   mean[n,c], var[n,c] of x over space -> mu, var over the batch (Chan's formula) -> gates g
              out = relu(gain * g * xhat + residual), xhat = (x - mu) * a + beta, a = gamma * rstd
    backward  p = dy * (out > 0);  P = sum p, Q = sum p * (x - mu) over space
              d_gate = gain * (a Q + beta P) -> t, the gradient of the pooled xhat
              d_beta = sum_n (gain g P + t),  d_gamma = rstd * sum_n (gain g Q + t (mean - mu))
              dx = a (gain g p + t / HW - d_beta / M - (x - mu) rstd d_gamma / M),  M = N HW

(the chain rule through batch norm, https://arxiv.org/abs/1502.03167, and the mean over space). The passes are
native operators, which Inductor fuses with whatever stands around them: the sum of two branches' gradients,
another batch norm before the residual. An opaque operator would have each of those stored first. In eager
mode nothing is fused, so where kernels of ours can run, they make the passes (`batch_norm_kernels`).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..reference import compute_dtype
from ..reference import training as reference_training
from ..reference.arguments import BatchNormArguments
from . import batch_norm_kernels, checks, joint_batch
from .autograd import transforms_are_active
from .schema import GATE_FROM_POOL, GATE_FROM_POOL_BACKWARD, LIBRARY


class _Saved(NamedTuple):
    """Values that backward needs beside the arguments, all of them small but `mask`.

    means, pooled, gates: [N, C]; mean, rstd: [C]; mask: bits, or `out`, or None without ReLU; joint: where
    processes share a batch, the elements of a channel in all of it, [1].
    """

    means: Tensor
    mean: Tensor
    rstd: Tensor
    pooled: Tensor
    gates: Tensor
    mask: Tensor | None
    joint: Tensor | None = None


def _forward(a: BatchNormArguments) -> tuple[Tensor, Tensor, _Saved]:
    """The result, the batch's unbiased variance, and what backward needs; differentiable by itself."""
    dtype = compute_dtype(a.x)
    x = a.x.to(dtype)
    variances, means = torch.var_mean(x, tuple(range(2, x.ndim)), correction=0)
    wide = _dtype_over_images(x)
    mean = means.mean(0)
    var = variances.mean(0, dtype=wide) + (means - mean).to(wide).square().mean(0)
    count: Any = a.x.numel() // a.x.shape[1]
    if a.group:
        count, mean, var = joint_batch.statistics(count, mean, var, a.group)
        count = count.to(dtype)
    rstd = _rounded(torch.rsqrt(var + a.bn_eps), dtype)
    var = _rounded(var, dtype)
    scale = rstd if a.bn_weight is None else rstd * a.bn_weight.to(dtype)
    # Before the gate: what is first used behind an external kernel, torch.compile would save, in fp32.
    centred = x - _over_map(mean, x)
    xhat, pooled = centred * _over_map(scale, x), (means - mean) * scale
    if a.bn_bias is not None:
        xhat, pooled = xhat + _over_map(a.bn_bias.to(dtype), x), pooled + a.bn_bias.to(dtype)
    gates = GATE_FROM_POOL(pooled, a.weight, a.bias, circular=a.circular, gate=a.gate)
    out = xhat * _over_map(gates if a.gain == 1.0 else gates * a.gain, x)
    if a.residual is not None:
        out = out + a.residual.to(dtype)
    mask = None
    if a.activation == "relu":
        if a.pack_mask:
            mask = reference_training.pack(~(out <= 0), "channels_last")
        out = torch.relu(out)
    out = out.to(a.out_dtype or a.x.dtype)
    if a.activation == "relu" and mask is None:
        mask = out
    return (
        out,
        var * (count / (count - 1)),
        _Saved(means, mean, rstd, pooled, gates, mask, count if a.group else None),
    )


class _BatchNormEca(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, options: dict[str, Any], *tensors: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        a = BatchNormArguments(*tensors, **options)  # type: ignore[arg-type]
        out, var, saved = _forward(a)
        if saved.mask is not None and a.pack_mask:
            # Adds 0. What no result depends on, torch.compile would make again in backward, from the map.
            var = var + (saved.mask.as_strided((), ()).to(torch.int32) >> 8)
        ctx.options = options
        ctx.save_for_backward(*tensors, *saved)
        ctx.mark_non_differentiable(saved.mean, var)
        ctx.set_materialize_grads(False)
        return out, saved.mean, var

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        if dy is None:
            return (None,) * 7
        tensors, saved = ctx.saved_tensors[:6], _Saved(*ctx.saved_tensors[6:])
        a = BatchNormArguments(*tensors, **ctx.options)
        needs = ctx.needs_input_grad[1:]
        grads = _plain_gradients(a, dy, needs) if torch.is_grad_enabled() else _gradients(a, saved, dy)
        return None, *(grad if needed else None for grad, needed in zip(grads, needs, strict=True))


class _BatchNormEcaByKernels(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, options: dict[str, Any], mask_order: str, *tensors: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        a = BatchNormArguments(*tensors, **options)  # type: ignore[arg-type]
        out, var, statistics = batch_norm_kernels.forward(a, mask_order)
        ctx.options, ctx.mask_order = options, mask_order
        ctx.residual_dtype = None if a.residual is None else a.residual.dtype
        recomputes = a.activation == "relu" and statistics.mask is None
        ctx.save_for_backward(*a[:5], a.residual if recomputes else None, *statistics)
        ctx.mark_non_differentiable(statistics.mean, var)
        ctx.set_materialize_grads(False)
        return out, statistics.mean, var

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        if dy is None:
            return (None,) * 8
        saved = ctx.saved_tensors
        a, statistics = (
            BatchNormArguments(*saved[:6], **ctx.options),
            batch_norm_kernels.Statistics(*saved[6:]),
        )
        needs = ctx.needs_input_grad[2:]
        by_kernels = not torch.is_grad_enabled() and batch_norm_kernels.take(a, dy)
        backward = batch_norm_kernels.backward if by_kernels else _gradients_after_kernels
        *grads, d_residual = backward(a, statistics, ctx.mask_order, dy, needs)
        if d_residual is not None and ctx.residual_dtype is not None:
            grads.append(d_residual.to(ctx.residual_dtype))
        else:
            grads.append(None)
        return None, None, *(grad if needed else None for grad, needed in zip(grads, needs, strict=True))


def _gradients(a: BatchNormArguments, saved: _Saved, dy: Tensor) -> tuple[Tensor | None, ...]:
    dtype = compute_dtype(a.x)
    space = tuple(range(2, a.x.ndim))
    elements = a.x.numel() // max(1, a.x.shape[0] * a.x.shape[1])
    batch = a.x.shape[0] * elements if saved.joint is None else saved.joint
    scale = saved.rstd if a.bn_weight is None else saved.rstd * a.bn_weight.to(dtype)
    p = dy
    if saved.mask is not None:
        # As torch's ReLU: a NaN passes the gradient.
        if a.pack_mask:
            opened = reference_training.unpack(saved.mask, a.x.shape, "channels_last")
            # In x's memory format: a first operand gives its own to what is made of it.
            opened = opened.contiguous() if a.x.is_contiguous() else opened
        else:
            opened = ~(saved.mask <= 0)
        p = torch.where(opened, dy, 0)
    centred = a.x.to(dtype) - _over_map(saved.mean, a.x)
    p_sum = p.to(dtype).sum(space)
    p_dot = (p.to(dtype) * centred).sum(space)
    d_gates = scale * p_dot if a.bn_bias is None else scale * p_dot + a.bn_bias.to(dtype) * p_sum
    d_pooled, d_weight, d_bias = GATE_FROM_POOL_BACKWARD(
        d_gates if a.gain == 1.0 else d_gates * a.gain, saved.pooled, a.weight, a.bias,
        circular=a.circular, gate=a.gate,
    )  # fmt: skip
    gates = saved.gates if a.gain == 1.0 else saved.gates * a.gain
    wide = _dtype_over_images(p_sum)
    wide_gates, wide_d_pooled = gates.to(wide), d_pooled.to(wide)
    d_shift = _rounded((wide_gates * p_sum + wide_d_pooled).sum(0), dtype)
    d_scale = (wide_gates * p_dot + wide_d_pooled * (saved.means - saved.mean)).sum(0)
    d_scale = _rounded(saved.rstd * d_scale, dtype)
    # The parameters' gradients stay this process's own: DistributedDataParallel adds them up.
    all_shift, all_scale = joint_batch.sums(d_shift, d_scale, a.group) if a.group else (d_shift, d_scale)
    d_x = (
        p.to(dtype) * _over_map(gates * scale, a.x)
        + _over_map((d_pooled / elements - all_shift / batch) * scale, a.x)
        - centred * _over_map(scale * saved.rstd * all_scale / batch, a.x)
    )
    return (
        d_x.to(a.x.dtype),
        d_weight,
        None if a.bias is None else d_bias,
        None if a.bn_weight is None else d_scale.to(a.bn_weight.dtype),
        None if a.bn_bias is None else d_shift.to(a.bn_bias.dtype),
        None if a.residual is None else p.to(a.residual.dtype),
    )


def _plain_gradients(a: BatchNormArguments, dy: Tensor, needs: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
    """Differentiate the plain formula: `_gradients` for a backward that is itself differentiated."""
    if a.group:
        raise NotImplementedError("eca_triton::batch_norm_eca: no second derivatives across a process group")
    tensors: list[Any] = [tensor for tensor, needed in zip(a, needs, strict=False) if needed]
    grads = iter(torch.autograd.grad(_forward(a)[0], tensors, dy, create_graph=True))
    return tuple(next(grads) if needed else None for needed in needs)


def _gradients_after_kernels(
    a: BatchNormArguments,
    statistics: batch_norm_kernels.Statistics,
    mask_order: str,
    dy: Tensor,
    needs: tuple[bool, ...],
) -> tuple[Tensor | None, ...]:
    """Do `batch_norm_kernels.backward` for a backward that is differentiated, or that somebody traces."""
    p = dy
    if a.activation == "relu":
        if statistics.mask is None:
            with torch.no_grad():
                opened = ~(_forward(a)[0] <= 0)
        else:
            opened = reference_training.unpack(statistics.mask, a.x.shape, mask_order)
        p = torch.where(opened, dy, 0)
    if not any(needs[:5]):
        return (*[None] * 5, p)
    a = a._replace(residual=None, activation="identity", pack_mask=False)
    if torch.is_grad_enabled():
        return *_plain_gradients(a, p, needs[:5])[:5], p
    means, mean, var, _ = statistics
    rstd = torch.rsqrt(var + a.bn_eps)
    pooled = (means - mean) * (rstd if a.bn_weight is None else rstd * a.bn_weight.to(rstd.dtype))
    if a.bn_bias is not None:
        pooled = pooled + a.bn_bias.to(pooled.dtype)
    gates = GATE_FROM_POOL(pooled, a.weight, a.bias, circular=a.circular, gate=a.gate)
    return *_gradients(a, _Saved(means, mean, rstd, pooled, gates, None), p)[:5], p


def _dtype_over_images(x: Tensor) -> torch.dtype:
    """The dtype in which values per image are added up over the batch: float64 where the device has it.

    Statistics and gradients of a channel cancel in these sums of a few values: float32 rounds in them
    as much as in all elements of the map.
    """
    return torch.float64 if x.device.type in ("cpu", "cuda") else x.dtype


def _rounded(v: Tensor, dtype: torch.dtype) -> Tensor:
    """v [C] in another dtype, stored: torch.compile would round it anew at every element that reads it."""
    return v.to(dtype).as_strided(v.shape, (1,))


def _over_map(v: Tensor, x: Tensor) -> Tensor:
    """A vector [C] or [N, C] in the shape that broadcasts over x [N, C, *spatial]."""
    return v.reshape(*v.shape, *[1] * (x.ndim - 2))


def plain(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The operator as native code around `gate_from_pool`, with the derivatives of the plain formula."""
    a = BatchNormArguments(*args, **kwargs)
    checks.check_batch_norm_eca("batch_norm_eca", a)
    out, var, saved = _forward(a)
    return out, saved.mean, var


def _batch_norm_eca(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor, Tensor]:
    if transforms_are_active():
        return plain(*args, **kwargs)
    a = BatchNormArguments(*args, **kwargs)
    checks.check_batch_norm_eca("batch_norm_eca", a)
    options = dict(zip(BatchNormArguments._fields[6:], a[6:], strict=True))
    if batch_norm_kernels.take(a):
        differentiates = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in a[:6])
        mask_order = batch_norm_kernels.mask_order(a) if differentiates else "none"
        return _BatchNormEcaByKernels.apply(options, mask_order, *a[:6])  # type: ignore[no-any-return]
    return _BatchNormEca.apply(options, *a[:6])  # type: ignore[no-any-return]


LIBRARY.impl("batch_norm_eca", _batch_norm_eca, "CompositeImplicitAutograd")
