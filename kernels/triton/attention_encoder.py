"""Bidirectional attention over packed sequences, with a relative bias that depends on the distance only.

The bias of a tile of scores depends only on where the tile lies relative to the diagonal, and it is one
number once the tile is farther from the diagonal than the table reaches. So each call first lays out the few
different tiles there are (about a megabyte, which stays in the L2 cache), and the attention reads them like K
and V. Gathering from the table inside the loop compiles to 4-byte copies through shared memory instead.

``softmax(scale q k^T + bias) v``. Bound by arithmetic: 4 H D FLOPs for each pair of a query and a key, n^2
pairs in a sequence of n tokens, or n W where a window covers W. Memory: q, k, v and the output once,
2 (H + G) D b bytes a token, with H heads of q, G heads of k and v, D numbers a head and b bytes a number.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from tandem.kernels.triton.attention_paged_kernels import soft_capped
from tandem.kernels.values import Scores, Summaries

LOG2_E: tl.constexpr = tl.constexpr(1.4426950408889634)

# (queries a block, keys a block, warps, stages), by the bytes of a number and the padded head dim. Queries a
# block are a multiple of keys a block: the tiles of the bias count on it.
CONFIGS = {
    (2, 32): (128, 64, 4, 3),
    (2, 64): (128, 64, 4, 3),
    (2, 128): (128, 64, 8, 3),
    (2, 256): (64, 64, 8, 2),
    (4, 32): (64, 32, 4, 2),
    (4, 64): (64, 32, 4, 2),
    (4, 128): (32, 32, 4, 2),
    (4, 256): (32, 16, 4, 2),
}


@triton.jit
def _bias_tiles_kernel(
    table_ptr,
    tiles_ptr,
    REACH: tl.constexpr,
    LEFT: tl.constexpr,
    TILES: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """One tile of one head per program: tiles[head, t, m, n] = table[head, (t - LEFT) BLOCK_N + n - m]."""
    tile, head = tl.program_id(0), tl.program_id(1)
    m = tl.arange(0, BLOCK_M)[:, None]
    n = tl.arange(0, BLOCK_N)[None, :]
    distance = (tile - LEFT) * BLOCK_N + n - m
    distance = tl.minimum(tl.maximum(distance, -REACH), REACH) + REACH
    bias = tl.load(table_ptr + head * (2 * REACH + 1) + distance)
    cell = ((head * TILES + tile) * BLOCK_M + m) * BLOCK_N + n
    tl.store(tiles_ptr + cell, bias.to(tiles_ptr.dtype.element_ty))


@triton.jit
def _tiles(
    acc,
    total,
    top,
    q,
    k_ptr,
    v_ptr,
    k_stride,
    v_stride,
    tiles_ptr,
    bias,
    row,
    first,
    last,
    length,
    scale,
    NEAR: tl.constexpr,
    LEFT: tl.constexpr,
    CAP: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Online softmax over keys first to last, in powers of 2. NEAR: the bias is read by tile, else one
    number."""
    dims = tl.arange(0, BLOCK_D)
    for start in range(first, last, BLOCK_N):
        keys = start + tl.arange(0, BLOCK_N)
        live = keys < length
        inside = live[:, None] & (dims < DIM)[None, :]
        k = tl.load(k_ptr + keys.to(tl.int64)[:, None] * k_stride + dims[None, :], mask=inside, other=0.0)
        if UPCAST:
            k = k.to(tl.float32)
        scores = soft_capped(tl.dot(q, tl.trans(k), input_precision="ieee") * scale, CAP)
        if NEAR:
            tile = (start - row) // BLOCK_N + LEFT
            cell = (tile * BLOCK_M + tl.arange(0, BLOCK_M))[:, None] * BLOCK_N + tl.arange(0, BLOCK_N)[
                None, :
            ]
            scores += tl.load(tiles_ptr + cell).to(tl.float32) * LOG2_E
        else:
            scores += bias
        scores = tl.where(live[None, :], scores, float("-inf"))
        new_top = tl.maximum(top, tl.max(scores, axis=1))
        weights = tl.exp2(scores - new_top[:, None])
        shrink = tl.exp2(top - new_top)
        v = tl.load(v_ptr + keys.to(tl.int64)[:, None] * v_stride + dims[None, :], mask=inside, other=0.0)
        if UPCAST:
            v = v.to(tl.float32)
        acc = acc * shrink[:, None]
        acc = tl.dot(weights.to(v.dtype), v, acc, input_precision="ieee")
        total = total * shrink + tl.sum(weights, axis=1)
        top = new_top
    return acc, total, top


@triton.jit
def _summaries(
    acc,
    total,
    top,
    q,
    k_ptr,
    v_ptr,
    k_stride,
    v_stride,
    table_ptr,
    own,
    count,
    scale,
    REACH: tl.constexpr,
    CAP: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Continues the online softmax over the keys of blocks, which are few: their bias is gathered."""
    dims = tl.arange(0, BLOCK_D)
    for start in range(0, count, BLOCK_N):
        keys = start + tl.arange(0, BLOCK_N)
        live = keys < count
        inside = live[:, None] & (dims < DIM)[None, :]
        k = tl.load(k_ptr + keys.to(tl.int64)[:, None] * k_stride + dims[None, :], mask=inside, other=0.0)
        if UPCAST:
            k = k.to(tl.float32)
        scores = soft_capped(tl.dot(q, tl.trans(k), input_precision="ieee") * scale, CAP)
        distance = keys[None, :] - own[:, None]
        distance = tl.minimum(tl.maximum(distance, -REACH), REACH) + REACH
        scores += tl.load(table_ptr + distance) * LOG2_E
        scores = tl.where(live[None, :], scores, float("-inf"))
        new_top = tl.maximum(top, tl.max(scores, axis=1))
        weights = tl.exp2(scores - new_top[:, None])
        shrink = tl.exp2(top - new_top)
        v = tl.load(v_ptr + keys.to(tl.int64)[:, None] * v_stride + dims[None, :], mask=inside, other=0.0)
        if UPCAST:
            v = v.to(tl.float32)
        acc = tl.dot(weights.to(v.dtype), v, acc * shrink[:, None], input_precision="ieee")
        total = total * shrink + tl.sum(weights, axis=1)
        top = new_top
    return acc, total, top


@triton.jit
def _encoder_attention_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    out_ptr,
    cu_seqlens_ptr,
    table_ptr,
    tiles_ptr,
    summary_k_ptr,
    summary_v_ptr,
    cu_summaries_ptr,
    summary_table_ptr,
    q_stride,
    k_stride,
    v_stride,
    summary_k_stride,
    summary_v_stride,
    scale,
    HEADS: tl.constexpr,
    REACH: tl.constexpr,
    LEFT: tl.constexpr,
    TILES: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    WINDOWED: tl.constexpr,
    SUMMARIZED: tl.constexpr,  # tokens a summary stands for; 0: no summaries
    SUMMARY_REACH: tl.constexpr,
    CAP: tl.constexpr,
    GROUP: tl.constexpr,  # heads of q that share one of k and v
    DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """One block of queries of one head of one sequence per program."""
    row = tl.program_id(0) * BLOCK_M
    head = tl.program_id(1)
    begin = tl.load(cu_seqlens_ptr + tl.program_id(2)).to(tl.int64)
    length = (tl.load(cu_seqlens_ptr + tl.program_id(2) + 1) - begin).to(tl.int32)
    if row >= length:
        return
    queries = row + tl.arange(0, BLOCK_M)
    dims = tl.arange(0, BLOCK_D)
    inside = (queries < length)[:, None] & (dims < DIM)[None, :]
    tokens = begin + queries
    q = tl.load(q_ptr + tokens[:, None] * q_stride + head * DIM + dims[None, :], mask=inside, other=0.0)
    if UPCAST:
        q = q.to(tl.float32)
    shared = head // GROUP * DIM
    k_ptr += begin * k_stride + shared
    v_ptr += begin * v_stride + shared
    scale *= LOG2_E

    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    if HAS_BIAS:
        table_ptr += head * (2 * REACH + 1)
        tiles_ptr += head * TILES * BLOCK_M * BLOCK_N
        left = tl.maximum(row - LEFT * BLOCK_N, 0)
        right = tl.minimum(row + (TILES - LEFT) * BLOCK_N, tl.cdiv(length, BLOCK_N) * BLOCK_N)
        before = tl.load(table_ptr) * LOG2_E
        after = tl.load(table_ptr + 2 * REACH) * LOG2_E
        if not WINDOWED:
            acc, total, top = _tiles(
                acc, total, top, q, k_ptr, v_ptr, k_stride, v_stride, tiles_ptr, before, row, 0, left,
                length, scale, False, LEFT, CAP, DIM, BLOCK_M, BLOCK_D, BLOCK_N, UPCAST,
            )  # fmt: skip
        acc, total, top = _tiles(
            acc, total, top, q, k_ptr, v_ptr, k_stride, v_stride, tiles_ptr, 0.0, row, left, right,
            length, scale, True, LEFT, CAP, DIM, BLOCK_M, BLOCK_D, BLOCK_N, UPCAST,
        )  # fmt: skip
        if not WINDOWED:
            acc, total, top = _tiles(
                acc, total, top, q, k_ptr, v_ptr, k_stride, v_stride, tiles_ptr, after, row, right, length,
                length, scale, False, LEFT, CAP, DIM, BLOCK_M, BLOCK_D, BLOCK_N, UPCAST,
            )  # fmt: skip
    else:
        acc, total, top = _tiles(
            acc, total, top, q, k_ptr, v_ptr, k_stride, v_stride, tiles_ptr, 0.0, row, 0, length,
            length, scale, False, LEFT, CAP, DIM, BLOCK_M, BLOCK_D, BLOCK_N, UPCAST,
        )  # fmt: skip
    if SUMMARIZED:
        skipped = tl.load(cu_summaries_ptr + tl.program_id(2)).to(tl.int64)
        count = (tl.load(cu_summaries_ptr + tl.program_id(2) + 1) - skipped).to(tl.int32)
        acc, total, top = _summaries(
            acc, total, top, q, summary_k_ptr + skipped * summary_k_stride + shared,
            summary_v_ptr + skipped * summary_v_stride + shared, summary_k_stride, summary_v_stride,
            summary_table_ptr + head * (2 * SUMMARY_REACH + 1),
            tl.minimum(queries // SUMMARIZED, count - 1), count, scale,
            SUMMARY_REACH, CAP, DIM, BLOCK_D, BLOCK_N, UPCAST,
        )  # fmt: skip
    acc = acc / total[:, None]
    out = out_ptr + (tokens[:, None] * HEADS + head) * DIM + dims[None, :]
    tl.store(out, acc.to(out_ptr.dtype.element_ty), mask=inside)


def encoder_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    max_length: int,
    scores: Scores,
    windowed: bool = False,
    summaries: Summaries | None = None,
) -> Tensor:
    tokens, heads, dim = q.shape
    scale, bias_table, softcap, _ = scores
    out = torch.empty((tokens, heads, dim), dtype=q.dtype, device=q.device)
    if tokens == 0:
        return out
    # Tokens may be strided (slices of a fused projection); the heads of one token may not.
    assert all(x.stride()[1:] == (dim, 1) for x in (q, k, v))
    assert bias_table is None or (bias_table.is_contiguous() and bias_table.dtype == torch.float32)
    block_d = max(32, triton.next_power_of_2(dim))
    block_m, block_n, warps, stages = CONFIGS[q.element_size(), block_d]
    reach = left = tiles = 0
    bias_tiles = None
    if bias_table is not None:
        reach = bias_table.shape[1] // 2
        # Counted from the block's first query, all distances before tile -left and from tile tiles - left on
        # are beyond the reach.
        left = triton.cdiv(reach, block_n)
        tiles = left + triton.cdiv(block_m + reach, block_n)
        # In the dtype of the queries, as models in half precision compute the bias.
        bias_tiles = torch.empty((heads, tiles, block_m, block_n), dtype=q.dtype, device=q.device)
        _bias_tiles_kernel[(tiles, heads)](
            bias_table,
            bias_tiles,
            REACH=reach,
            LEFT=left,
            TILES=tiles,
            BLOCK_M=block_m,
            BLOCK_N=block_n,
            num_warps=4,
            enable_fp_fusion=True,
        )
    more = [None] * 4 if summaries is None else [
        summaries.k, summaries.v, summaries.cu_seqlens, summaries.bias_table
    ]  # fmt: skip
    grid = (triton.cdiv(max_length, block_m), heads, cu_seqlens.shape[0] - 1)
    _encoder_attention_kernel[grid](
        q,
        k,
        v,
        out,
        cu_seqlens,
        bias_table,
        bias_tiles,
        *more,
        q.stride(0),
        k.stride(0),
        v.stride(0),
        0 if summaries is None else summaries.k.stride(0),
        0 if summaries is None else summaries.v.stride(0),
        scale,
        HEADS=heads,
        REACH=reach,
        LEFT=left,
        TILES=tiles,
        HAS_BIAS=bias_table is not None,
        WINDOWED=windowed,
        SUMMARIZED=0 if summaries is None else summaries.block,
        SUMMARY_REACH=0 if summaries is None else summaries.bias_table.shape[1] // 2,
        CAP=softcap or 0.0,
        GROUP=heads // k.shape[1],
        DIM=dim,
        BLOCK_D=block_d,
        BLOCK_M=block_m,
        BLOCK_N=block_n,
        # The interpreter's bfloat16 dot is wrong; it is the only way this runs off CUDA.
        UPCAST=not q.is_cuda and q.dtype == torch.bfloat16,
        num_warps=warps,
        num_stages=stages,
        enable_fp_fusion=True,
    )
    return out
