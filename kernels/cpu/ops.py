"""The CPU's hot ops in one pass each: launchers of the C++ extension, compiled when Tandem is installed.

Where no compiler was there, or for tensors it does not take, the plain twins in `reference` do the same.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor

from tandem.kernels.groups import RowGroups

if TYPE_CHECKING:
    from tandem.kernels.decode_rows import DecodeTables

try:
    from tandem.kernels.cpu import _cpu
except ImportError:
    COMPILED = AVX512 = False
else:
    COMPILED, AVX512 = True, _cpu.has_avx512()

# The dtypes of activations, and whether they are the half-precision one.
_HALF: Final = {torch.float32: False, torch.bfloat16: True}
# Up to this many query rows of a sequence attend here; from there on dense products pay.
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


def takes(*tensors: Tensor) -> bool:
    """Whether these activations and weights are on the CPU, and of one dtype that is known here."""
    dtype = tensors[0].dtype
    if not COMPILED or dtype not in _HALF:
        return False
    # A loop, for it is run a hundred times a step.
    for tensor in tensors:  # noqa: SIM110
        if not (tensor.is_cpu and tensor.dtype == dtype):
            return False
    return True


def takes_floats(*tensors: Tensor) -> bool:
    """Whether these are float32, on the CPU, and the extension is there."""
    return tensors[0].dtype == torch.float32 and takes(*tensors)


def takes_pages(pages: Tensor, groups: RowGroups | None = None) -> bool:
    """Whether K or V in these pages are read and written here; `groups`: for these query rows."""
    few = groups is None or groups.max_rows <= _FEW_ROWS
    return COMPILED and pages.is_cpu and pages.dtype == torch.float32 and few


def add_norm(
    x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """LayerNorm with a bias, RMSNorm without: as `add_layer_norm` and `add_rms_norm` in `reference`; without
    a residual, the sum is x. All of one dtype."""
    x, weight = x.contiguous(), weight.contiguous()
    residual = None if residual is None else residual.contiguous()
    out = _empty(x.shape, x.dtype)
    total = x if residual is None else _empty(x.shape, x.dtype)
    _cpu.add_norm(
        x.data_ptr(), 0 if residual is None else residual.data_ptr(), weight.data_ptr(),
        0 if bias is None else bias.data_ptr(), out.data_ptr(), 0 if residual is None else total.data_ptr(),
        x.shape[0], x.shape[1], eps, _HALF[x.dtype], torch.get_num_threads(),
    )  # fmt: skip
    return out, total


def activate(x: Tensor, activation: str, *, gated: bool) -> Tensor:
    """As in `reference`, in float32."""
    x = x.contiguous()
    rows, width = x.shape[0], x.shape[1] // (1 + gated)
    out = _empty((rows, width))
    kind, threads = _ACTIVATIONS[activation], torch.get_num_threads()
    _cpu.activate(x.data_ptr(), out.data_ptr(), rows, width, kind, gated, threads)
    return out


def scale(x: Tensor, factor: float) -> Tensor:
    """``x * factor``, float32 [N, d]."""
    x = x.contiguous()
    out = _empty(x.shape)
    _cpu.scale(x.data_ptr(), out.data_ptr(), x.shape[0], x.shape[1], factor)
    return out


def argmax(x: Tensor) -> Tensor:
    """As in `reference`, in float32."""
    if x.stride(1) != 1:
        x = x.contiguous()
    out = _empty((len(x),), torch.int64)
    _cpu.argmax(x.data_ptr(), out.data_ptr(), len(x), x.shape[1], x.stride(0), torch.get_num_threads())
    return out


def embed(ids: Tensor, table: Tensor, onto: Tensor | None) -> Tensor:
    """As in `reference`, in float32."""
    assert ids.dtype == torch.int64
    ids, table = ids.contiguous(), table.contiguous()
    onto = None if onto is None else onto.contiguous()
    rows, width = len(ids), table.shape[1]
    out = _empty((rows, width))
    _cpu.embed(
        ids.data_ptr(), table.data_ptr(), 0 if onto is None else onto.data_ptr(), out.data_ptr(), rows, width
    )
    return out


def gather_rows(rows: Tensor, tables: DecodeTables, *, beams: bool) -> tuple[Tensor, ...]:
    """See `decode_rows.gather_rows`."""
    assert rows.dtype == torch.int64
    assert rows.is_contiguous()
    assert tables.sequences.is_contiguous()
    count, cells = rows.shape[1], tables.beam_cells if beams else None
    self_width, cross_width = tables.self_pages.shape[1], tables.cross_pages.shape[1]
    cells_width = 0 if cells is None else cells.shape[1]
    outs = (
        _empty((count,), torch.int64),
        _empty((count,), torch.int64),
        _empty((count,), torch.int64),
        _zeros((count, cells_width or self_width), torch.int32),
        _empty((count,), torch.int32),
        _zeros((count, cross_width), torch.int32),
        _empty((count,), torch.int32),
    )
    _cpu.gather_rows(
        rows.data_ptr(), tables.sequences.data_ptr(), tables.self_pages.data_ptr(),
        0 if cells is None else cells.data_ptr(), tables.cross_pages.data_ptr(),
        tables.cross_lengths.data_ptr(), *(out.data_ptr() for out in outs), count, count,
        tables.sequences.shape[1], self_width, cells_width, cross_width, tables.page_size,
    )  # fmt: skip
    return outs


def match_prompt_tokens(tokens: Tensor, rows: Tensor, sequences: Tensor) -> Tensor:
    """See `decode_rows.match_prompt_tokens`."""
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
    """As in `reference`, into float32 pages."""
    assert slots.dtype == torch.int64
    k, v, slots = _rows(k), _rows(v), slots.contiguous()
    rows, heads, dim = k.shape
    _cpu.write_kv(
        k.data_ptr(), v.data_ptr(), k_pages.data_ptr(), v_pages.data_ptr(), slots.data_ptr(),
        rows, heads, dim, k_pages.shape[2], k.stride(0), v.stride(0), _HALF[k.dtype],
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


def paged_attention(
    q: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    page_table: Tensor,
    lengths: Tensor,
    cu_rows: Tensor,
    bias_table: Tensor | None,
    scale: float,
    softcap: float | None,
    sums: Tensor | None,
    *,
    causal: bool,
    by_cell: bool = False,
) -> Tensor:
    """As `paged_self_attention` and its kin in `reference`, over float32 pages.

    cu_rows: int32 [S + 1]. by_cell: the table names each key's place, page P + offset, instead of each page.
    """
    assert sums is None or sums.is_contiguous()
    assert page_table.dtype == lengths.dtype == cu_rows.dtype == torch.int32
    q = _rows(q)
    _, heads, dim = q.shape
    out = _empty(q.shape, q.dtype)
    if page_table.stride(1) != 1:
        page_table = page_table.contiguous()
    bias_table = None if bias_table is None else bias_table.contiguous()
    _cpu.attend(
        q.data_ptr(), out.data_ptr(), k_pages.data_ptr(), v_pages.data_ptr(), page_table.data_ptr(),
        cu_rows.data_ptr(), lengths.data_ptr(), 0 if bias_table is None else bias_table.data_ptr(),
        0 if sums is None else sums.data_ptr(), lengths.shape[0], heads, k_pages.shape[1], dim,
        k_pages.shape[2], q.stride(0), page_table.stride(0),
        0 if bias_table is None else bias_table.shape[1] - 1, scale, softcap or 0.0, causal, by_cell,
        _HALF[q.dtype], torch.get_num_threads(),
    )  # fmt: skip
    return out


def _rows(x: Tensor) -> Tensor:
    """x [N, H, D] such that only its rows may lie apart."""
    return x if x.stride(2) == 1 and x.stride(1) == x.shape[2] else x.contiguous()
