"""How sequences go on, by what the model said, and what follows in their sources.

Bound by its launch: of a row it reads a source of L tokens, in decode steps of R rows 8 R L bytes.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from tandem.kernels import decode_rows

COLUMNS = ("LAST", "BEFORE", "EARLIER", "POSITION", "RUN", "PLACE", "LENGTH", "SOURCE")
_BLOCK = 1024  # tokens of a source that are compared at once


@triton.jit
def _follow_source_kernel(
    tokens_ptr,
    rows_ptr,
    sequences_ptr,
    out_ptr,
    stride,
    width,
    LAST: tl.constexpr,
    BEFORE: tl.constexpr,
    EARLIER: tl.constexpr,
    POSITION: tl.constexpr,
    RUN: tl.constexpr,
    PLACE: tl.constexpr,
    LENGTH: tl.constexpr,
    SOURCE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One sequence per program: its samples one after another, then its source by the block."""
    row = tl.program_id(0)
    sequence = sequences_ptr + tl.load(rows_ptr + row) * width
    start = tl.load(rows_ptr + stride + row)
    samples = tl.load(rows_ptr + 2 * stride + row)
    said = tokens_ptr + tl.load(rows_ptr + 3 * stride + row)
    last, before, earlier = tl.load(sequence + LAST), tl.load(sequence + BEFORE), tl.load(sequence + EARLIER)
    position, length = tl.load(sequence + POSITION), tl.load(sequence + LENGTH)
    run, place = tl.load(sequence + RUN), tl.load(sequence + PLACE)
    source = sequence + SOURCE

    right = samples * 0
    new = samples * 0
    going = samples > 0
    for i in range(samples):
        token = tl.load(said + i)
        earlier = tl.where(going, before, earlier)
        before = tl.where(going, last, before)
        last = tl.where(going, token, last)
        new += going.to(tl.int64)
        at = place + i
        guess = tl.load(source + at, mask=(run > 0) & (at < length), other=-1)
        going = going & (token == guess)
        right += going.to(tl.int64)
    place += right
    goes_on = (right == samples) & (place < length)
    run = tl.where(goes_on, run + right, 0)

    # Elsewhere: the longest match, and of those the last.
    best = run * 0 - 1
    for begin in range(0, tl.where(goes_on, 0, length - 1), BLOCK):
        at = begin + tl.arange(0, BLOCK)
        inside = at < length - 1
        one = inside & (tl.load(source + at, mask=inside, other=-1) == last)
        two = one & (tl.load(source + at - 1, mask=inside & (at > 0), other=-1) == before) & (at > 0)
        three = two & (tl.load(source + at - 2, mask=inside & (at > 1), other=-1) == earlier) & (at > 1)
        matched = one.to(tl.int64) + two.to(tl.int64) + three.to(tl.int64)
        best = tl.maximum(best, tl.max(tl.where(one, matched * width + at, -1), 0))
    found = best >= 0
    run = tl.where(found, best // width, run)
    place = tl.where(found, best % width + 1, place)

    tl.store(sequence + LAST, last)
    tl.store(sequence + BEFORE, before)
    tl.store(sequence + EARLIER, earlier)
    tl.store(sequence + POSITION, tl.where(start < 0, position, start) + new)
    tl.store(sequence + RUN, run)
    tl.store(sequence + PLACE, place)
    out = out_ptr + row * 3
    tl.store(out, right)
    tl.store(out + 1, run)
    tl.store(out + 2, tl.where(run > 0, length - place, 0))


def follow_source(tokens: Tensor, rows: Tensor, sequences: Tensor) -> Tensor:
    count = rows.shape[1]
    out = torch.empty(count, 3, dtype=torch.int64, device=tokens.device)
    if count:
        assert all(one.is_contiguous() for one in (tokens, rows, sequences))
        _follow_source_kernel[(count,)](
            tokens,
            rows,
            sequences,
            out,
            count,
            sequences.shape[1],
            **{name: getattr(decode_rows, name) for name in COLUMNS},
            BLOCK=_BLOCK,
            num_warps=4,
        )
    return out
