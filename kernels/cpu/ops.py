"""The CPU's hot ops in one pass each: launchers of the C++ extension, which is compiled when Tandem is
installed.

`reference` says what each op computes. Its ops run where the extension is missing, and on tensors of other
dtypes than DTYPES lists for an op.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import torch
from torch import Tensor

from tandem.kernels import reference
from tandem.kernels.values import DecodeRows, DecodeTables, PagedKV, RowGroups, Scores

try:
    from tandem.kernels.cpu import _cpu
except ImportError:
    COMPILED = AVX512 = False
else:
    COMPILED, AVX512 = True, _cpu.has_avx512()

# The ops here by the dtype of the tensors that choose them, see `dispatch.backend`.
_ROWS: Final = ("gather_rows", "match_prompt_tokens")
_HALF: Final = (
    "add_layer_norm", "add_rms_norm", "layer_norm", "paged_beam_attention", "paged_cross_attention",
    "paged_self_attention", "rms_norm", "write_kv",
)  # fmt: skip
DTYPES: Final = {
    torch.float32: (*_HALF, "activate", "argmax", "embed", "scale"),
    torch.bfloat16: _HALF,
    torch.int64: _ROWS,
}
# Up to this many query rows of a sequence attend here; for more, the dense products of `reference` pay.
_FEW_ROWS: Final = 16
# In the order of `_cpu.h`.
_ACTIVATIONS: Final = {"relu": 0, "gelu": 1, "gelu_new": 2, "silu": 3}

Allocate = Callable[[tuple[int, ...], torch.dtype], Tensor]


class _Memory(threading.local):
    """Where results go: each thread's, for others may serve other engines meanwhile."""

    allocate: Allocate | None = None


_memory: Final = _Memory()


@contextmanager
def allocating(allocate: Allocate) -> Iterator[None]:
    """Takes the memory of all results made here, in this thread, from `allocate`."""
    _memory.allocate = allocate
    try:
        yield
    finally:
        _memory.allocate = None


def record(most: int) -> None:
    """From here on the calls made in this thread are not done, but recorded, of `most` rows each."""
    _cpu.record(most)


def recorded() -> object:
    """The calls since `record`, as a program."""
    return _cpu.recorded()


def run(program: object, rows: int) -> None:
    """Does a program's calls, for the first so many rows of each."""
    _cpu.run(program, rows)


def _empty(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    if _memory.allocate is not None:
        return _memory.allocate(shape, dtype)
    return torch.empty(shape, dtype=dtype)


def _zeros(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """For tables of which parts stay unwritten: other ops than those here may look there."""
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
    x, weight = x.contiguous(), weight.contiguous()
    residual = None if residual is None else residual.contiguous()
    out = _empty(x.shape, x.dtype)
    total = x if residual is None else _empty(x.shape, x.dtype)
    _cpu.add_norm(
        x.data_ptr(), 0 if residual is None else residual.data_ptr(), weight.data_ptr(),
        0 if bias is None else bias.data_ptr(), out.data_ptr(), 0 if residual is None else total.data_ptr(),
        x.shape[0], x.shape[1], eps, x.dtype == torch.bfloat16, torch.get_num_threads(),
    )  # fmt: skip
    return out, total


def activate(x: Tensor, activation: str, *, gated: bool = False) -> Tensor:
    x = x.contiguous()
    rows, width = x.shape[0], x.shape[1] // (1 + gated)
    out = _empty((rows, width))
    kind, threads = _ACTIVATIONS[activation], torch.get_num_threads()
    _cpu.activate(x.data_ptr(), out.data_ptr(), rows, width, kind, gated, threads)
    return out


def scale(x: Tensor, factor: float) -> Tensor:
    if factor == 1.0:
        return x
    x = x.contiguous()
    out = _empty(x.shape)
    _cpu.scale(x.data_ptr(), out.data_ptr(), x.shape[0], x.shape[1], factor)
    return out


def argmax(x: Tensor) -> Tensor:
    if x.stride(1) != 1:
        x = x.contiguous()
    out = _empty((len(x),), torch.int64)
    _cpu.argmax(x.data_ptr(), out.data_ptr(), len(x), x.shape[1], x.stride(0), torch.get_num_threads())
    return out


def embed(ids: Tensor, table: Tensor, onto: Tensor | None = None) -> Tensor:
    assert ids.dtype == torch.int64
    ids, table = ids.contiguous(), table.contiguous()
    onto = None if onto is None else onto.contiguous()
    rows, width = len(ids), table.shape[1]
    out = _empty((rows, width))
    _cpu.embed(
        ids.data_ptr(), table.data_ptr(), 0 if onto is None else onto.data_ptr(), out.data_ptr(), rows, width
    )
    return out


def gather_rows(rows: Tensor, tables: DecodeTables, *, beams: bool) -> DecodeRows:
    assert rows.dtype == torch.int64
    assert rows.is_contiguous()
    assert tables.sequences.is_contiguous()
    count, cells = rows.shape[1], tables.beam_cells if beams else None
    self_width, cross_width = tables.self_pages.shape[1], tables.cross_pages.shape[1]
    cells_width = 0 if cells is None else cells.shape[1]
    made = DecodeRows(
        token_ids=_empty((count,), torch.int64),
        positions=_empty((count,), torch.int64),
        write_slots=_empty((count,), torch.int64),
        history=_zeros((count, cells_width or self_width), torch.int32),
        lengths=_empty((count,), torch.int32),
        cross_pages=_zeros((count, cross_width), torch.int32),
        cross_lengths=_empty((count,), torch.int32),
    )
    _cpu.gather_rows(
        rows.data_ptr(), tables.sequences.data_ptr(), tables.self_pages.data_ptr(),
        0 if cells is None else cells.data_ptr(), tables.cross_pages.data_ptr(),
        tables.cross_lengths.data_ptr(), *(one.data_ptr() for one in made), count, count,
        tables.sequences.shape[1], self_width, cells_width, cross_width, tables.page_size,
    )  # fmt: skip
    return made


def match_prompt_tokens(tokens: Tensor, rows: Tensor, sequences: Tensor) -> Tensor:
    assert tokens.dtype == rows.dtype == sequences.dtype == torch.int64
    tokens, rows = tokens.contiguous(), rows.contiguous()
    assert sequences.is_contiguous()
    count, width = rows.shape[1], sequences.shape[1]
    out = _empty((count, 3), torch.int64)
    _cpu.match_prompt_tokens(
        tokens.data_ptr(), rows.data_ptr(), sequences.data_ptr(), out.data_ptr(), count, width
    )
    return out


def write_kv(k: Tensor, v: Tensor, k_pages: Tensor, v_pages: Tensor, slots: Tensor) -> None:
    assert slots.dtype == torch.int64
    k, v, slots = _rows(k), _rows(v), slots.contiguous()
    rows, heads, dim = k.shape
    _cpu.write_kv(
        k.data_ptr(), v.data_ptr(), k_pages.data_ptr(), v_pages.data_ptr(), slots.data_ptr(),
        rows, heads, dim, k_pages.shape[2], k.stride(0), v.stride(0), k.dtype == torch.bfloat16,
    )  # fmt: skip


def float_pack(weight: Tensor) -> Tensor:
    """float32 [outputs, inputs], for `float_linear`."""
    assert weight.dtype == torch.float32
    weight = weight.contiguous()
    outputs, inputs = weight.shape
    packed = torch.empty(_cpu.float_size(outputs, inputs))
    _cpu.float_pack(weight.data_ptr(), packed.data_ptr(), outputs, inputs, torch.get_num_threads())
    return packed


def float_bytes(weight: Tensor) -> int:
    """Of what `float_pack` makes of it."""
    outputs, inputs = weight.shape
    return 4 * _cpu.float_size(outputs, inputs)


def float_linear(x: Tensor, packed: Tensor, outputs: int, bias: Tensor | None) -> Tensor:
    """``x @ weight.T + bias``: float32 [N, inputs] -> [N, outputs]."""
    assert x.dtype == torch.float32
    if x.stride(1) != 1:
        x = x.contiguous()
    rows, inputs = x.shape
    out = _empty((rows, outputs))
    _cpu.float_linear(
        x.data_ptr(), packed.data_ptr(), 0 if bias is None else bias.data_ptr(), out.data_ptr(), rows,
        outputs, inputs, x.stride(0), torch.get_num_threads(),
    )  # fmt: skip
    return out


def int8_pack(weight: Tensor) -> tuple[Tensor, Tensor]:
    """float32 [outputs, inputs], quantized by output: for `int8_linear`, bytes and scales [outputs]."""
    assert weight.dtype == torch.float32
    weight = weight.contiguous()
    outputs, inputs = weight.shape
    packed = torch.empty(_cpu.int8_size(outputs, inputs), dtype=torch.uint8)
    scales = torch.empty(outputs)
    threads = torch.get_num_threads()
    _cpu.int8_pack(weight.data_ptr(), packed.data_ptr(), scales.data_ptr(), outputs, inputs, threads)
    return packed, scales


def int8_linear(x: Tensor, packed: Tensor, scales: Tensor, bias: Tensor | None) -> Tensor:
    """``quantize(x) @ quantized weight.T + bias``: float32 [N, inputs] -> [N, outputs]."""
    assert x.dtype == torch.float32
    if x.stride(1) != 1:
        x = x.contiguous()
    rows, inputs = x.shape
    outputs = len(scales)
    out = _empty((rows, outputs))
    _cpu.int8_linear(
        x.data_ptr(), packed.data_ptr(), scales.data_ptr(), 0 if bias is None else bias.data_ptr(),
        out.data_ptr(), rows, outputs, inputs, x.stride(0), torch.get_num_threads(),
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
    if groups.max_rows > _FEW_ROWS:
        return reference.paged_cross_attention(q, kv, groups, scores, sums)
    assert scores.bias_table is None
    return _attend(q, kv, groups, scores, sums, causal=False)


def paged_beam_attention(q: Tensor, kv: PagedKV, scores: Scores, sums: Tensor | None = None) -> Tensor:
    return _attend(q, kv, RowGroups.each(len(q), q.device), scores, sums, causal=True, by_cell=True)


def _attend(
    q: Tensor, kv: PagedKV, groups: RowGroups, scores: Scores, sums: Tensor | None, *, causal: bool,
    by_cell: bool = False,
) -> Tensor:  # fmt: skip
    """by_cell: the table names each key's cell instead of each page."""
    k, v, table, lengths = kv
    assert sums is None or sums.is_contiguous()
    assert table.dtype == lengths.dtype == groups.cu_rows.dtype == torch.int32
    q = _rows(q)
    _, heads, dim = q.shape
    out = _empty(q.shape, q.dtype)
    if table.stride(1) != 1:
        table = table.contiguous()
    bias_table = None if scores.bias_table is None else scores.bias_table.contiguous()
    _cpu.attend(
        q.data_ptr(), out.data_ptr(), k.data_ptr(), v.data_ptr(), table.data_ptr(),
        groups.cu_rows.data_ptr(), lengths.data_ptr(), 0 if bias_table is None else bias_table.data_ptr(),
        0 if sums is None else sums.data_ptr(), lengths.shape[0], heads, k.shape[1], dim,
        k.shape[2], q.stride(0), table.stride(0),
        0 if bias_table is None else bias_table.shape[1] - 1, scores.scale, scores.softcap or 0.0, causal,
        by_cell, q.dtype == torch.bfloat16, torch.get_num_threads(),
    )  # fmt: skip
    return out


def _rows(x: Tensor) -> Tensor:
    """x [N, H, D] such that only its rows may lie apart."""
    return x if x.stride(2) == 1 and x.stride(1) == x.shape[2] else x.contiguous()
