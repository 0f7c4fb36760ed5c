"""Second pass over the map: gates from the partial sums, then the whole tail."""

import triton
import triton.language as tl

from .addressing import multiple_of, spatial_offsets
from .band import band_convolution
from .elementwise import activate, batch_norm_terms, gate_of


@triton.jit
def rescale_kernel(
    x_ptr, partial_ptr, weight_ptr, bias_ptr, residual_ptr, out_ptr,
    bn_mean_ptr, bn_var_ptr, bn_weight_ptr, bn_bias_ptr, bn_eps, gain, inv_hw,
    N, C, HW, H, W, stride_w,
    stride_xn, stride_xc, stride_xd, stride_xh, stride_xw,
    stride_rn, stride_rc, stride_rd, stride_rh, stride_rw,
    stride_on, stride_oc, stride_od, stride_oh, stride_ow,
    K: tl.constexpr, CIRCULAR: tl.constexpr, GATE: tl.constexpr,
    PRE_ACTIVATION: tl.constexpr, ACTIVATION: tl.constexpr, POOL_SPLITS: tl.constexpr, SPLITS: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_HW: tl.constexpr,
    VEC_C: tl.constexpr, VEC_HW: tl.constexpr, FLAT: tl.constexpr,
):  # fmt: skip
    """out[n, c, :] = activation(gain * xhat * g[n, c] + residual), xhat = pre_activation(batch_norm(x)).
    One program owns BLOCK_C channels of one image and one of SPLITS ranges of hw; it forms its own gates
    from partial: [N, POOL_SPLITS, C] fp32. Images go last to first: pooling left the last in L2.
    Reads x and residual once (2 S), writes out (S); each: [N, C, HW] fp16/bf16/fp32, any strides.
    """
    pid = tl.program_id(0)
    blocks_c = tl.cdiv(C, BLOCK_C)
    n = (N - 1 - pid // (blocks_c * SPLITS)).to(tl.int64)
    split = pid // blocks_c % SPLITS
    offs_c = pid % blocks_c * BLOCK_C + tl.arange(0, BLOCK_C)
    mask_c = offs_c < multiple_of(C, VEC_C)

    z = band_convolution(
        partial_ptr + n * POOL_SPLITS * C, weight_ptr, bias_ptr, offs_c, mask_c, C, inv_hw, C, 1, stride_w,
        bn_mean_ptr if PRE_ACTIVATION == "identity" else None,
        bn_var_ptr, bn_weight_ptr, bn_bias_ptr, bn_eps, POOL_SPLITS, K, CIRCULAR, BLOCK_K,
    )  # fmt: skip
    factor = (gain * gate_of(z, GATE))[:, None]
    if bn_mean_ptr is not None:
        center, scale, shift = batch_norm_terms(
            bn_mean_ptr, bn_var_ptr, bn_weight_ptr, bn_bias_ptr, bn_eps, offs_c, mask_c
        )

    channel = offs_c.to(tl.int64)[:, None]
    x_row = multiple_of(n * stride_xn, VEC_C * VEC_HW) + channel * multiple_of(stride_xc, VEC_HW)
    out_row = multiple_of(n * stride_on, VEC_C * VEC_HW) + channel * multiple_of(stride_oc, VEC_HW)
    if residual_ptr is not None:
        residual_row = multiple_of(n * stride_rn, VEC_C * VEC_HW) + channel * multiple_of(stride_rc, VEC_HW)
    chunk = tl.cdiv(tl.cdiv(HW, SPLITS), BLOCK_HW) * BLOCK_HW
    begin = split * chunk
    for start in range(begin, tl.minimum(begin + chunk, HW), BLOCK_HW):
        offs_hw = start + tl.arange(0, BLOCK_HW)
        mask = mask_c[:, None] & (offs_hw < multiple_of(HW, VEC_HW))[None, :]
        offs = x_row + spatial_offsets(offs_hw, H, W, stride_xd, stride_xh, stride_xw, VEC_C, FLAT)
        v = tl.load(x_ptr + offs, mask=mask, other=0.0).to(tl.float32)
        if bn_mean_ptr is not None:
            v = (v - center[:, None]) * scale[:, None] + shift[:, None]
        v = activate(v, PRE_ACTIVATION) * factor
        if residual_ptr is not None:
            offs = residual_row + spatial_offsets(offs_hw, H, W, stride_rd, stride_rh, stride_rw, VEC_C, FLAT)
            v += tl.load(residual_ptr + offs, mask=mask, other=0.0).to(tl.float32)
        v = activate(v, ACTIVATION)
        offs = out_row + spatial_offsets(offs_hw, H, W, stride_od, stride_oh, stride_ow, VEC_C, FLAT)
        tl.store(out_ptr + offs, v.to(out_ptr.dtype.element_ty), mask=mask)
