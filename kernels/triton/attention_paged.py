"""Attention over paged keys and values for decode steps, prefills, beams and draft tokens.

Two kernels read K and V, one for groups of a single row (multiply and reduce: the step is bound by memory)
and one for groups of several rows, which share every tile they read (``tl.dot``). Either may split the keys
of a sequence among programs, when there are too few rows to fill the device; a third kernel then merges
the parts. Grids and strides depend on host numbers only and lengths are read on the device, so a captured
launch stays right when the lengths change; a split that got no keys ends at once.

``softmax(scale q k^T + bias) v``. Bound by memory: each sequence's K and V once, 2 G D b bytes a key with G
heads of D numbers of b bytes, and 4 bytes more where the table is by cell; q and the output, 2 H D b bytes a
row. A row takes 4 H D FLOPs for each key it sees, so R rows to a sequence are R H / G FLOPs a byte in half
precision: far below what a device computes meanwhile, until the hundreds of rows of a prefill share each
key. Splitting writes and reads 4 H D bytes more for each row and split that has keys.
"""

import math

import torch
import triton
from torch import Tensor

from tandem.kernels.triton.attention_paged_kernels import merge_kernel, one_row_kernel, row_block_kernel
from tandem.kernels.triton.splits import choose_splits
from tandem.kernels.values import PagedKV, RowGroups, Scores

BLOCK_N = 64  # keys per tile


def paged_self_attention(
    q: Tensor, kv: PagedKV, groups: RowGroups, scores: Scores, sums: Tensor | None = None
) -> Tensor:
    return _launch(q, kv, groups, scores, sums, causal=True)


def paged_cross_attention(
    q: Tensor, kv: PagedKV, groups: RowGroups, scores: Scores, sums: Tensor | None = None
) -> Tensor:
    assert scores.bias_table is None
    return _launch(q, kv, groups, scores, sums, causal=False)


def paged_beam_attention(q: Tensor, kv: PagedKV, scores: Scores, sums: Tensor | None = None) -> Tensor:
    return _launch(q, kv, RowGroups.each(q.shape[0], q.device), scores, sums, causal=True, by_cell=True)


def _launch(
    q: Tensor,
    kv: PagedKV,
    groups: RowGroups,
    scores: Scores,
    sums: Tensor | None = None,
    *,
    causal: bool,
    splits: int | None = None,
    by_cell: bool = False,
) -> Tensor:
    """splits: one of SPLITS, or None to choose by the device's size. by_cell: the table has each
    key's cell, see `PagedKV`."""
    rows, heads, dim = q.shape
    out = torch.empty((rows, heads, dim), dtype=q.dtype, device=q.device)
    if rows == 0:
        return out
    scale, bias_table, softcap, _ = scores
    _, shared, page, _ = kv.k.shape
    assert q.stride()[1:] == (dim, 1)
    assert kv.table.stride(1) == 1
    assert heads % shared == 0
    assert sums is None or sums.is_contiguous()
    assert kv.k.is_contiguous()
    assert kv.v.is_contiguous()
    assert kv.begins is None or (not causal and kv.begins.is_contiguous())
    assert bias_table is None or (bias_table.is_contiguous() and bias_table.dtype == torch.float32)
    block_d = max(16, triton.next_power_of_2(dim))
    # Beams and drafts fit in 16 rows; prefills have more and gain from larger tiles.
    block_m = 16 if groups.max_rows <= 16 or dim > 128 else 64
    blocks = triton.cdiv(groups.max_rows, block_m)
    sequences = kv.lengths.shape[0]
    if splits is None:
        capacity = kv.table.shape[1] * (1 if by_cell else page)
        splits = choose_splits(q.device, rows, sequences, heads, capacity)
    parts, tops = out, sums
    if splits > 1:
        parts = torch.empty((rows, heads, splits, dim), dtype=torch.float32, device=q.device)
        tops = torch.empty((rows, heads, splits), dtype=torch.float32, device=q.device)
    tensors = (q, kv.k, kv.v, parts, tops, kv.table, kv.lengths, kv.begins, groups.cu_rows, bias_table)
    strides = (q.stride(0), kv.table.stride(0))
    common = {
        "HEADS": heads,
        "REACH": 0 if bias_table is None else bias_table.shape[1] - 1,
        "HAS_BIAS": bias_table is not None,
        "HAS_BEGINS": kv.begins is not None,
        "CAP": softcap or 0.0,
        "GROUP": heads // shared,
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
        one_row_kernel[(sequences, heads, splits)](
            *tensors, *strides, scale, BY_CELL=by_cell, num_stages=3, **common
        )
    else:
        row_block_kernel[(sequences * blocks, heads, splits)](
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
        merge_kernel[(rows * heads,)](
            parts, tops, out, sums, SPLITS=splits, SUMS=sums is not None, DIM=dim, BLOCK_D=block_d,
            num_warps=1, enable_fp_fusion=True,
        )  # fmt: skip
    if sums is not None:
        sums.mul_(math.log(2.0))
    return out
