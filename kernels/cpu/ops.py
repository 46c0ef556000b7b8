"""The CPU's hot ops in one pass each: launchers of the C++ extension, which is compiled when Tandem is
installed.

`reference` says what each op computes. Its ops run where the extension is missing, and on tensors of other
dtypes than DTYPES lists for an op.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Final, NamedTuple

import torch
from torch import Tensor

from tandem.kernels import reference
from tandem.kernels.values import (
    DecodeRows,
    DecodeTables,
    PagedKV,
    RowGroups,
    Scores,
    Summaries,
    TimeIds,
)

try:
    from tandem.kernels.cpu import _cpu  # which checks dtype, shape and layout of all it is given
except ImportError:
    COMPILED = AVX512 = False
    LANES = 0
else:
    COMPILED, AVX512, LANES = True, _cpu.has_avx512(), _cpu.most_lanes()

# The ops here by the dtype of the tensors that choose them, see `dispatch.backend`.
_ROWS: Final = ("gather_rows", "match_prompt_tokens")
_HALF: Final = (
    "add_depthwise", "add_layer_norm", "add_rms_norm", "encoder_attention", "grouped_attention", "layer_norm",
    "paged_beam_attention", "paged_cross_attention", "paged_self_attention", "rms_norm", "write_kv",
)  # fmt: skip
DTYPES: Final = {
    torch.float32: (
        *_HALF,
        "activate",
        "alignment_scores",
        "apply_timestamp_rules",
        "argmax",
        "ban_tokens",
        "embed",
        "keep_rows",
        "logsumexp",
        "scale",
        "time_warp",
    ),
    torch.bfloat16: _HALF,
    torch.int64: _ROWS,
}
# Up to this many query rows of a sequence read K and V in their pages; for more, a dense copy pays.
_FEW_ROWS: Final = 16
_LARGE: Final = 2**22  # bytes
# The numbers of `_cpu.h`.
_ACTIVATIONS: Final = {"relu": 0, "gelu": 1, "gelu_new": 2, "silu": 3}

Allocate = Callable[[tuple[int, ...], torch.dtype], Tensor]


class _Memory(threading.local):
    """Where results go, by thread: other threads may serve other engines meanwhile."""

    allocate: Allocate | None = None


_memory: Final = _Memory()


@contextmanager
def allocating(allocate: Allocate) -> Iterator[None]:
    """Takes the memory of this thread's results from `allocate`."""
    _memory.allocate = allocate
    try:
        yield
    finally:
        _memory.allocate = None


def record(most: int) -> None:
    """From here on this thread's calls, each of `most` rows, are recorded and not run."""
    _cpu.record(most=most)


def recorded() -> object:
    """The calls since `record`, as a program."""
    return _cpu.recorded()


def run(program: object, rows: int) -> None:
    """Runs a program's calls, each for its first `rows` rows."""
    _cpu.run(program=program, rows=rows)


def _empty(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    if _memory.allocate is not None:
        return _memory.allocate(shape, dtype)
    return in_huge_pages(torch.empty(shape, dtype=dtype))


def in_huge_pages(x: Tensor) -> Tensor:
    """x, which is not written yet, in huge pages if it is large."""
    if COMPILED and x.is_cpu and x.nbytes >= _LARGE:
        _cpu.prefer_huge_pages(address=x.data_ptr(), bytes=x.nbytes)
    return x


def _zeros(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """For tables that stay unwritten in parts, which ops outside this module may read."""
    return torch.zeros(shape, dtype=dtype) if _memory.allocate is None else _memory.allocate(shape, dtype)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return _add_norm(x, None, weight, None, eps)[0]


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return _add_norm(x, residual, weight, None, eps)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    return _add_norm(x, None, weight, bias, eps)[0]


def add_layer_norm(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    return _add_norm(x, residual, weight, bias, eps)


def _add_norm(
    x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """LayerNorm with a bias, RMSNorm without, of the sum of x and the residual; without a residual, of x.
    Returns the norm and the sum."""
    x, residual = x.contiguous(), None if residual is None else residual.contiguous()
    out = _empty(x.shape, x.dtype)
    total = None if residual is None else _empty(x.shape, x.dtype)
    _cpu.add_norm(
        x=x, residual=residual, weight=weight, bias=bias, eps=eps, out=out, sum=total,
        threads=torch.get_num_threads(),
    )  # fmt: skip
    return out, x if total is None else total


def activate(x: Tensor, activation: str, *, gated: bool = False) -> Tensor:
    rows, width = x.shape
    out = _empty((rows, width // 2 if gated else width))
    _cpu.activate(
        out=out, gated=gated, x=x.contiguous(), kind=_ACTIVATIONS[activation], threads=torch.get_num_threads()
    )
    return out


def scale(x: Tensor, factor: float) -> Tensor:
    if factor == 1.0:
        return x
    out = _empty(x.shape)
    _cpu.scale(x=x.contiguous(), factor=factor, out=out)
    return out


def keep_rows(x: Tensor, keep: Tensor) -> Tensor:
    out = _empty(x.shape)
    _cpu.keep_rows(x=x.contiguous(), keep=keep.contiguous(), out=out)
    return out


def argmax(x: Tensor) -> Tensor:
    out = _empty(x.shape[:1], torch.int64)
    _cpu.argmax(x=_rows(x), out=out, threads=torch.get_num_threads())
    return out


def logsumexp(x: Tensor, stops: Tensor | None = None) -> Tensor:
    out = _empty((x.shape[0], 1))
    _cpu.logsumexp(x=_rows(x), stops=stops, out=out, threads=torch.get_num_threads())
    return out


def ban_tokens(scores: Tensor, ids: Tensor, rows: Tensor) -> None:
    if ids.numel():
        _cpu.ban_tokens(scores=scores, ids=ids, rows=rows.contiguous())


def apply_timestamp_rules(
    scores: Tensor, history: Tensor, slots: Tensor, begins: Tensor, counts: Tensor, last_initial: Tensor,
    ids: TimeIds,
) -> None:  # fmt: skip
    first, text_end, without = ids
    _cpu.apply_timestamp_rules(
        scores=scores, history=history, slots=slots.contiguous(), begins=begins.contiguous(),
        counts=counts.contiguous(), last_initial=last_initial.contiguous(), first=first, text_end=text_end,
        without=without, threads=torch.get_num_threads(),
    )  # fmt: skip


def embed(ids: Tensor, table: Tensor, onto: Tensor | None = None) -> Tensor:
    onto = None if onto is None else onto.contiguous()
    out = _empty((ids.shape[0], table.shape[1]))
    _cpu.embed(ids=ids.contiguous(), table=table, onto=onto, out=out)
    return out


def gather_rows(rows: Tensor, tables: DecodeTables, *, beams: bool) -> DecodeRows:
    count, cells = rows.shape[1], tables.beam_cells if beams else None
    history = tables.self_pages if cells is None else cells
    made = DecodeRows(
        token_ids=_empty((count,), torch.int64),
        positions=_empty((count,), torch.int64),
        write_slots=_empty((count,), torch.int64),
        history=_zeros((count, history.shape[1]), torch.int32),
        lengths=_empty((count,), torch.int32),
        cross_pages=_zeros((count, tables.cross_pages.shape[1]), torch.int32),
        cross_lengths=_empty((count,), torch.int32),
        cross_begins=None if tables.cross_spans is None else _empty((count,), torch.int32),
    )
    _cpu.gather_rows(
        rows=rows, sequences=tables.sequences, self_pages=tables.self_pages, beam_cells=cells,
        cross_pages=tables.cross_pages, cross_lengths=tables.cross_lengths, cross_spans=tables.cross_spans,
        page_size=tables.page_size, token_ids=made.token_ids, positions=made.positions,
        write_slots=made.write_slots, history=made.history, lengths=made.lengths,
        row_cross_pages=made.cross_pages, row_cross_lengths=made.cross_lengths,
        row_cross_begins=made.cross_begins,
    )  # fmt: skip
    return made


def match_prompt_tokens(tokens: Tensor, rows: Tensor, sequences: Tensor) -> Tensor:
    out = _empty((rows.shape[1], 3), torch.int64)
    _cpu.match_prompt_tokens(tokens=tokens.contiguous(), rows=rows.contiguous(), sequences=sequences, out=out)
    return out


def write_kv(k: Tensor, v: Tensor, k_pages: Tensor, v_pages: Tensor, slots: Tensor) -> None:
    _cpu.write_kv(k=_rows(k), v=_rows(v), k_pages=k_pages, v_pages=v_pages, slots=slots.contiguous())


def add_depthwise(x: Tensor, first: int, weight: Tensor, bias: Tensor, out: Tensor) -> Tensor:
    _cpu.add_depthwise(
        x=x.contiguous(), first=first, weight=weight, bias=bias, out=out, threads=torch.get_num_threads()
    )
    return out


def alignment_scores(
    q: Tensor, k: Tensor, scores: Scores, columns: int, width: int, *, cropped: bool
) -> Tensor:
    keys = k[:, :columns] if cropped else k
    x = torch.matmul(q, keys.float().transpose(1, 2))
    out = _empty((q.shape[1], columns))
    _cpu.alignment_scores(
        x=x, scale=scores.scale, softcap=scores.softcap or 0.0, width=width, out=out,
        threads=torch.get_num_threads(),
    )  # fmt: skip
    return out


def time_warp(x: Tensor) -> Tensor:
    out = torch.zeros(x.shape[:1], dtype=torch.int64)
    if x.numel():
        _cpu.time_warp(x=x.contiguous(), out=out)
    return out


def float_pack(weight: Tensor) -> Tensor:
    """The packed weight, float32 [outputs, inputs], for `float_linear`."""
    outputs, inputs = weight.shape
    packed = in_huge_pages(torch.empty(_cpu.float_size(outputs=outputs, inputs=inputs)))
    _cpu.float_pack(weight=weight.contiguous(), packed=packed, threads=torch.get_num_threads())
    return packed


def float_bytes(weight: Tensor) -> int:
    """Bytes of the weight once `float_pack` has packed it."""
    outputs, inputs = weight.shape
    return 4 * _cpu.float_size(outputs=outputs, inputs=inputs)


def float_linear(
    x: Tensor, packed: Tensor, outputs: int, bias: Tensor | None, out: Tensor | None = None
) -> Tensor:
    """``x @ weight.T + bias``: float32 [N, inputs] → [N, outputs], into `out` where it is given."""
    out = _empty((x.shape[0], outputs)) if out is None else out
    _cpu.float_linear(x=_rows(x), out=out, bias=bias, threads=torch.get_num_threads(), packed=packed)
    return out


def int8_pack(weight: Tensor) -> tuple[Tensor, Tensor]:
    """The weight, float32 [outputs, inputs], quantized by output for `int8_linear`: bytes, and scales
    [outputs]."""
    outputs, inputs = weight.shape
    packed = in_huge_pages(torch.empty(_cpu.int8_size(outputs=outputs, inputs=inputs), dtype=torch.uint8))
    scales = torch.empty(outputs)
    _cpu.int8_pack(weight=weight.contiguous(), packed=packed, scales=scales, threads=torch.get_num_threads())
    return packed, scales


def int8_linear(
    x: Tensor, packed: Tensor, scales: Tensor, bias: Tensor | None, out: Tensor | None = None
) -> Tensor:
    """``quantize(x) @ quantized weight.T + bias``: float32 [N, inputs] → [N, outputs], into `out` where it is
    given."""
    out = _empty((x.shape[0], scales.shape[0])) if out is None else out
    _cpu.int8_linear(
        x=_rows(x), out=out, bias=bias, threads=torch.get_num_threads(), packed=packed, scales=scales
    )
    return out


class Int8Weight(NamedTuple):
    """What `int8_pack` makes of a weight, and the bias."""

    packed: Tensor
    scales: Tensor
    bias: Tensor | None


class LayerNorm(NamedTuple):
    weight: Tensor
    bias: Tensor
    eps: float


def int8_feed_forward(
    x: Tensor, up: Int8Weight, down: Int8Weight, activation: str, *, gated: bool, norm: LayerNorm | None,
    out: Tensor, add: bool,
) -> Tensor:  # fmt: skip
    """``down(activation(up(norm(x))))``: float32 [N, d] → `out` [N, D]; add: onto what `out` is, which may be
    x."""
    _cpu.int8_feed_forward(
        x=_rows(x), norm=None if norm is None else norm.weight, norm_bias=None if norm is None else norm.bias,
        eps=0.0 if norm is None else norm.eps, out=out, gated=gated, add=add, kind=_ACTIVATIONS[activation],
        threads=torch.get_num_threads(), up_scales=up.scales, up_packed=up.packed, up_bias=up.bias,
        down_scales=down.scales, down_packed=down.packed, down_bias=down.bias,
    )  # fmt: skip
    return out


def encoder_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    max_length: int,  # noqa: ARG001  the extension reads the borders themselves
    scores: Scores,
    windowed: bool = False,
    summaries: Summaries | None = None,
) -> Tensor:
    return attend_inputs(q, k, v, cu_seqlens, scores, windowed, summaries, LANES)


def grouped_attention(q: Tensor, k: Tensor, v: Tensor, scores: Scores) -> Tensor:
    groups, rows = q.shape[:2]
    borders = torch.arange(groups + 1, dtype=torch.int32) * rows
    packed_q, packed_k, packed_v = (x.flatten(0, 1) for x in (q, k, v))
    out = attend_inputs(packed_q, packed_k, packed_v, borders, scores, False, None, LANES)
    return out.view(q.shape)


def attend_inputs(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, scores: Scores, windowed: bool,
    summaries: Summaries | None, lanes: int, cu_rows: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """`encoder_attention` in registers of so many floats; with cu_rows, int32 [S + 1], of other rows q, these
    of each input."""
    out = _empty(q.shape, q.dtype)
    scale, bias_table, softcap, integers = scores
    _cpu.attend_inputs(
        q=_rows(q), k=_rows(k), v=_rows(v), cu_seqlens=cu_seqlens,
        cu_rows=cu_seqlens if cu_rows is None else cu_rows,
        bias_table=None if bias_table is None else bias_table.contiguous(),
        windowed=windowed and bias_table is not None,
        summary_k=None if summaries is None else _rows(summaries.k),
        summary_v=None if summaries is None else _rows(summaries.v),
        summary_cu_seqlens=None if summaries is None else summaries.cu_seqlens,
        summary_bias_table=None if summaries is None else summaries.bias_table.contiguous(),
        block=0 if summaries is None else summaries.block, scale=scale, softcap=softcap or 0.0,
        integers=integers, out=out, lanes=lanes, threads=torch.get_num_threads(),
    )  # fmt: skip
    return out


def paged_self_attention(
    q: Tensor, kv: PagedKV, groups: RowGroups, scores: Scores, sums: Tensor | None = None
) -> Tensor:
    if groups.max_rows > _FEW_ROWS:
        return reference.paged_self_attention(q, kv, groups, scores, sums)
    return _attend(q, kv, groups, scores, sums, causal=True)


def paged_cross_attention(
    q: Tensor, kv: PagedKV, groups: RowGroups, scores: Scores, sums: Tensor | None = None
) -> Tensor:
    assert scores.bias_table is None
    if groups.max_rows <= _FEW_ROWS:
        return _attend(q, kv, groups, scores, sums, causal=False)
    lengths = kv.lengths.tolist()
    if sums is not None or kv.begins is not None or 0 in lengths:
        return reference.paged_cross_attention(q, kv, groups, scores, sums)
    return _attend_copies(q, kv, groups, lengths, scores)


def _attend_copies(q: Tensor, kv: PagedKV, groups: RowGroups, lengths: list[int], scores: Scores) -> Tensor:
    """Cross-attention in tiles, of keys and values that are copied from their pages for many rows each."""
    parts = []
    for number, (start, stop) in enumerate(pairwise(groups.cu_rows.tolist())):
        rows, length = torch.tensor([0, stop - start], dtype=torch.int32), lengths[number]
        own, pages = q[start:stop], kv.table[number : number + 1]
        if start == stop:
            continue
        if stop - start <= _FEW_ROWS:
            alone = PagedKV(kv.k, kv.v, pages, kv.lengths[number : number + 1])
            parts.append(_attend(own, alone, RowGroups(rows, stop - start), scores, None, causal=False))
            continue
        used = pages[0, : -(-length // kv.k.shape[2])]
        k, v = (
            pool.index_select(0, used).transpose(1, 2).flatten(0, 1)[:length].to(q.dtype)
            for pool in (kv.k, kv.v)
        )
        keys = torch.tensor([0, length], dtype=torch.int32)
        parts.append(attend_inputs(own, k, v, keys, scores, False, None, LANES, rows))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def paged_beam_attention(q: Tensor, kv: PagedKV, scores: Scores, sums: Tensor | None = None) -> Tensor:
    return _attend(q, kv, RowGroups.each(len(q), q.device), scores, sums, causal=True, by_cell=True)


def _attend(
    q: Tensor, kv: PagedKV, groups: RowGroups, scores: Scores, sums: Tensor | None, *, causal: bool,
    by_cell: bool = False,
) -> Tensor:  # fmt: skip
    """by_cell: the table names each key's cell instead of each page."""
    q = _rows(q)
    out = _empty(q.shape, q.dtype)
    scale, bias_table, softcap, _ = scores
    _cpu.attend(
        q=q, k=kv.k, v=kv.v, table=_rows(kv.table), lengths=kv.lengths, begins=kv.begins,
        cu_rows=groups.cu_rows, scale=scale,
        bias_table=None if bias_table is None else bias_table.contiguous(), softcap=softcap or 0.0, sums=sums,
        out=out, causal=causal, by_cell=by_cell, threads=torch.get_num_threads(),
    )  # fmt: skip
    return out


def _rows(x: Tensor) -> Tensor:
    """x [N, D] or [N, H, D], of which only the rows may lie apart."""
    strides = x.stride()
    dense = strides[-1] == 1 and (len(strides) == 2 or strides[1] == x.shape[2])
    return x if dense else x.contiguous()
