"""Launches the kernels of `attention_paged_kernels`: which of them, over what grid, of what tiles."""

from __future__ import annotations

import math

import torch
import triton
from torch import Tensor

from tandem.kernels.groups import RowGroups
from tandem.kernels.triton import attention_paged_kernels as kernels
from tandem.kernels.triton.splits import choose_splits

BLOCK_N = 64  # keys per tile


def paged_self_attention(
    q: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    page_table: Tensor,
    lengths: Tensor,
    groups: RowGroups,
    bias_table: Tensor | None,
    scale: float,
    softcap: float | None = None,
    sums: Tensor | None = None,
) -> Tensor:
    inputs = q, k_pages, v_pages, page_table, lengths, groups, bias_table, scale
    return _launch(*inputs, softcap, sums, causal=True)


def paged_beam_attention(
    q: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    cells: Tensor,
    lengths: Tensor,
    bias_table: Tensor | None,
    scale: float,
    softcap: float | None = None,
    sums: Tensor | None = None,
) -> Tensor:
    each = RowGroups.each(q.shape[0], q.device)
    inputs = q, k_pages, v_pages, cells, lengths, each, bias_table, scale
    return _launch(*inputs, softcap, sums, causal=True, by_cell=True)


def paged_cross_attention(
    q: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    page_table: Tensor,
    lengths: Tensor,
    groups: RowGroups,
    scale: float,
    softcap: float | None = None,
    sums: Tensor | None = None,
) -> Tensor:
    inputs = q, k_pages, v_pages, page_table, lengths, groups, None, scale
    return _launch(*inputs, softcap, sums, causal=False)


def _launch(
    q: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    page_table: Tensor,
    lengths: Tensor,
    groups: RowGroups,
    bias_table: Tensor | None,
    scale: float,
    softcap: float | None = None,
    sums: Tensor | None = None,
    *,
    causal: bool,
    splits: int | None = None,
    by_cell: bool = False,
) -> Tensor:
    """splits: a power of two, or None to choose by the device's size. by_cell: see _cells."""
    rows, heads, dim = q.shape
    out = torch.empty((rows, heads, dim), dtype=q.dtype, device=q.device)
    if rows == 0:
        return out
    assert q.stride()[1:] == (dim, 1)
    assert page_table.stride(1) == 1
    assert heads % k_pages.shape[1] == 0
    assert sums is None or sums.is_contiguous()
    assert all(pages.is_contiguous() for pages in (k_pages, v_pages))
    assert bias_table is None or (bias_table.is_contiguous() and bias_table.dtype == torch.float32)
    page = k_pages.shape[2]
    block_d = max(16, triton.next_power_of_2(dim))
    # Beams and drafts fit in 16 rows; prefills have more and gain from larger tiles.
    block_m = 16 if groups.max_rows <= 16 or dim > 128 else 64
    blocks = triton.cdiv(groups.max_rows, block_m)
    sequences = lengths.shape[0]
    if splits is None:
        capacity = page_table.shape[1] * (1 if by_cell else page)
        splits = choose_splits(q.device, rows, sequences, heads, capacity)
    parts, tops = out, sums
    if splits > 1:
        parts = torch.empty((rows, heads, splits, dim), dtype=torch.float32, device=q.device)
        tops = torch.empty((rows, heads, splits), dtype=torch.float32, device=q.device)
    tensors = (q, k_pages, v_pages, parts, tops, page_table, lengths, groups.cu_rows, bias_table)
    strides = (q.stride(0), page_table.stride(0))
    common = {
        "HEADS": heads,
        "REACH": 0 if bias_table is None else bias_table.shape[1] - 1,
        "HAS_BIAS": bias_table is not None,
        "CAP": softcap or 0.0,
        "GROUP": heads // k_pages.shape[1],
        "SUMS": sums is not None,
        "SPLITS": splits,
        "PAGE": page,
        "DIM": dim,
        "BLOCK_D": block_d,
        "BLOCK_N": BLOCK_N if dim <= 128 else BLOCK_N // 2,
        "num_warps": 4,
        "enable_fp_fusion": True,
    }
    if groups.max_rows == 1:
        kernels.one_row[(sequences, heads, splits)](
            *tensors, *strides, scale, BY_CELL=by_cell, num_stages=3, **common
        )
    else:
        kernels.row_block[(sequences * blocks, heads, splits)](
            *tensors,
            *strides,
            scale,
            blocks,
            CAUSAL=causal,
            BLOCK_M=block_m,
            # The interpreter's bfloat16 dot is wrong; it is the only way this runs off CUDA.
            UPCAST=not q.is_cuda and q.dtype == torch.bfloat16,
            num_stages=2,
            **common,
        )
    if splits > 1:
        kernels.merge[(rows * heads,)](
            parts, tops, out, sums, SPLITS=splits, SUMS=sums is not None, DIM=dim, BLOCK_D=block_d,
            num_warps=1, enable_fp_fusion=True,
        )  # fmt: skip
    if sums is not None:
        sums.mul_(math.log(2.0))
    return out
