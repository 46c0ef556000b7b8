"""The kernels of attention over paged keys and values, see `attention_paged`.

Lengths are read on the device; a split that got no keys ends at once.
"""

import triton
import triton.language as tl

LOG2_E: tl.constexpr = tl.constexpr(1.4426950408889634)


@triton.jit
def _span(begin, visible, split, SPLITS: tl.constexpr, BLOCK_N: tl.constexpr):
    """The keys of one split, an equal share of the tiles from begin's to the last. It may be empty."""
    base = begin // BLOCK_N * BLOCK_N
    share = tl.cdiv(tl.cdiv(visible - base, BLOCK_N), SPLITS) * BLOCK_N
    first = base + split * share
    return first, tl.minimum(first + share, visible)


@triton.jit
def _cells(
    pages_ptr,
    start,
    last,
    head,
    HEADS: tl.constexpr,
    PAGE: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BY_CELL: tl.constexpr,
):
    """Offsets of the keys start, start + 1, … in numbers, and which of them exist.

    BY_CELL: the table names each key's cell, page * PAGE + offset, instead of each page.
    """
    keys = start + tl.arange(0, BLOCK_N)
    live = keys < last
    if BY_CELL:
        place = tl.load(pages_ptr + keys, mask=live, other=0).to(tl.int64)
        page = place // PAGE
        offset = place % PAGE
    elif PAGE % BLOCK_N == 0:
        # Tiles start at multiples of BLOCK_N: a tile lies within one page.
        page = tl.load(pages_ptr + start // PAGE).to(tl.int64)
        offset = keys % PAGE
    else:
        page = tl.load(pages_ptr + keys // PAGE, mask=live, other=0).to(tl.int64)
        offset = keys % PAGE
    return ((page * HEADS + head) * PAGE + offset) * DIM, keys, live


@triton.jit
def soft_capped(scores, CAP: tl.constexpr):
    """``CAP tanh(scores / CAP)`` for scores in powers of 2; 0: the scores themselves."""
    if CAP != 0.0:
        scores = (2.0 * tl.sigmoid(scores * (2.0 / (CAP * LOG2_E))) - 1.0) * (CAP * LOG2_E)
    return scores


@triton.jit
def _store(
    out_ptr,
    top_ptr,
    acc,
    total,
    top,
    rows,
    head,
    split,
    valid,
    HEADS: tl.constexpr,
    SPLITS: tl.constexpr,
    SUMS: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Stores rows [B] of one split: the result itself when there is one split, else a part and its
    log-sum-exp, which SUMS wants in either case. The part of a split without keys is never read."""
    dims = tl.arange(0, BLOCK_D)
    # No key was seen: the result is zero.
    denominator = tl.where(total == 0.0, 1.0, total)
    acc = acc / denominator[:, None]
    cell = (rows.to(tl.int64) * HEADS + head) * SPLITS + split
    inside = valid[:, None] & (dims < DIM)[None, :]
    if SPLITS > 1:
        inside = inside & (total != 0.0)[:, None]
    tl.store(out_ptr + cell[:, None] * DIM + dims[None, :], acc.to(out_ptr.dtype.element_ty), mask=inside)
    if SPLITS > 1 or SUMS:
        tl.store(
            top_ptr + cell, tl.where(total == 0.0, float("-inf"), top + tl.log2(denominator)), mask=valid
        )


# The strides of tables and the number of blocks change from step to step, and with the rows before them where
# the sums of some rows begin.
@triton.jit(do_not_specialize=["pages_stride"], do_not_specialize_on_alignment=["top_ptr"])
def one_row_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    out_ptr,
    top_ptr,
    pages_ptr,
    lengths_ptr,
    begins_ptr,
    cu_rows_ptr,
    bias_ptr,
    q_stride,
    pages_stride,
    scale,
    HEADS: tl.constexpr,
    REACH: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_BEGINS: tl.constexpr,
    CAP: tl.constexpr,
    GROUP: tl.constexpr,  # heads of q that share one of k and v
    SPLITS: tl.constexpr,
    SUMS: tl.constexpr,
    PAGE: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BY_CELL: tl.constexpr,
):
    """One head of one sequence's only row per program and split."""
    sequence, head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    row = tl.load(cu_rows_ptr + sequence)
    if row == tl.load(cu_rows_ptr + sequence + 1):
        return
    visible = tl.load(lengths_ptr + sequence)
    begin = 0
    if HAS_BEGINS:
        begin = tl.load(begins_ptr + sequence)
    pages_ptr += sequence.to(tl.int64) * pages_stride
    dims = tl.arange(0, BLOCK_D)
    q = tl.load(q_ptr + row.to(tl.int64) * q_stride + head * DIM + dims, mask=dims < DIM, other=0.0)
    q = q.to(tl.float32) * (scale * LOG2_E)

    acc = tl.zeros([BLOCK_D], tl.float32)
    total = 0.0
    top = float("-inf")
    first, last = _span(begin, visible, split, SPLITS, BLOCK_N)
    for start in range(first, last, BLOCK_N):
        cells, keys, live = _cells(
            pages_ptr, start, last, head // GROUP, HEADS // GROUP, PAGE, DIM, BLOCK_N, BY_CELL
        )
        if HAS_BEGINS:
            live = live & (keys >= begin)
        offsets = cells[:, None] + dims[None, :]
        inside = live[:, None] & (dims < DIM)[None, :]
        k = tl.load(k_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
        scores = soft_capped(tl.sum(k * q[None, :], axis=1), CAP)
        if HAS_BIAS:
            distance = tl.minimum(visible - 1 - keys, REACH)
            scores += tl.load(bias_ptr + head * (REACH + 1) + distance, mask=live, other=0.0) * LOG2_E
        scores = tl.where(live, scores, float("-inf"))
        new_top = tl.maximum(top, tl.max(scores, axis=0))
        weights = tl.exp2(scores - new_top)
        shrink = tl.exp2(top - new_top)
        v = tl.load(v_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
        acc = acc * shrink + tl.sum(weights[:, None] * v, axis=0)
        total = total * shrink + tl.sum(weights, axis=0)
        top = new_top
    one = tl.arange(0, 1)
    _store(out_ptr, top_ptr, acc[None, :], total + tl.zeros([1], tl.float32), top + tl.zeros([1], tl.float32),
           row + one, head, split, one == 0, HEADS, SPLITS, SUMS, DIM, BLOCK_D)  # fmt: skip


@triton.jit(do_not_specialize=["pages_stride", "blocks"], do_not_specialize_on_alignment=["top_ptr"])
def row_block_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    out_ptr,
    top_ptr,
    pages_ptr,
    lengths_ptr,
    begins_ptr,
    cu_rows_ptr,
    bias_ptr,
    q_stride,
    pages_stride,
    scale,
    blocks,
    HEADS: tl.constexpr,
    REACH: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_BEGINS: tl.constexpr,
    CAP: tl.constexpr,
    GROUP: tl.constexpr,
    CAUSAL: tl.constexpr,
    SPLITS: tl.constexpr,
    SUMS: tl.constexpr,
    PAGE: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """One head of up to BLOCK_M rows of a sequence per program and split; axis 0 is (sequence, block)."""
    sequence, head, split = tl.program_id(0) // blocks, tl.program_id(1), tl.program_id(2)
    begin = tl.load(cu_rows_ptr + sequence)
    count = tl.load(cu_rows_ptr + sequence + 1) - begin
    block = tl.program_id(0) % blocks * BLOCK_M
    if block >= count:
        return
    length = tl.load(lengths_ptr + sequence)
    begin_key = 0
    if HAS_BEGINS:
        begin_key = tl.load(begins_ptr + sequence)
    pages_ptr += sequence.to(tl.int64) * pages_stride
    rows = block + tl.arange(0, BLOCK_M)
    valid = rows < count
    dims = tl.arange(0, BLOCK_D)
    q = tl.load(
        q_ptr + (begin + rows).to(tl.int64)[:, None] * q_stride + head * DIM + dims[None, :],
        mask=valid[:, None] & (dims < DIM)[None, :],
        other=0.0,
    )
    if UPCAST:
        q = q.to(tl.float32)
    visible = length
    if CAUSAL:
        # What the last row of the block sees; queries[r] is the position of row r among the keys.
        visible = tl.maximum(length - count + tl.minimum(block + BLOCK_M, count), 0)
    queries = length - count + rows

    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    first, last = _span(begin_key, visible, split, SPLITS, BLOCK_N)
    for start in range(first, last, BLOCK_N):
        cells, keys, live = _cells(
            pages_ptr, start, last, head // GROUP, HEADS // GROUP, PAGE, DIM, BLOCK_N, False
        )
        if HAS_BEGINS:
            live = live & (keys >= begin_key)
        offsets = cells[:, None] + dims[None, :]
        inside = live[:, None] & (dims < DIM)[None, :]
        k = tl.load(k_ptr + offsets, mask=inside, other=0.0)
        if UPCAST:
            k = k.to(tl.float32)
        scores = soft_capped(tl.dot(q, tl.trans(k), input_precision="ieee") * (scale * LOG2_E), CAP)
        seen = valid[:, None] & live[None, :]
        if CAUSAL:
            distance = queries[:, None] - keys[None, :]
            seen = seen & (distance >= 0)
            if HAS_BIAS:
                distance = tl.minimum(distance, REACH)
                scores += tl.load(bias_ptr + head * (REACH + 1) + distance, mask=seen, other=0.0) * LOG2_E
        scores = tl.where(seen, scores, float("-inf"))
        new_top = tl.maximum(top, tl.max(scores, axis=1))
        # A row that has seen no key yet keeps the top at -inf; comparing with 0 instead keeps NaN away.
        base = tl.where(new_top == float("-inf"), 0.0, new_top)
        weights = tl.exp2(scores - base[:, None])
        shrink = tl.exp2(top - base)
        v = tl.load(v_ptr + offsets, mask=inside, other=0.0)
        if UPCAST:
            v = v.to(tl.float32)
        acc = tl.dot(weights.to(v.dtype), v, acc * shrink[:, None], input_precision="ieee")
        total = total * shrink + tl.sum(weights, axis=1)
        top = new_top
    _store(out_ptr, top_ptr, acc, total, top, begin + rows, head, split, valid, HEADS, SPLITS, SUMS, DIM,
           BLOCK_D)  # fmt: skip


@triton.jit(do_not_specialize_on_alignment=["sums_ptr"])
def merge_kernel(
    parts_ptr, tops_ptr, out_ptr, sums_ptr, SPLITS: tl.constexpr, SUMS: tl.constexpr, DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
):  # fmt: skip
    """One row and head per program: the parts, weighted by their shares of the softmax's denominator."""
    cell = tl.program_id(0).to(tl.int64)
    splits = tl.arange(0, SPLITS)
    dims = tl.arange(0, BLOCK_D)
    tops = tl.load(tops_ptr + cell * SPLITS + splits)
    top = tl.max(tops, axis=0)
    shares = tl.exp2(tops - tl.where(top == float("-inf"), 0.0, top))
    total = tl.sum(shares, axis=0)
    parts = tl.load(
        parts_ptr + (cell * SPLITS + splits)[:, None] * DIM + dims[None, :],
        mask=(tops > float("-inf"))[:, None] & (dims < DIM)[None, :],
        other=0.0,
    )
    out = tl.sum(parts * shares[:, None], axis=0) / tl.where(total == 0.0, 1.0, total)
    tl.store(out_ptr + cell * DIM + dims, out.to(out_ptr.dtype.element_ty), mask=dims < DIM)
    if SUMS:
        tl.store(sums_ptr + cell, top + tl.log2(total))
