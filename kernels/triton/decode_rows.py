"""The decode step's table ops: what its rows read and write, and the prompt lookup after it.

Both are bound by their launch. For N rows `gather_rows` copies tables of M entries of 4 bytes, 8 N M bytes;
`match_prompt_tokens` reads sources of n tokens of 8 bytes, 8 N n bytes.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from tandem.kernels import values
from tandem.kernels.values import DecodeRows, DecodeTables

COLUMNS = ("LAST", "BEFORE", "EARLIER", "POSITION", "RUN", "PLACE", "LENGTH", "SOURCE")
_BLOCK = 1024  # entries of a table's row, or tokens of a source, at once


@triton.jit
def _copy_row(to_ptr, from_ptr, row, at_row, width, special, value, BLOCK: tl.constexpr):
    """Copies a row of a table, but for entry `special`, which becomes `value`; -1: copies all of it."""
    for begin in range(0, width, BLOCK):
        at = begin + tl.arange(0, BLOCK)
        inside = at < width
        entries = tl.load(from_ptr + row * width + at, mask=inside)
        tl.store(to_ptr + at_row * width + at, tl.where(at == special, value, entries), mask=inside)


@triton.jit(do_not_specialize=["stride"])
def _gather_rows_kernel(
    rows_ptr,
    sequences_ptr,
    self_pages_ptr,
    cells_ptr,
    cross_pages_ptr,
    cross_lengths_ptr,
    cross_spans_ptr,
    token_ids_ptr,
    positions_ptr,
    write_slots_ptr,
    history_ptr,
    lengths_ptr,
    cross_ptr,
    crossed_ptr,
    begins_ptr,
    stride,
    width,
    self_width,
    cells_width,
    cross_width,
    PAGE: tl.constexpr,
    BEAMS: tl.constexpr,
    SPANS: tl.constexpr,
    LAST: tl.constexpr,
    POSITION: tl.constexpr,
    RUN: tl.constexpr,
    PLACE: tl.constexpr,
    LENGTH: tl.constexpr,
    SOURCE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One row per program."""
    row = tl.program_id(0).to(tl.int64)
    slot = tl.load(rows_ptr + row)
    position = tl.load(rows_ptr + stride + row)
    entry = tl.load(rows_ptr + 2 * stride + row)
    token = tl.load(rows_ptr + 3 * stride + row)
    sequence = sequences_ptr + slot * width
    ahead = -1 - token
    place = tl.load(sequence + PLACE) + ahead - 1
    drafted = (ahead > 0) & (tl.load(sequence + RUN) > 0) & (place < tl.load(sequence + LENGTH))
    own = tl.load(sequence + tl.where(drafted, SOURCE + place, LAST))
    position = tl.where(position < 0, tl.load(sequence + POSITION) - 1 - position, position)
    page = tl.load(self_pages_ptr + slot * self_width + position // PAGE)
    cell = page.to(tl.int64) * PAGE + position % PAGE
    if SPANS:
        length = tl.load(cross_spans_ptr + 2 * slot + 1)
        tl.store(begins_ptr + row, tl.load(cross_spans_ptr + 2 * slot))
    else:
        length = tl.load(cross_lengths_ptr + entry)
    tl.store(token_ids_ptr + row, tl.where(ahead < 0, token, own))
    tl.store(positions_ptr + row, position)
    tl.store(write_slots_ptr + row, cell)
    tl.store(lengths_ptr + row, (position + 1).to(tl.int32))
    tl.store(crossed_ptr + row, length)
    if BEAMS:
        tl.store(cells_ptr + slot * cells_width + position, cell.to(tl.int32))
        _copy_row(history_ptr, cells_ptr, slot, row, cells_width, position, cell.to(tl.int32), BLOCK)
    else:
        _copy_row(history_ptr, self_pages_ptr, slot, row, self_width, -1, 0, BLOCK)
    _copy_row(cross_ptr, cross_pages_ptr, entry, row, cross_width, -1, 0, BLOCK)


def gather_rows(rows: Tensor, tables: DecodeTables, *, beams: bool) -> DecodeRows:
    assert rows.is_contiguous()
    count, device = rows.shape[1], rows.device
    cells = tables.beam_cells if beams else None
    history = tables.self_pages if cells is None else cells
    spans = tables.cross_spans
    read = [tables.sequences, tables.self_pages, cells, tables.cross_pages, tables.cross_lengths, spans]
    assert all(one.is_contiguous() for one in read if one is not None)

    def made(dtype: torch.dtype, *shape: int) -> Tensor:
        return torch.empty(count, *shape, dtype=dtype, device=device)

    gathered = DecodeRows(
        token_ids=made(torch.int64),
        positions=made(torch.int64),
        write_slots=made(torch.int64),
        history=made(torch.int32, history.shape[1]),
        lengths=made(torch.int32),
        cross_pages=made(torch.int32, tables.cross_pages.shape[1]),
        cross_lengths=made(torch.int32),
        cross_begins=None if spans is None else made(torch.int32),
    )
    if count:
        _gather_rows_kernel[(count,)](
            rows,
            *read,
            *gathered,
            count,
            tables.sequences.shape[1],
            tables.self_pages.shape[1],
            history.shape[1],
            tables.cross_pages.shape[1],
            PAGE=tables.page_size,
            BEAMS=beams,
            SPANS=spans is not None,
            **{name: getattr(values, name) for name in COLUMNS if name not in ("BEFORE", "EARLIER")},
            BLOCK=_BLOCK if beams else 64,
            num_warps=4 if beams else 1,
        )
    return gathered


@triton.jit(do_not_specialize=["stride"])
def _match_prompt_tokens_kernel(
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
    """One sequence per program: its samples one after another, then its source block by block."""
    row = tl.program_id(0)
    sequence = sequences_ptr + tl.load(rows_ptr + row) * width
    start = tl.load(rows_ptr + stride + row)
    samples = tl.load(rows_ptr + 2 * stride + row)
    sampled = tokens_ptr + tl.load(rows_ptr + 3 * stride + row)
    last, before, earlier = tl.load(sequence + LAST), tl.load(sequence + BEFORE), tl.load(sequence + EARLIER)
    position, length = tl.load(sequence + POSITION), tl.load(sequence + LENGTH)
    run, place = tl.load(sequence + RUN), tl.load(sequence + PLACE)
    source = sequence + SOURCE

    right = samples * 0
    new = samples * 0
    going = samples > 0
    for i in range(samples):
        token = tl.load(sampled + i)
        earlier = tl.where(going, before, earlier)
        before = tl.where(going, last, before)
        last = tl.where(going, token, last)
        new += going.to(tl.int64)
        at = place + i
        draft = tl.load(source + at, mask=(run > 0) & (at < length), other=-1)
        going = going & (token == draft)
        right += going.to(tl.int64)
    place += right
    goes_on = (right == samples) & (place < length)
    run = tl.where(goes_on, run + right, 0)

    # The longest match, and of several its last place.
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

    tl.debug_barrier()  # all threads have read the sequence before one of them writes it
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


def match_prompt_tokens(tokens: Tensor, rows: Tensor, sequences: Tensor) -> Tensor:
    count = rows.shape[1]
    out = torch.empty(count, 3, dtype=torch.int64, device=tokens.device)
    if count:
        assert all(one.is_contiguous() for one in (tokens, rows, sequences))
        _match_prompt_tokens_kernel[(count,)](
            tokens,
            rows,
            sequences,
            out,
            count,
            sequences.shape[1],
            **{name: getattr(values, name) for name in COLUMNS},
            BLOCK=_BLOCK,
            num_warps=4,
        )
    return out
