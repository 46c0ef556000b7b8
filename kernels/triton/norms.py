"""RMS norm and LayerNorm, with the residual addition before them in the same pass.

Bound by memory. For rows [N, d] of b bytes a number: with the addition 4 N d b bytes, two rows read and two
written, without it 2 N d b bytes; the weights stay in the cache. LayerNorm without an addition is PyTorch's.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _sum(
    x_ptr, residual_ptr, sum_ptr, row, columns, inside, x_stride, residual_stride, width, ADD: tl.constexpr
):
    """A row in float32. With ADD it is x + residual, which is stored to sum_ptr."""
    x = tl.load(x_ptr + row * x_stride + columns, mask=inside, other=0.0).to(tl.float32)
    if ADD:
        x += tl.load(residual_ptr + row * residual_stride + columns, mask=inside, other=0.0).to(tl.float32)
        # The next layer reads the rounded sum, so the norm reads it too.
        rounded = x.to(sum_ptr.dtype.element_ty)
        tl.store(sum_ptr + row * width + columns, rounded, mask=inside)
        x = rounded.to(tl.float32)
    return x


@triton.jit
def _rms_norm_kernel(
    x_ptr,
    residual_ptr,
    weight_ptr,
    out_ptr,
    sum_ptr,
    x_stride,
    residual_stride,
    width,
    eps,
    ADD: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """``x / sqrt(mean(x^2) + eps) * weight``, one row per program."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    x = _sum(x_ptr, residual_ptr, sum_ptr, row, columns, inside, x_stride, residual_stride, width, ADD)
    x *= tl.rsqrt(tl.sum(x * x, axis=0) / width + eps)
    weight = tl.load(weight_ptr + columns, mask=inside, other=0.0)
    x = x.to(weight.dtype).to(tl.float32) * weight.to(tl.float32)
    tl.store(out_ptr + row * width + columns, x.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _add_layer_norm_kernel(
    x_ptr,
    residual_ptr,
    weight_ptr,
    bias_ptr,
    out_ptr,
    sum_ptr,
    x_stride,
    residual_stride,
    width,
    eps,
    BLOCK: tl.constexpr,
):
    """``(x - mean(x)) / sqrt(var(x) + eps) * weight + bias`` of x + residual, one row per program."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    x = _sum(x_ptr, residual_ptr, sum_ptr, row, columns, inside, x_stride, residual_stride, width, True)
    x = tl.where(inside, x - tl.sum(x, axis=0) / width, 0.0)
    x *= tl.rsqrt(tl.sum(x * x, axis=0) / width + eps)
    weight = tl.load(weight_ptr + columns, mask=inside, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(out_ptr + row * width + columns, (x * weight + bias).to(out_ptr.dtype.element_ty), mask=inside)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return _rms_norm(x, None, weight, eps)[0]


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return _rms_norm(x, residual, weight, eps)


def add_layer_norm(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    rows, width = x.shape
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    total = _empty_sum(x, residual)
    if rows:
        assert x.stride(1) == residual.stride(1) == weight.stride(0) == bias.stride(0) == 1
        block = triton.next_power_of_2(width)
        _add_layer_norm_kernel[(rows,)](
            x, residual, weight, bias, out, total, x.stride(0), residual.stride(0), width, eps, BLOCK=block,
            num_warps=_warps(block), enable_fp_fusion=True,
        )  # fmt: skip
    return out, total


def _rms_norm(x: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The norm of the sum, and the sum; without a residual the sum is x."""
    rows, width = x.shape
    out = torch.empty(x.shape, dtype=weight.dtype, device=x.device)
    total = x if residual is None else _empty_sum(x, residual)
    if rows:
        assert all(row is None or row.stride(-1) == 1 for row in (x, residual, weight))
        block = triton.next_power_of_2(width)
        _rms_norm_kernel[(rows,)](
            x, residual, weight, out, None if residual is None else total, x.stride(0),
            0 if residual is None else residual.stride(0), width, eps, ADD=residual is not None, BLOCK=block,
            num_warps=_warps(block), enable_fp_fusion=True,
        )  # fmt: skip
    return out, total


def _empty_sum(x: Tensor, residual: Tensor) -> Tensor:
    return torch.empty(x.shape, dtype=torch.promote_types(x.dtype, residual.dtype), device=x.device)


def _warps(block: int) -> int:
    return 4 if block <= 2048 else 8
